"""Judges: endpoints, the caching proxy, calls and their retries, the store of answers."""
