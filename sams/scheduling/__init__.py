"""Scheduling: which pairs of a batch to train on. Takes tensors, returns indices; independent of ranks and models."""
