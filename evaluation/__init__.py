"""Evaluate a trained model: BABILong, MMLU, perplexity by position, with an interval for each share."""
