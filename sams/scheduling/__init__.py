"""Scheduling: which pairs of a batch to train on. Sees tensors, returns indices; knows no ranks, no models."""
