"""What a run does about bad losses, slow ranks, hangs and signals."""
