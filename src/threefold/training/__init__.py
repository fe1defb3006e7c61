"""Training: from an experiment and a cohort to a run folder."""
