"""One image that was changed is found; two images are not taken for one."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage

from threefold.audits.near_duplicates import (
    CERTAIN,
    check_near_duplicates,
    find_near_duplicates,
    signature,
)
from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.splits import Split

Array = np.ndarray[Any, Any]


def brain(seed: int, side: int = 128) -> Array:
    """A skull with ventricles, sulci and noise; each seed is another patient."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    a, b, turn = generator.uniform(0.6, 0.8), generator.uniform(0.7, 0.9), generator.uniform(-0.3, 0.3)
    y, x = rows * np.cos(turn) - columns * np.sin(turn), rows * np.sin(turn) + columns * np.cos(turn)
    radius = np.hypot(x / a, y / b)
    texture = ndimage.gaussian_filter(generator.normal(size=(side, side)), side / 10)
    image = np.where(radius < 0.92, 90 + 60 * texture / texture.std() * 0.5, np.where(radius < 1, 230, 5))
    for _ in range(3):
        at = generator.uniform(-0.4, 0.4, 2)
        image[np.hypot(x - at[0], y - at[1]) < generator.uniform(0.05, 0.15)] = generator.uniform(30, 180)
    return np.clip(image + generator.normal(0, 2, image.shape), 0, 255).astype(np.uint8)


def jpeg(image: Array) -> Array:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "JPEG", quality=30)
    return np.asarray(PIL.Image.open(buffer))


def flipped_bits(image: Array) -> Array:
    changed = image.copy()
    places = np.random.default_rng(0).integers(0, image.size, 20)
    changed.ravel()[places] ^= 1 << 6
    return changed


CHANGES = {
    "saved again": jpeg,
    "flipped bits": flipped_bits,
    "rescaled": lambda image: np.clip(ndimage.zoom(image.astype(float), 0.7, order=1), 0, 255),
    "larger": lambda image: np.clip(ndimage.zoom(image.astype(float), 1.5, order=1), 0, 255),
    "shifted": lambda image: np.roll(image, (3, -4), (0, 1)),
    "window": lambda image: np.clip((image.astype(float) - 30) * 1.3, 0, 255),
    "darker": lambda image: image.astype(float) * 0.5,
    "noise": lambda image: image + np.random.default_rng(1).normal(0, 6, image.shape),
}


def cohort_of(images: list[Array], patients: list[str] | None = None) -> tuple[Cohort, dict[str, Any]]:
    names = [f"c{n}" for n in range(len(images))]
    cases = tuple(
        Case(name, (patients or names)[n], "a", Path(f"{name}.png")) for n, name in enumerate(names)
    )
    spec = CohortSpec(name="c", modality="ct", dimensions=2)
    found = {name: signature(image) for name, image in zip(names, images, strict=True)}
    return Cohort(Path("c"), spec, cases), {name: one for name, one in found.items() if one is not None}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_changed_copy_is_found_among_others(change: str) -> None:
    images = [brain(seed) for seed in range(12)]
    cohort, signatures = cohort_of([*images, CHANGES[change](images[3])])
    (group,) = find_near_duplicates(cohort, signatures, None)
    assert [case.case_id for case in group.cases] == ["c3", "c12"]


def test_different_images_are_no_duplicates() -> None:
    cohort, signatures = cohort_of([brain(seed) for seed in range(60)])
    assert find_near_duplicates(cohort, signatures, None) == ()


def test_neighbouring_slices_of_one_patient_are_no_finding_but_parts_are() -> None:
    images = [brain(0), jpeg(brain(0)), brain(1), brain(2)]
    cohort, signatures = cohort_of(images, ["p", "p", "q", "r"])
    assert find_near_duplicates(cohort, signatures, None) == ()
    split = Split("column", {"c0": "train", "c1": "test", "c2": "train", "c3": "test"}, ())
    (group,) = found = find_near_duplicates(cohort, signatures, split)
    (finding,) = check_near_duplicates(found, {}, split)
    assert finding.severity == ("refuse" if group.correlation >= CERTAIN else "warn")
    assert "c0 (patient p, train)" in finding.message
    (certain,) = check_near_duplicates([replace(group, correlation=0.999)], {}, split)
    (asked,) = check_near_duplicates([replace(group, correlation=0.96)], {}, split)
    assert (certain.severity, asked.severity) == ("refuse", "warn")
    assert 0.95 < group.correlation <= 1


def test_of_different_patients_it_warns_and_what_was_looked_at_is_left_alone() -> None:
    cohort, signatures = cohort_of([brain(0), jpeg(brain(0)), brain(1)])
    found = find_near_duplicates(cohort, signatures, None)
    (finding,) = check_near_duplicates(found, {}, None)
    assert (finding.severity, finding.cases) == ("warn", ("c0", "c1"))
    assert "not_duplicates: [[CASE, CASE]]" in finding.message
    assert not list(check_near_duplicates(found, {"c0": "x", "c1": "x"}, None))  # a finding of its own
    spec = cohort.spec.model_copy(update={"not_duplicates": (("c1", "c0"),)})
    assert find_near_duplicates(replace(cohort, spec=spec), signatures, None) == ()


def test_volumes_and_images_of_nothing() -> None:
    volume = np.stack([brain(seed, 48) for seed in range(12)], axis=2).astype(np.float32)
    other = np.stack([brain(seed + 20, 48) for seed in range(12)], axis=2).astype(np.float32)
    cohort, signatures = cohort_of([volume, other, volume * 3 - 100])
    (group,) = find_near_duplicates(cohort, signatures, None)
    assert [case.case_id for case in group.cases] == ["c0", "c2"]
    assert signature(np.full((64, 64), 3.0)) is None
    assert signature(np.zeros((4, 4))) is None


def test_the_hash_of_another_size_is_the_same() -> None:
    image = brain(5, 240)
    first, second = signature(image), signature(np.kron(image, np.ones((2, 2))))
    assert first is not None
    assert second is not None
    assert first.bits == second.bits
    assert np.array_equal(first.small, second.small)
