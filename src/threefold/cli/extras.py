"""The extras: libraries that are only needed for some things, and whether they are installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

EXTRAS: Mapping[str, str] = {
    "dicom": "gdcm",
    "export": "onnxruntime",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "topology": "gudhi",
}
"""The module that each extra of pyproject.toml brings, those for developers left out."""


def extras_line() -> str:
    """Return which extras are installed, in a line."""
    found = [name for name, module in EXTRAS.items() if find_spec(module) is not None]
    return f"extras: {', '.join(found) or 'none'} (of {', '.join(EXTRAS)})"
