"""Checkpoints: each rank writes its share, a manifest marks the folder as whole, any topology can read it."""
