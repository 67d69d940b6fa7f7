"""Benchmarks of speed and memory, and simulations of large runs."""
