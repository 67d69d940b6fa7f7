"""Tasks of the training stages: a task turns item indices into token ids and losses."""
