"""SamS: adaptive sample scheduling for Direct Preference Optimization, as an experiment pipeline."""

__version__ = "0.1.0"
