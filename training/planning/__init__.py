"""What a run would need and how long it would take, before any device is asked: see docs/planning.md."""

from training.planning.stages import cut_stages

__all__ = ["cut_stages"]
