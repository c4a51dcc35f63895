"""Checkpoints: what each rank writes, the manifest that makes a folder whole, and reading on any topology."""
