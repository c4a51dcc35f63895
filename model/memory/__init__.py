"""The memory kinds. Each is a package: `spec.py` (configuration and costs, without torch) and `module.py`, the layer.

`registry.py` finds the kinds, installed ones too. The rest of the project uses `spec.py` and `interface.py` alone.
"""
