"""Selectors: one file each, and `table` with their names and needs."""
