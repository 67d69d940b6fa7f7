"""The policy: models, log-probs of completions, features for the scheduler, weights in files."""
