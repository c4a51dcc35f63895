"""Predicts the memory and the time of a run before it starts (docs/planning.md)."""

from training.planning.stages import cut_stages
from training.planning.summary import lines_at_start, summary

__all__ = ["cut_stages", "lines_at_start", "summary"]
