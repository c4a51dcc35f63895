"""What a run would need and how long it would take, before any device is asked: see docs/planning.md."""

from training.planning.stages import cut_stages
from training.planning.summary import lines_at_start, summary

__all__ = ["cut_stages", "lines_at_start", "summary"]
