"""The commands that people type: `python launchers/NAME.py` in a checkout, `memtrain NAME` where it is installed."""
