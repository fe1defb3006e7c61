"""Cases whose files Windows and macOS would take for one."""

from __future__ import annotations

from collections import defaultdict

from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError, some
from threefold.file_names import folded

_SHOWN = 5


def alike_ids(cohort: Cohort) -> list[tuple[str, ...]]:
    """Return the ids that differ in case alone, or in how an accent is stored, by what they share."""
    alike: dict[str, list[str]] = defaultdict(list)
    for case in cohort.cases:
        alike[folded(case.case_id)].append(case.case_id)
    return [tuple(names) for names in alike.values() if len(names) > 1]


def refuse_alike_ids(cohort: Cohort) -> None:
    """Refuse to write files named by the ids of a cohort where some of them would be one file.

    Raises:
        CohortError: naming the ids.
    """
    several = alike_ids(cohort)
    if several:
        raise CohortError(
            f"{cohort.folder}: ids differ in case alone, or in how an accent is stored: "
            f"{some(['/'.join(names) for names in several], _SHOWN)}. Windows and macOS take their "
            "files for one: rename them in cases.csv."
        )
