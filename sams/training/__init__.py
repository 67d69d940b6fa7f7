"""Training: the loop, distribution over processes, checkpoints; entry points of the training stages."""
