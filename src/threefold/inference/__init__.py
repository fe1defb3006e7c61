"""Inference: from a run and an image to a prediction."""
