"""Data: sources, the synthetic world, records, templates, tokenised pairs."""
