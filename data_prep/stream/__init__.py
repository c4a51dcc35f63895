"""From prepared folders to batches: which sample comes next is a pure function of its number."""
