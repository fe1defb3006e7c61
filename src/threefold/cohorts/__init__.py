"""Cohorts: cases and what is known of them, splits, audits, importers."""
