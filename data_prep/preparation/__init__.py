"""Make a prepared folder from input files: the plan, its tasks on all cores, and the merge."""
