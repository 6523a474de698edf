"""A sweep on a SLURM cluster: jobs, their notes, and the watch over them."""
