"""The phantoms that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threefold.core.registry import find
from threefold.errors import ExperimentError
from threefold.phantoms.fetal_heart import FETAL_HEART
from threefold.phantoms.head_ct import HEAD_CT
from threefold.phantoms.object_background import OBJECT_BACKGROUND
from threefold.phantoms.phantom import Phantom

PHANTOMS: Mapping[str, Phantom[Any, Any]] = {
    phantom.name: phantom for phantom in (HEAD_CT, FETAL_HEART, OBJECT_BACKGROUND)
}
"""By name."""


def phantom_of(name: str) -> Phantom[Any, Any]:
    """Return a phantom by its name: built in, of an installed package, or MODULE:NAME.

    Raises:
        ExperimentError: there is no such phantom, or it can't be imported.
    """
    found, _ = find("phantoms", name)
    if not isinstance(found, Phantom):
        raise ExperimentError(
            f"phantom '{name}': expected a threefold Phantom, found {type(found).__name__}."
        )
    return found
