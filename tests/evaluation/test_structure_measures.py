"""The rows of one case: what each policy gives, with and without a known truth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from threefold.evaluation.structure_measures import StructureMeasures, structure_rows

NAMES = ("found", "missed", "false alarm", "absent")
SPACING = (1.0, 0.5, 2.0)
SHAPE = (30, 20, 10)
DIAGONAL = float(np.sqrt(30**2 + 10**2 + 20**2))

truth = np.zeros(SHAPE, np.uint8)
truth[2:22, 4:8, 3:6] = 1
truth[2:22, 12:15, 3:6] = 2
predicted = np.zeros(SHAPE, np.uint8)
predicted[4:24, 4:8, 3:6] = 1
predicted[10:12, 4:8, 3:6] = 0
predicted[25:28, 1:4, 1:4] = 3


@pytest.fixture(scope="module")
def rows() -> dict[str, StructureMeasures]:
    return {row.structure: row for row in structure_rows(truth, predicted, NAMES, SPACING)}


def test_columns_are_those_of_the_table() -> None:
    fields = [field.name for field in dataclasses.fields(StructureMeasures)]
    distances = ["asd_mm", "hd95_mm", "cl_dice"]
    betti = [f"{side}_b{number}" for side in ("truth", "predicted") for number in range(3)]
    counts = ["truth_voxels", "predicted_voxels", "overlap_voxels"]
    assert fields == ["structure", *counts, *distances, *betti, "asd_px", "hd95_px"]


def test_distances_without_a_stated_spacing_are_in_pixels() -> None:
    in_pixels = structure_rows(truth, predicted, NAMES, None)
    in_mm = structure_rows(truth, predicted, NAMES, (1.0, 1.0, 1.0))
    assert [(row.asd_px, row.hd95_px) for row in in_pixels] == [(row.asd_mm, row.hd95_mm) for row in in_mm]
    assert {(row.asd_mm, row.hd95_mm) for row in in_pixels} == {(None, None)}
    assert {(row.asd_px, row.hd95_px) for row in in_mm} == {(None, None)}


def test_a_row_a_structure_in_order_and_the_union_last(rows: dict[str, StructureMeasures]) -> None:
    assert list(rows) == [*NAMES, "union"]


def test_a_found_structure(rows: dict[str, StructureMeasures]) -> None:
    row = rows["found"]
    assert (row.truth_voxels, row.predicted_voxels, row.overlap_voxels) == (240, 216, 192)
    assert row.hd95_mm == 2.0
    assert row.asd_mm is not None
    assert 0.2 < row.asd_mm < 1
    assert row.cl_dice is not None
    assert 0.8 < row.cl_dice < 1
    assert (row.truth_b0, row.predicted_b0, row.predicted_b1, row.predicted_b2) == (1, 2, 0, 0)


def test_a_missed_structure_is_at_the_diagonal(rows: dict[str, StructureMeasures]) -> None:
    row = rows["missed"]
    assert (row.truth_voxels, row.predicted_voxels, row.overlap_voxels) == (180, 0, 0)
    assert row.asd_mm == row.hd95_mm == pytest.approx(DIAGONAL)
    assert row.cl_dice == 0
    assert (row.truth_b0, row.predicted_b0) == (1, 0)


def test_a_false_alarm_has_no_distance(rows: dict[str, StructureMeasures]) -> None:
    row = rows["false alarm"]
    assert (row.truth_voxels, row.predicted_voxels, row.overlap_voxels) == (0, 27, 0)
    assert (row.asd_mm, row.hd95_mm, row.cl_dice) == (None, None, None)
    assert (row.truth_b0, row.predicted_b0) == (0, 1)


def test_an_absent_structure_is_outside(rows: dict[str, StructureMeasures]) -> None:
    row = rows["absent"]
    assert (row.truth_voxels, row.predicted_voxels, row.asd_mm, row.cl_dice) == (0, 0, None, None)


def test_the_union_is_of_all_structures(rows: dict[str, StructureMeasures]) -> None:
    row = rows["union"]
    assert (row.truth_voxels, row.predicted_voxels, row.overlap_voxels) == (420, 243, 192)
    assert (row.truth_b0, row.predicted_b0) == (2, 3)
    assert row.hd95_mm is not None
    assert row.hd95_mm < DIAGONAL


def test_without_a_truth_only_the_prediction_is_counted() -> None:
    for row in structure_rows(None, predicted, NAMES, SPACING):
        known = dataclasses.asdict(row)
        unknown = [name for name, value in known.items() if value is None]
        assert unknown == [n for n in known if n.startswith(("truth", "overlap", "asd", "hd95", "cl_"))]
    assert [row.predicted_b0 for row in structure_rows(None, predicted, NAMES, SPACING)] == [2, 0, 1, 0, 3]


def test_a_region_is_the_truth_of_the_union_where_no_structures_are_known() -> None:
    *structures, union = structure_rows(None, predicted, NAMES, SPACING, region=truth > 0)
    assert all(row.truth_voxels is None for row in structures)
    assert union == structure_rows(truth, predicted, NAMES, SPACING)[-1]
    assert structure_rows(truth, predicted, NAMES, SPACING, region=predicted > 0)[-1] == union


def test_a_slice_has_rows_too() -> None:
    found, *_, union = structure_rows(truth[:, :, 4], predicted[:, :, 4], NAMES, SPACING[:2])
    assert (found.truth_voxels, found.hd95_mm, found.predicted_b0) == (80, 2.0, 2)
    assert union.truth_voxels == 140


def test_label_maps_are_checked() -> None:
    with pytest.raises(ValueError, match="expected labels 0 to 2, found 0 to 3"):
        structure_rows(truth, predicted, NAMES[:2], SPACING)
    with pytest.raises(ValueError, match="one shape"):
        structure_rows(truth[1:], predicted, NAMES, SPACING)
