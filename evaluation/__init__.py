"""What a trained model can do: BABILong, MMLU, perplexity by position, each cell with its interval."""
