"""From input files to a prepared folder: the plan, its tasks on all cores, and the merge."""
