"""BABILong (arXiv 2406.10149): facts of bAbI hidden among sentences of books, at any length."""
