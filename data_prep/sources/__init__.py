"""Where documents come from, and which of them are kept."""
