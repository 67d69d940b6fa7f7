"""What every process uses: errors, files, progress, signals, provenance. Part of no code digest."""
