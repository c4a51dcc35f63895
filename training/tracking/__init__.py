"""Records a run in MLflow: one run for the whole life of a training, however often it is stopped and resumed.

`tracker.py` is what training calls; it never waits. `outbox.py` keeps what the store has not taken yet, `delivery.py`
brings it there, `store.py` alone imports MLflow. `sync.py` sends afterwards what a run left behind.
"""

from training.config.tracking import TrackingConfig
from training.tracking.tracker import NullTracker, Status, Tracker

__all__ = ["NullTracker", "Status", "Tracker", "TrackingConfig"]
