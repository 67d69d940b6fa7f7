"""Preference losses: one file a family, and `table` with their names and needs."""
