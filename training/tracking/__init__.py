"""Records a run in MLflow: all attempts of a run, however often it is stopped and resumed, are one MLflow run.

Training calls `tracker.py`, which never waits. `outbox.py` keeps what has not been sent, `delivery.py` sends it, and
only `store.py` imports MLflow. `sync.py` sends after training what a run left unsent.
"""

from training.config.tracking import TrackingConfig
from training.tracking.tracker import NullTracker, Status, Tracker

__all__ = ["NullTracker", "Status", "Tracker", "TrackingConfig"]
