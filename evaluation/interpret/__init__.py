"""What a memory does with a prompt: which slots its tokens read, what they got back, what each slot is worth."""

from evaluation.interpret.analysis import Analysis, analyse, load_analysis, save_analysis

__all__ = ["Analysis", "analyse", "load_analysis", "save_analysis"]
