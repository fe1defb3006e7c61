"""Reporting: tables and figures of a run."""
