"""Tables and figures, made from the files of a study's results; nothing here computes a score."""
