"""Benchmarks: speed and memory, measured on the machine that they run on."""
