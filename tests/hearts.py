"""The smallest fetal-heart phantom with every diagnosis in each part of a split."""

from __future__ import annotations

from typing import Any

SMALL_HEART: dict[str, Any] = {
    "patients": (4, 3, 3),
    "size": 24,
    "spacing": 2.1,
    "deformation": 0.3,
    "vessel_scale": 1.0,  # wider ones merge on so coarse a grid, and are drawn again and again
}
"""What differs from the demo's."""
