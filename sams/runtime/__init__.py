"""Modules that every process uses: errors, files, progress, signals, provenance. In no code digest."""
