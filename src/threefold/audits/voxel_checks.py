"""Checks that open the files of a cohort: readable, on one grid, with the values that cohort.yaml names."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.audits.acquisition import Measured, measure_acquisition, measure_file
from threefold.audits.near_duplicates import Signature, signature
from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.failures import Failures, sparing_others
from threefold.cohorts.findings import Problem
from threefold.cohorts.meaning import objections
from threefold.cohorts.targets import target_difference
from threefold.core.targets import LabelsTarget, MaskTarget
from threefold.errors import ImageError
from threefold.images.geometry import Header, Image, slice_affine, slice_of
from threefold.images.reading import read_header, read_image, read_label_map

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Opened:
    """What opening the files of the cases gave.

    Attributes:
        problems: in the order of the table.
        digests: hash of the voxels by case id; constant images, which are all alike, are left out.
        signatures: what near duplicates are recognised by, likewise.
        measured: what file and voxels tell of the acquisition, by case id.
        atlases: hash of the voxels by atlas.
    """

    problems: tuple[Problem, ...]
    digests: dict[str, str] = field(default_factory=dict)
    signatures: dict[str, Signature] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)
    atlases: dict[str, str] = field(default_factory=dict)


def check_files(cohort: Cohort, *, read_voxels: bool, progress: Progress | None = None) -> Opened:
    """Open every file of the cohort: its header, and its voxels where `read_voxels` says so."""
    volumes = _Volumes(cohort)
    problems: dict[str, list[Problem]] = {}
    opened = Opened(())
    # Cases of one volume follow each other, so that one volume at a time is in memory.
    ordered = sorted(cohort.cases, key=lambda case: (str(case.image), case.slice_index or 0))
    failed: Failures = {}
    for done, case in enumerate(ordered, start=1):
        found = problems[case.case_id] = []
        with sparing_others(failed, case.case_id):  # memory that runs out
            found.extend(_check_headers(case, cohort.spec))
            if read_voxels and not found:
                found.extend(_check_voxels(case, cohort.spec, volumes, opened))
            elif not found:
                opened.measured[case.case_id] = measure_file(case)
        if case.case_id in failed:
            found.append(_unusable(case, "image", failed[case.case_id]))
        if progress is not None:
            progress(done, len(ordered))
    if read_voxels:
        opened.atlases.update(_atlas_digests(cohort))
    in_order = tuple(problem for case in cohort.cases for problem in problems[case.case_id])
    return replace(opened, problems=in_order)


def _atlas_digests(cohort: Cohort) -> Iterator[tuple[str, str]]:
    """Yield each atlas and the hash of its voxels; `threefold propagate` says what can't be read."""
    for atlas in cohort.spec.atlases:
        with suppress(ImageError):
            yield atlas.name, _digest(np.asarray(read_image(cohort.folder / atlas.image).array))


def _check_voxels(case: Case, spec: CohortSpec, volumes: _Volumes, opened: Opened) -> Iterator[Problem]:
    """Yield what is wrong with a case's voxels; add what they are recognised by, and what they reveal."""
    found = []
    for name, path in case.images.items():
        try:
            image = volumes.read(case, name, path)
        except ImageError as error:
            yield _unusable(case, name, error)
            continue
        array = np.asarray(image.array)
        yield from _check_meaning(case, image, spec)
        if not array.size or array.min() == array.max():
            continue
        found.append(_digest(array) if name == "image" else f"{name} {_digest(array)}")
        if path == case.image:
            opened.measured[case.case_id] = measure_acquisition(case, image)
            recognised = signature(array)
            if recognised is not None:
                opened.signatures[case.case_id] = recognised
    if found:
        opened.digests[case.case_id] = " ".join(found)
    yield from _check_label_maps(case, spec, volumes)


class _Volumes:
    """Reads files; a volume that several cases are slices of is read once while they follow each other."""

    def __init__(self, cohort: Cohort) -> None:
        self._spacing = cohort.spec.spacing
        self._users = Counter(
            path
            for case in cohort.cases
            if case.slice_index is not None
            for path in {*case.images.values(), *case.label_maps.values(), case.reference}
        )
        self._last: dict[str, tuple[Path, Image]] = {}

    def read(self, case: Case, name: str, path: Path) -> Image:
        """Return a case's image, or that of one of its channels."""
        return self._read(name, path, case.slice_index, read_image)

    def labels(self, case: Case, name: str, path: Path) -> NDArray[Any]:
        """Return a case's label map; of a slice whose label map is a slice itself, that."""
        flat = self._users[path] == 1 and len(read_header(path, spacing=self._spacing).shape) < 3
        index = None if flat else case.slice_index
        return np.asarray(self._read(name, path, index, read_label_map).array)

    def _read(self, name: str, path: Path, index: int | None, read: Callable[..., Image]) -> Image:
        if index is None or self._users[path] == 1:
            return read(path, slice_index=index, spacing=self._spacing)
        if name not in self._last or self._last[name][0] != path:
            self._last.pop(name, None)
            try:
                self._last[name] = (path, read(path, spacing=self._spacing))
            except ImageError:
                # Another slice of it may be at fault: judge this one by itself.
                return read(path, slice_index=index, spacing=self._spacing)
        volume = self._last[name][1]
        return slice_of(volume, index) if volume.array.ndim == 3 else volume


def _check_headers(case: Case, spec: CohortSpec) -> Iterator[Problem]:
    try:
        image = read_header(case.image, slice_index=case.slice_index, spacing=spec.spacing)
    except ImageError as error:
        yield _unusable(case, "image", error)
        return
    if len(image.shape) != spec.dimensions or 0 in image.shape:
        advice = (
            "Name the slice in a `slice` column, a row for each, or set dimensions: 3 in cohort.yaml."
            if spec.dimensions == 2
            else "Give a volume, or set dimensions: 2 in cohort.yaml."
        )
        yield Problem(
            "refuse",
            "geometry",
            case.case_id,
            f"the image has not the {spec.dimensions} axes that cohort.yaml says",
            f"{case.image.name} is {' x '.join(map(str, image.shape))}",
            advice,
        )
        return
    further = {name: path for name, path in case.images.items() if path != case.image}
    for name, path in {**further, **_label_maps(case)}.items():
        yield from _check_grid(case, name, path, image, spec)


def _check_grid(case: Case, name: str, path: Path, image: Header, spec: CohortSpec) -> Iterator[Problem]:
    try:
        difference = target_difference(case.image, path, image, _target_header(case, path, spec))
    except ImageError as error:
        yield _unusable(case, name, error)
        return
    if difference is not None:
        yield Problem(
            "refuse",
            "geometry",
            case.case_id,
            f"the {name} lies on another grid than the image",
            f"{path.name} beside {case.image.name}: {difference}" if name in case.images else difference,
            f"Resample the {name} to the image's grid"
            f"{'' if name in case.images else ' (nearest neighbour)'}, or correct its header.",
        )


def _target_header(case: Case, path: Path, spec: CohortSpec) -> Header:
    """Return the grid of a label map; where it is a volume, that of the case's slice."""
    header = read_header(path, spacing=spec.spacing)
    if case.slice_index is None or len(header.shape) == 2:
        return header
    if case.slice_index >= header.shape[2]:
        raise ImageError(f"{path}: there is no slice {case.slice_index}; it has {header.shape[2]}.")
    return Header(header.shape[:2], slice_affine(header.affine, case.slice_index))


def _check_label_maps(case: Case, spec: CohortSpec, volumes: _Volumes) -> Iterator[Problem]:
    for name, path in _label_maps(case).items():
        allowed, outside, key = _values_of(name, spec)
        try:
            array = volumes.labels(case, name, path)
        except ImageError as error:
            yield _unusable(case, name, error)
            continue
        found = _values(array)
        if found - allowed:
            unknown = ", ".join(map(str, sorted(found - allowed)[:8]))
            yield Problem(
                "refuse",
                "label values",
                case.case_id,
                f"the {name} holds values that cohort.yaml does not name",
                f"{unknown}; expected {', '.join(map(str, sorted(allowed)))}",
                f"Correct the file, or name the values in cohort.yaml ({key}).",
            )
        elif found <= outside:
            yield Problem(
                "note",
                "label values",
                case.case_id,
                f"the {name} is empty, which says that there is nothing to find",
                path.name,
                f"Where it is only unknown, leave the {name} cell empty instead.",
            )


def _label_maps(case: Case) -> dict[str, Path]:
    """Return a case's label maps by target, the reference of its structures with them."""
    reference = {} if case.reference is None else {"reference": case.reference}
    return {**case.label_maps, **reference}


def _values_of(name: str, spec: CohortSpec) -> tuple[set[int], set[int], str]:
    """Return which values a target's label map may hold, which are outside, and the key that names them."""
    target = spec.all_targets.get("structures" if name == "reference" else name)
    if isinstance(target, MaskTarget):
        key = "mask: values" if name == "mask" else f"targets: {name}: values"
        return {*target.outside, *target.values}, {*target.outside}, key
    count = len(target.names) if isinstance(target, LabelsTarget) else 0
    short = name in ("structures", "reference")
    return {*range(count + 1)}, {0}, "structures" if short else f"targets: {name}: names"


def _check_meaning(case: Case, image: Image, spec: CohortSpec) -> Iterator[Problem]:
    for one in objections(image, spec, vouched=True):
        yield Problem(one.severity, "intensity", case.case_id, one.of_cohort(), one.found, one.advice)


def _values(array: NDArray[Any]) -> set[int]:
    if array.dtype == np.uint8:
        return {int(value) for value in np.flatnonzero(np.bincount(array.ravel(), minlength=256))}
    return {int(value) for value in np.unique(array)}


def _digest(array: NDArray[Any]) -> str:
    # + 0.0: zero has two signs in floating point.
    voxels = np.ascontiguousarray(array, dtype=np.float32) + np.float32(0)
    return hashlib.blake2b(voxels.tobytes() + str(array.shape).encode(), digest_size=16).hexdigest()


def _unusable(case: Case, name: str, error: ImageError | str) -> Problem:
    return Problem("refuse", "files", case.case_id, f"the {name} can't be used", str(error).rstrip("."))
