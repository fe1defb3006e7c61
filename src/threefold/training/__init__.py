"""Training: data loading, the training module and the run that leaves a folder."""
