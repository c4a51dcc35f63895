"""Reading documents from all kinds of sources, and choosing which are kept."""
