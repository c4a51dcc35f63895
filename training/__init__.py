"""The trainer: configuration, topology, engine, loop, checkpoints, tracking."""
