"""The phantoms that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from threefold.core.registry import built_in, find
from threefold.errors import ExperimentError
from threefold.phantoms.phantom import Phantom


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


PHANTOMS: Mapping[str, Phantom[Any, Any]] = {name: phantom_of(name) for name in built_in("phantoms")}
"""The program's own, by name."""
