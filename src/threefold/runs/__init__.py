"""What is asked of a finished run: evaluate, explain, probe, compare features, show."""
