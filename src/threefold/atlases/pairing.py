"""Which atlas goes with which case, and what has to hold before anything is registered. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from threefold.atlases.spec import PropagationSpec
from threefold.cohorts.cohort import AtlasSpec, Case, Cohort, CohortSpec
from threefold.cohorts.failures import Failures, listed, sparing_others
from threefold.cohorts.targets import read_structures
from threefold.errors import CohortError, ImageError
from threefold.images.geometry import Header, Image
from threefold.images.reading import read_header, read_image
from threefold.validation import did_you_mean

Pairing = Mapping[str, tuple[AtlasSpec, ...]]
"""Case id to the atlases that are registered to it."""


def pair_cases(cohort: Cohort, spec: PropagationSpec, atlases: Sequence[str] | None = None) -> Pairing:
    """Return the atlases of each case that has no structures yet.

    A case goes with the atlases of its class and with those of every class; a case without a class with all
    of them. With `spec.match_by`, only those nearest to the case in that column are kept.

    Args:
        cohort: volumes.
        spec: how atlases are matched, and how many are used.
        atlases: names of those to use; None: all that cohort.yaml declares.

    Raises:
        CohortError: slices, no atlases, an unknown atlas, a class without one, no case without structures; a
            column to match by that no case or not every atlas has, or that holds no numbers.
    """
    meaning, where = cohort.spec, cohort.folder
    if meaning.dimensions != 3:
        raise CohortError(
            f"{where}: its cases are slices (dimensions: {meaning.dimensions}); expected volumes. Labels are "
            "propagated between volumes only."
        )
    if not meaning.atlases:
        raise CohortError(
            f"{where}: cohort.yaml declares no atlases. List them under `atlases`, each with name, image, "
            "structures and, where it is of one class, label."
        )
    if not meaning.structures:
        raise CohortError(f"{where}: cohort.yaml names no `structures`, which says what atlas labels mean.")
    chosen = _chosen(meaning, atlases)
    pairing: dict[str, tuple[AtlasSpec, ...]] = {}
    without: dict[str | None, list[str]] = {}
    for case in cohort.cases:
        if case.structures is not None:
            continue
        name = None if case.label is None else meaning.classes[case.label]
        fitting = tuple(atlas for atlas in chosen if name is None or atlas.label in (None, name))
        if fitting:
            pairing[case.case_id] = _nearest(case, fitting, spec, where)
        else:
            without.setdefault(name, []).append(case.case_id)
    if without:
        listed = "; ".join(f"{name} ({len(ids)} cases, the first {ids[0]})" for name, ids in without.items())
        raise CohortError(
            f"{where}: no atlas for {listed}. Declare one with that label under `atlases` in cohort.yaml, or "
            "one without a label, which is every case's."
        )
    if not pairing:
        raise CohortError(f"{where}: every case has structures already; there is nothing to propagate to.")
    column = spec.match_by
    if column is not None and all(_number(case, column, where) is None for case in cohort.cases):
        raise CohortError(f"{where}: no case has a number in the column '{column}', to match atlases by.")
    return pairing


def check_files(cohort: Cohort, pairing: Pairing, spec: PropagationSpec) -> Failures:
    """Look at what can be wrong before a registration begins: atlases, and the headers of the cases.

    Returns:
        Why a case can't be used, by id: a missing or unreadable file, an image that an atlas of its does not
        overlap (without affine alignment).

    Raises:
        CohortError: naming the atlas: a missing or unreadable file, other labels than the cohort's
            structures; or no case can be used.
    """
    used = {atlas.name: atlas for atlases in pairing.values() for atlas in atlases}
    grids = {name: _atlas_grid(cohort, atlas) for name, atlas in used.items()}
    failed: Failures = {}
    for case in cohort.cases:
        if case.case_id not in pairing:
            continue
        with sparing_others(failed, case.case_id):
            channel = next(iter(cohort.spec.channels), None)
            if channel is not None and channel not in case.channels:
                raise ImageError(f"the channel {channel}, which atlases are registered to, is missing")
            grid = _case_grid(case)
            for atlas in () if spec.affine else pairing[case.case_id]:
                apart = _apart(grid, grids[atlas.name])
                if apart is not None:
                    raise ImageError(
                        f"its image and atlas '{atlas.name}' do not overlap: {apart}. Align them first "
                        "(affine=true), or correct the files' affines."
                    )
    if len(failed) == len(pairing):
        raise CohortError(f"{cohort.folder}: no case can be used.\n  " + "\n  ".join(listed(failed)))
    return failed


def read_atlas(cohort: Cohort, atlas: AtlasSpec) -> tuple[Image, Image]:
    """Read an atlas's image and its label map (uint8, on the image's grid).

    Raises:
        CohortError: naming the atlas.
    """
    try:
        image = read_image(cohort.folder / atlas.image)
        if image.array.ndim != 3:
            raise ImageError(f"{image.source}: has shape {image.array.shape}; expected a volume.")
        labels = read_structures(cohort.folder / atlas.structures, None, image, cohort.spec)
    except ImageError as error:
        raise CohortError(f"atlas '{atlas.name}': {error}") from error
    if not np.any(labels.array):
        raise CohortError(
            f"atlas '{atlas.name}': {labels.source}: every voxel is 0; expected the labels 1 to "
            f"{len(cohort.spec.structures)}."
        )
    return image, labels


def _chosen(spec: CohortSpec, names: Sequence[str] | None) -> tuple[AtlasSpec, ...]:
    known = [atlas.name for atlas in spec.atlases]
    for name in names or ():
        if name not in known:
            raise CohortError(f"there is no atlas '{name}'.{did_you_mean(name, known)}")
    return tuple(atlas for atlas in spec.atlases if names is None or atlas.name in names)


def _nearest(
    case: Case, atlases: tuple[AtlasSpec, ...], spec: PropagationSpec, where: Path
) -> tuple[AtlasSpec, ...]:
    """Return the atlases nearest to a case by the column to match by; all if it has no number there."""
    if spec.match_by is None:
        return atlases
    for atlas in atlases:
        if spec.match_by not in atlas.values:
            raise CohortError(
                f"{where}: atlas '{atlas.name}' has no number '{spec.match_by}', to match by. Give it in "
                f"cohort.yaml: values: {{{spec.match_by}: NUMBER}}."
            )
    own = _number(case, spec.match_by, where)
    if own is None:
        return atlases
    ranked = sorted(atlases, key=lambda atlas: abs(atlas.values[str(spec.match_by)] - own))
    return tuple(ranked[: spec.most_atlases])


def _number(case: Case, column: str, where: Path) -> float | None:
    """Return a case's number in a column or of a target; None where it has none."""
    known = case.targets.get(column, case.extra.get(column))
    try:
        value = None if known in (None, "") else float(known)
    except (TypeError, ValueError):
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise CohortError(
            f"{where}: case {case.case_id}, column '{column}': found {known!r}; expected a number, to match "
            "atlases by. Correct it, or leave it empty."
        )
    return value


def _atlas_grid(cohort: Cohort, atlas: AtlasSpec) -> Header:
    image, _ = read_atlas(cohort, atlas)
    return Header(image.array.shape, image.affine)


def _case_grid(case: Case) -> Header:
    paths: dict[str, Path | None] = {"mask": case.mask, "reference": case.reference}
    for name, path in paths.items():
        if path is not None:
            try:
                read_header(path)
            except ImageError as error:
                raise ImageError(f"{name}: {error}") from error
    return read_header(case.image)


def _apart(a: Header, b: Header) -> str | None:
    """Say how far two grids' boxes in mm are from each other; None where they meet."""
    (low_a, high_a), (low_b, high_b) = _bounds(a), _bounds(b)
    gaps = np.maximum(low_a - high_b, low_b - high_a)
    if (gaps < 0).all():
        return None
    axis = int(gaps.argmax())
    return f"{gaps[axis]:.0f} mm apart along {('right-left', 'front-back', 'head-foot')[axis]}"


def _bounds(grid: Header) -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[*corner, 1] for corner in product(*((-0.5, n - 0.5) for n in grid.shape))])
    points = (corners @ grid.affine.T)[:, :3]
    return points.min(0), points.max(0)
