"""Threefold: classify, segment and reconstruct medical images with one shared representation."""

__version__ = "0.1.0"
