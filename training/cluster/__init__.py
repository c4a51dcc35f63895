"""Runs on a Slurm cluster: what a cluster is, the job script, what may be asked of it, and the check of its nodes."""
