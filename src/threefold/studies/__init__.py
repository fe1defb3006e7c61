"""Studies: recipes, and comparisons of runs."""
