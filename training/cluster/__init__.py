"""Runs on a Slurm cluster: cluster profiles, job scripts, submission, and checks of the nodes."""
