"""Interpret a memory on a prompt: the slots its tokens read, the writes they read, and the loss without slots."""

from evaluation.interpret.analysis import Analysis, analyse, load_analysis, save_analysis

__all__ = ["Analysis", "analyse", "load_analysis", "save_analysis"]
