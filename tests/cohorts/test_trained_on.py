"""What a run keeps of the images that it was trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.trained_on import MEASURED, describe_training, read_trained_on
from threefold.errors import ImageError, RunError
from threefold.images.writing import write_nifti

from .cases import known, retold

SPEC = CohortSpec.model_validate(
    {
        "name": "c",
        "modality": "ct",
        "dimensions": 2,
        "classes": ["no", "yes"],
        "mask": {"name": "lesion"},
        "intensity": {"unit": "HU"},
    }
)


def make_case(folder: Path, number: int, *, label: int | None = None, mask: bool | None = None) -> Case:
    """A slice of 20 x (10 + number) pixels from -1000 to 10 * number, of 0.5 x 0.25 mm."""
    shape = (20, 10 + number)
    image = np.linspace(-1000, 10 * number, shape[0] * shape[1]).reshape(shape).astype(np.float32)
    affine = np.diag([-0.25, -0.5, 3.0, 1.0])
    write_nifti(folder / f"{number}.nii", image, affine)
    case = Case(f"{number:03d}", "p", "a", folder / f"{number}.nii", targets=known(label=label))
    if mask is None:
        return case
    write_nifti(folder / f"{number}-mask.nii", np.full(shape, int(mask), np.uint8), affine)
    return retold(case, mask=folder / f"{number}-mask.nii")


def test_ranges_are_those_of_the_images(tmp_path: Path) -> None:
    cases = [make_case(tmp_path, number) for number in range(1, 6)]
    found = describe_training(cases, SPEC)
    assert (found.cases, found.measured, found.formats) == (5, 5, {"nifti": 5})
    assert found.intensities.low == (-1000, -1000)
    assert found.intensities.high == (10, 50)
    # A file's first axis runs to the left, which is a slice's second canonical axis.
    assert found.spacing_mm == ((0.5, 0.5), (0.25, 0.25))
    assert found.size == ((11, 15), (20, 20))
    assert found.extent_mm == ((5.5, 7.5), (5, 5))
    assert (found.planes, found.tilt_degrees) == ({"axial": 5}, (0, 0))
    assert found.intensities.body50 is not None
    assert found.intensities.shown is None  # there is no window
    assert found.mask_follows_label is None
    assert describe_training(cases[::-1], SPEC) == found


def test_of_many_cases_a_bounded_number_is_read(tmp_path: Path) -> None:
    case = make_case(tmp_path, 1)
    absent = replace(case, image=tmp_path / "absent.nii")
    many = [replace(case, case_id=f"{number:05d}") for number in range(10 * MEASURED)]
    assert describe_training(many, SPEC).measured == MEASURED
    with pytest.raises(ImageError, match=r"case 00000: .*absent"):
        describe_training([replace(absent, case_id="00000"), *many[1:]], SPEC)


@pytest.mark.parametrize(
    ("cases", "follows"),
    [
        ([(1, True), (1, None), (0, None)], True),  # positives have a mask, negatives none
        ([(1, True), (0, False)], True),
        ([(1, True), (0, True)], False),  # what is segmented is in both
        ([(1, True), (1, False), (0, None)], False),
        ([(1, None), (0, None)], None),
        ([(1, True), (None, True)], None),  # no negative case
        ([(0, False), (0, None)], None),
    ],
)
def test_masks_follow_labels_where_the_cases_say_so(
    tmp_path: Path, cases: list[tuple[int | None, bool | None]], follows: bool | None
) -> None:
    made = [make_case(tmp_path, k + 1, label=label, mask=mask) for k, (label, mask) in enumerate(cases)]
    assert describe_training(made, SPEC).mask_follows_label is follows
    three = SPEC.model_copy(update={"classes": ("no", "yes", "perhaps")})
    assert describe_training(made, three).mask_follows_label is None


def test_it_comes_back_from_its_file_and_damage_is_told(tmp_path: Path) -> None:
    found = describe_training([make_case(tmp_path, 1)], SPEC)
    path = tmp_path / "trained_on.json"
    assert read_trained_on(path) is None
    path.write_text(json.dumps(found.model_dump(mode="json")))
    assert read_trained_on(path) == found
    content: dict[str, Any] = json.loads(path.read_text())
    for damaged in (
        "",
        "[]",
        "{",
        '{"cases": 1}',
        json.dumps({**content, "size": "x"}),
        "[" * 100_000,
        "\udcff",
    ):
        path.write_bytes(damaged.encode(errors="surrogateescape"))
        with pytest.raises(RunError, match=r"trained_on\.json"):
            read_trained_on(path)
