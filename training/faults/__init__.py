"""Handling of non-finite losses, loss spikes, slow ranks, hangs and signals."""
