"""The phantoms that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threefold.phantoms.fetal_heart import FETAL_HEART
from threefold.phantoms.head_ct import HEAD_CT
from threefold.phantoms.object_background import OBJECT_BACKGROUND
from threefold.phantoms.phantom import Phantom

PHANTOMS: Mapping[str, Phantom[Any, Any]] = {
    phantom.name: phantom for phantom in (HEAD_CT, FETAL_HEART, OBJECT_BACKGROUND)
}
"""By name."""
