"""Metrics of a job: the metric log, and MLflow as its mirror."""
