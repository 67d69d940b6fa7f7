"""A study: its settings, typed; their files; the recipe of each stage."""
