"""BABILong (arXiv 2406.10149): bAbI's facts among the sentences of books, at any length."""
