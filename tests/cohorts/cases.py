"""What tests say of a case's targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from threefold.cohorts.cohort import Case


def known(**targets: Any) -> dict[str, Any]:
    """Return targets without those that are None, as a case has them."""
    return {name: value for name, value in targets.items() if value is not None}


def retold(case: Case, **targets: Any) -> Case:
    """Return the case with other targets; None takes one away."""
    return replace(case, targets=known(**{**case.targets, **targets}))
