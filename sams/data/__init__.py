"""From data files and hub data sets to records, and from records to token ids."""
