"""The policy: loading a model, log-probs of completions, features for the scheduler."""
