"""Decision and mask that contradict each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from threefold.images.facts import Facts
from threefold.images.geometry import Image
from threefold.images.writing import write_nifti
from threefold.inference.agreement import contradiction
from threefold.inference.predictor import Predictor

from .conftest import AFFINE, Threshold, make_slice, make_spec, make_trained_on

SPEC = make_spec()
SEEN = make_trained_on(SPEC, mask_follows_label=True)
VOLUME = Image(
    np.zeros((10, 10, 10)), np.diag([1.0, 2.0, 5.0, 1.0]), Path("x"), (), Facts(spacing_stated=True)
)


def mask(count: int) -> np.ndarray:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels.ravel()[:count] = 1
    return labels


@pytest.mark.parametrize(
    ("decision", "count", "said"),
    [
        ("yes", 300, None),
        ("no", 0, None),
        ("yes", 0, "decided for 'yes', but the mask of 'hematoma' is empty"),
        ("no", 300, "decided for 'no', but the mask of 'hematoma' has 300 voxels (3 mL)"),
    ],
)
def test_each_of_the_four_outcomes(decision: str, count: int, said: str | None) -> None:
    found = contradiction(decision, mask(count), VOLUME, SPEC, SEEN)
    assert found == (None if said is None else f"contradiction: {said}")
    for follows in (False, None):
        seen = SEEN.model_copy(update={"mask_follows_label": follows})
        assert contradiction(decision, mask(count), VOLUME, SPEC, seen) is None
    assert contradiction(decision, mask(count), VOLUME, SPEC, None) is None
    assert contradiction(None, mask(count), VOLUME, SPEC, SEEN) is None
    assert contradiction(decision, None, VOLUME, SPEC, SEEN) is None


def test_without_a_stated_spacing_voxels_alone_are_counted() -> None:
    bare = replace(VOLUME, facts=Facts())
    found = contradiction("no", mask(7), bare, SPEC, SEEN)
    assert found is not None
    assert found.endswith("has 7 voxels")


def test_it_is_in_the_row_and_the_notes(run: Path, known: Threshold, tmp_path: Path) -> None:
    """The bright share of the image is far below the threshold, yet the rectangle is segmented."""
    predictor = replace(Predictor.from_run(run), network=known, threshold=0.9, seen=SEEN)
    write_nifti(tmp_path / "x.nii", make_slice(1), AFFINE)
    (found,) = predictor.predict(tmp_path / "x.nii", tmp_path / "out")
    assert found.decision == "no"
    assert found.mask is not None
    said = f"contradiction: decided for 'no', but the mask of 'hematoma' has {int(found.mask.sum())} pixels"
    assert found.notes == (said,)
    assert said in (tmp_path / "out" / "predictions.csv").read_text()
