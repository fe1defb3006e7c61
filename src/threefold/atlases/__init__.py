"""Labelled templates, and propagating their labels to cases."""
