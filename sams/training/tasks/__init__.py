"""What a training stage learns from: a task turns item indices into token ids and losses."""
