"""Tasks: a loss over the cases that carry its target, and its weight."""
