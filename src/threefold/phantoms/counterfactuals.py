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
from threefold.phantoms.object_background import ObjectCase, read_object_cases, render_picture

PhantomCase = CaseParameters | ObjectCase

CHANGED_AT_MOST = 0.02
"""Share of the pixels that switching the clip may change; another noise changes nearly all."""


def switch_shortcut(case: PhantomCase) -> PhantomCase:
    """Return the case with its shortcut switched.

    A head-CT slice gets the planted clip where it had none and loses it where it had one; an object gets
    the other background.
    """
    if isinstance(case, ObjectCase):
        return replace(case, shortcut=not case.shortcut)
    return replace(case, acquisition=replace(case.acquisition, shortcut=not case.acquisition.shortcut))


def switch_marker(case: PhantomCase) -> PhantomCase:
    """Return the case with what its label is about switched.

    A hematoma gets hypodensities where it had none and loses them where it had some; an object gets the
    other kind's outline.
    """
    if isinstance(case, ObjectCase):
        return replace(case, kind=1 - case.kind)
    return replace(case, hematoma=replace(case.hematoma, marker=not case.hematoma.marker))


def has_shortcut(case: PhantomCase) -> bool:
    """Whether the clip is there, or the background is striped."""
    return case.shortcut if isinstance(case, ObjectCase) else case.acquisition.shortcut


def has_marker(case: PhantomCase) -> bool:
    """Whether the case is positive."""
    return bool(case.kind) if isinstance(case, ObjectCase) else case.hematoma.marker


SWITCHES: Mapping[str, tuple[Callable[[PhantomCase], PhantomCase], Callable[[PhantomCase], bool]]] = {
    "shortcut": (switch_shortcut, has_shortcut),
    "marker": (switch_marker, has_marker),
}
"""By name: what switches a thing, and whether a case has it."""


def phantom_cases(folder: Path) -> dict[str, PhantomCase]:
    """Return what the cases of a phantom are rendered from, by case id; empty for any other cohort.

    Raises:
        CohortError: the file is damaged.
    """
    # Every phantom leaves parameters.json; the table of truth tells which one this is.
    readers: dict[str, Callable[[Path], tuple[PhantomCase, ...]]] = {
        "hematoma": read_parameters,
        "object": read_object_cases,
    }
    read = readers.get(next(iter(_truth(folder)), ""))
    if read is None or not (folder / "parameters.json").is_file():
        return {}
    try:
        return {case.case_id: case for case in read(folder)}
    except ValueError as error:
        raise CohortError(
            f"{folder / 'parameters.json'}: can't be read ({error}). Make the cohort again with "
            "`threefold phantom`."
        ) from error


def lesion_files(folder: Path) -> dict[str, Path]:
    """Return the file of each case's true hematoma or object, of all sites; empty without such a truth."""
    return next(iter(_truth(folder).values()), {})


def render_switched(case: PhantomCase, name: str, original: NDArray[np.generic]) -> NDArray[np.generic]:
    """Render a case again with one thing switched and the noise the same.

    Args:
        case: as it is in the cohort.
        name: of the switch.
        original: (I, J) its image in the cohort.

    Returns:
        (I, J) in the cohort's units.

    Raises:
        CohortError: the cohort's image is not what its parameters render.
    """
    switch, _ = SWITCHES[name]
    image = _image(switch(case))
    if image.shape != original.shape or not _is_known(case, name, image, original):
        raise CohortError(
            f"case {case.case_id}: its image is not the one that parameters.json describes, so that it can't "
            "be rendered again with one thing changed. Make the cohort again with this version."
        )
    return image


def _image(case: PhantomCase) -> NDArray[np.generic]:
    return render_picture(case).grey if isinstance(case, ObjectCase) else render_case(case).hu


def _is_known(
    case: PhantomCase, name: str, switched: NDArray[np.generic], original: NDArray[np.generic]
) -> bool:
    """Whether the cohort's image is what the parameters render, as far as is known at no great cost."""
    if isinstance(case, ObjectCase):
        return np.array_equal(_image(case), original)
    # The clip lies outside the head: all but a few pixels are those of the cohort's image.
    return name != "shortcut" or bool(np.mean(switched != original) <= CHANGED_AT_MOST)


def _truth(folder: Path) -> dict[str, dict[str, Path]]:
    """Return truth.csv: by column, the file of each case."""
    path = folder / "truth.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = [name for name in (rows[0] if rows else {}) if name != "case_id"]
    return {name: {row["case_id"]: folder / row[name] for row in rows if row[name]} for name in columns}
