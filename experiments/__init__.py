"""Experiments: the paper's tables, one command each. They run from a clone."""
