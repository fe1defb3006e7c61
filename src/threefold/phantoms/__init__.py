"""Phantoms: synthetic cohorts with known truth."""
