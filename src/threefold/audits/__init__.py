"""Audits of a cohort: whatever would stop a training, or make its numbers mislead."""
