"""Judges: calls, their retries, the store of answers, and what is known of judges."""
