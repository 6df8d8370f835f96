"""What layers bear and what to choose by it: `python -m experiments.sensitivity`."""
