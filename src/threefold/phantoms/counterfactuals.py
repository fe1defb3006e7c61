"""The same phantom case with one thing switched, and the truth of every site: for evaluation alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threefold.errors import CohortError
from threefold.phantoms.head_ct import CaseParameters, read_parameters, render_case

CHANGED_AT_MOST = 0.02
"""Share of the pixels that switching the clip may change; another noise changes nearly all."""


def switch_shortcut(case: CaseParameters) -> CaseParameters:
    """Return the case with the planted clip where it had none, without it where it had one."""
    return replace(case, acquisition=replace(case.acquisition, shortcut=not case.acquisition.shortcut))


def switch_marker(case: CaseParameters) -> CaseParameters:
    """Return the case with hypodensities where its hematoma had none, without them where it had some."""
    return replace(case, hematoma=replace(case.hematoma, marker=not case.hematoma.marker))


SWITCHES: Mapping[
    str, tuple[Callable[[CaseParameters], CaseParameters], Callable[[CaseParameters], bool]]
] = {
    "shortcut": (switch_shortcut, lambda case: case.acquisition.shortcut),
    "marker": (switch_marker, lambda case: case.hematoma.marker),
}
"""By name: what switches a thing, and whether a case has it."""


def head_parameters(folder: Path) -> dict[str, CaseParameters]:
    """Return the parameters of a head-CT phantom's cases by case id; empty for any other cohort.

    Raises:
        CohortError: the file is damaged.
    """
    # Both phantoms leave parameters.json; only the head's has a table of the truth of its hematomas.
    if not (folder / "parameters.json").is_file() or "hematoma" not in _truth(folder):
        return {}
    try:
        return {case.case_id: case for case in read_parameters(folder)}
    except ValueError as error:
        raise CohortError(
            f"{folder / 'parameters.json'}: can't be read ({error}). Make the cohort again with "
            "`threefold phantom head-ct`."
        ) from error


def lesion_files(folder: Path) -> dict[str, Path]:
    """Return the file of each case's true hematoma, of all sites; empty for cohorts without such a truth."""
    return _truth(folder).get("hematoma", {})


def render_switched(case: CaseParameters, name: str, original: NDArray[np.generic]) -> NDArray[np.int16]:
    """Render a case again with one thing switched and the noise the same, (I, J) HU.

    Args:
        case: as it is in the cohort.
        name: of the switch.
        original: (I, J) its image in the cohort.

    Raises:
        CohortError: the cohort's image is not what its parameters render.
    """
    switch, _ = SWITCHES[name]
    hu = render_case(switch(case)).hu
    same_grid = hu.shape == original.shape
    # The clip lies outside the head: all but a few pixels are those of the cohort's image.
    if not same_grid or (name == "shortcut" and np.mean(hu != original) > CHANGED_AT_MOST):
        raise CohortError(
            f"case {case.case_id}: its image is not the one that parameters.json describes, so that it can't "
            "be rendered again with one thing changed. Make the cohort again with this version."
        )
    return hu


def _truth(folder: Path) -> dict[str, dict[str, Path]]:
    """Return truth.csv: by column, the file of each case."""
    path = folder / "truth.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in (rows[0] if rows else {}) if name != "case_id"]
    return {name: {row["case_id"]: folder / row[name] for row in rows if row[name]} for name in columns}
