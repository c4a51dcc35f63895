"""Slow, obvious models that the fast ones must equal, and the small shapes they are compared on."""
