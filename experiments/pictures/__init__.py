"""Pictures made of the tables in experiments/results; see `command`."""
