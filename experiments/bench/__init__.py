"""Benchmarks: one command and one CSV each, with the hardware named."""
