"""Evaluation: metrics with intervals, from a table of predictions."""
