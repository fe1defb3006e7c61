"""Structures of predicted volumes: what they are held against, what is measured, and what the arch says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from threefold.cohorts.cohort import Case, Cohort, CohortSpec, write_cohort
from threefold.cohorts.failures import Failures
from threefold.cohorts.splits import Split
from threefold.core.outputs import Outputs
from threefold.errors import CohortError, ImageError
from threefold.evaluation.predictions import validate
from threefold.evaluation.structure_measures import structure_rows, union_row
from threefold.evaluation.structures import NUMBERS, validate_structures, with_structures
from threefold.experiment import Experiment
from threefold.images.writing import write_nifti
from threefold.inference.cases import predict_cases
from threefold.inference.label_tables import label_tables
from threefold.phantoms.fetal_protocol import STRUCTURES

from ..evaluation.test_arch import LEFT, RIGHT, heart

MM = 0.8
STEP = 9  # grey values between two labels' brightness
AXES, FLIPPED = (2, 0, 1), 1  # of the files: another order, and one axis turned round
CLASSES = ("CoA", "RAA", "DAA")
NAMES = (*STRUCTURES, "union")

Labels = NDArray[np.uint8]


class Decoder(nn.Module):
    """Finds the label that a voxel's brightness stands for; takes every case for RAA."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, image: Tensor) -> Outputs:
        brightness = image * 100 / STEP
        scores = [-50 * (brightness - label).abs() for label in range(len(STRUCTURES) + 1)]
        if self.labels == 1:
            scores = [scores[0], torch.stack(scores[1:]).amax(dim=0)]
        classes = torch.tensor([[0.0, 1.0, 0.5]]).expand(len(image), 3)
        return Outputs({"classification": classes, "segmentation": torch.cat(scores, dim=1)})


def experiment_of(target: str = "structures", *, frozen: bool = False) -> Experiment:
    network: dict[str, object] = {
        "kind": "cascade",
        "segmenter": {"channels": [2, 4]},
        "classifier": {"blocks": [1], "growth": 2, "stem": 2},
        "freeze_segmenter": frozen,
    }
    if target == "mask":
        network = {"kind": "attention-unet", "channels": [2, 4]}
    tasks: dict[str, object] = {"segmentation": {"target": target}}
    if target == "structures":
        tasks["classification"] = {}
    if frozen:
        tasks = {"classification": {}}
    preprocessing = {"size": [64, 64, 64]}
    fields = {"name": "x", "data": {"preprocessing": preprocessing}, "network": network, "tasks": tasks}
    return Experiment.model_validate(fields | ({"pretrain": "aortic-arch/seg-lp"} if frozen else {}))


def stored(volume: Labels) -> Labels:
    """Return a RAS+ volume as the files hold it."""
    return np.ascontiguousarray(np.flip(volume.transpose(AXES), FLIPPED))


def whole(*sides: tuple[int, int, int]) -> Labels:
    volume = np.zeros((64, 64, 64), np.uint8)
    volume[..., :56] = heart(*sides)
    return volume


IMAGES = {"c0": whole(LEFT), "c1": whole(RIGHT), "c2": whole(LEFT, RIGHT), "c3": whole(LEFT, RIGHT)}
PROPAGATED = {"c0": np.roll(IMAGES["c0"], 2, 0), "c1": np.roll(IMAGES["c1"], 1, 1)}
MASK = whole(RIGHT) > 0


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """c0 has a reference and wrong structures, c1 structures, c2 a mask, c3 nothing."""
    folder = tmp_path_factory.mktemp("arches")
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, patient in enumerate(AXES):
        affine[patient, axis] = -MM if axis == FLIPPED else MM
    affine[AXES[FLIPPED], 3] = 63 * MM
    rows = []
    for name, volume in IMAGES.items():
        write_nifti(folder / f"{name}.nii.gz", stored(volume).astype(np.int16) * STEP, affine)
        rows.append({"case_id": name, "patient_id": name, "site": "a", "image": f"{name}.nii.gz"})
        rows[-1]["planted"] = "single"  # a column of the cohort's own is kept beside the prediction's
    for row, label in zip(rows, CLASSES, strict=False):
        row["label"] = label
    targets = {("c0", "reference"): IMAGES["c0"], ("c2", "mask"): MASK.astype(np.uint8)}
    targets |= {(name, "structures"): labels for name, labels in PROPAGATED.items()}
    for (name, column), labels in targets.items():
        write_nifti(folder / f"{name}-{column}.nii.gz", stored(labels), affine)
        rows[int(name[1])][column] = f"{name}-{column}.nii.gz"
    spec = CohortSpec.model_validate(
        {
            "name": "arches",
            "modality": "mri",
            "dimensions": 3,
            "classes": list(CLASSES),
            "structures": list(STRUCTURES),
            "mask": {"name": "vessels"},
            "intensity": {"window": [0, 100]},
            "columns": {"planted": "the arch that was drawn"},
        }
    )
    return write_cohort(folder, spec, rows)


def without_structures(case: Case) -> Case:
    return replace(case, targets={name: one for name, one in case.targets.items() if name != "structures"})


def rows_of(case: str, structures: pd.DataFrame) -> pd.DataFrame:
    return structures[structures["case_id"] == case].set_index("structure")


def assert_rows(found: pd.DataFrame, expected: list[object]) -> None:
    """Hold rows of the table against measures of the volumes in RAS+."""
    assert list(found.index) == [row.structure for row in expected]  # type: ignore[attr-defined]
    for row in expected:
        for name in NUMBERS:
            value = getattr(row, name)
            measured = found.loc[row.structure, name]  # type: ignore[attr-defined]
            assert pd.isna(measured) if value is None else measured == pytest.approx(value), name


@pytest.fixture(scope="module")
def tables(cohort: Cohort) -> tuple[pd.DataFrame, pd.DataFrame]:
    found = predict_cases(Decoder(len(STRUCTURES)), experiment_of(), cohort, None)
    return found.cases, found.structures


def test_structures_are_held_against_the_best_truth_there_is(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    cases, structures = tables
    assert structures.groupby("case_id", sort=False)["truth_source"].unique().map(list).to_dict() == {
        "c0": ["reference"],
        "c1": ["structures"],
        "c2": ["mask"],
        "c3": [""],
    }
    spacing = (MM,) * 3
    truths = {"c0": IMAGES["c0"], "c1": PROPAGATED["c1"], "c2": None, "c3": None}
    for name, truth in truths.items():
        region = MASK if name == "c2" else None
        expected = structure_rows(truth, IMAGES[name], STRUCTURES, spacing, region=region)
        assert_rows(rows_of(name, structures), [*expected])
    joined = with_structures(validate(cases), validate_structures(structures))
    assert joined.notes[0].startswith("1 of 3 test cases have no reference")


def test_the_region_is_where_any_structure_is(tables: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    cases = tables[0].set_index("case_id")
    for name, known in (("c0", IMAGES["c0"] > 0), ("c1", PROPAGATED["c1"] > 0), ("c2", MASK)):
        found = IMAGES[name] > 0
        row = cases.loc[name, [f"mask_{what}_voxels" for what in ("truth", "predicted", "overlap")]]
        assert row.tolist() == [known.sum(), found.sum(), (known & found).sum()]
    assert cases.loc["c3", "mask_predicted_voxels"] == (IMAGES["c3"] > 0).sum()
    assert pd.isna(cases.loc["c3", "mask_truth_voxels"])


def test_what_the_arch_says_and_whether_the_classifier_agrees(
    tables: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    cases = tables[0].set_index("case_id")
    assert cases["arch"].tolist() == ["single-left", "single-right", "double", "double"]
    assert cases["topology_class"].tolist() == ["CoA", "RAA", "DAA", "DAA"]
    assert cases["agrees"].tolist() == ["no", "yes", "no", "no"]
    assert cases.loc["c0", "graph_edits"] == 0
    assert cases["graph_edits"].isna().tolist() == [False, False, True, True]


def test_a_frozen_segmenter_is_measured_too(
    cohort: Cohort, tables: tuple[pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    found = predict_cases(
        Decoder(len(STRUCTURES)), experiment_of(frozen=True), cohort, None, masks=tmp_path / "masks"
    )
    pd.testing.assert_frame_equal(found.structures, tables[1])
    pd.testing.assert_frame_equal(found.cases, tables[0])
    written = np.asarray(nibabel.load(tmp_path / "masks" / "c1.nii.gz").dataobj)
    np.testing.assert_array_equal(written, stored(IMAGES["c1"]))


def test_a_mask_has_the_union_alone_against_the_reference_or_the_mask(cohort: Cohort) -> None:
    found = predict_cases(Decoder(1), experiment_of("mask"), cohort, None)
    structures = found.structures
    assert structures["structure"].tolist() == ["union"] * 4
    # Propagated structures are no truth of a mask.
    assert structures["truth_source"].tolist() == ["reference", "", "mask", ""]
    truths = {"c0": IMAGES["c0"] > 0, "c1": None, "c2": MASK, "c3": None}
    for name, truth in truths.items():
        expected = union_row(truth, IMAGES[name] > 0, (MM,) * 3)
        assert_rows(rows_of(name, structures), [expected])
    assert found.cases["mask_truth_voxels"].isna().tolist() == [True, True, False, True]
    # The cohort's own column is kept, and nothing is said of an arch.
    assert not {"agrees", "topology_class", "graph_edits"} & {*found.cases.columns}
    assert set(found.cases["planted"]) == {"single"}
    assert "arch" not in found.cases


def test_other_structures_and_classes_say_nothing_of_an_arch(cohort: Cohort) -> None:
    spec = cohort.spec.model_copy(update={"structures": tuple("abcdefghijk")})
    found = predict_cases(Decoder(len(STRUCTURES)), experiment_of(), replace(cohort, spec=spec), None)
    assert not {"agrees", "topology_class"} & {*found.cases.columns}
    assert found.cases["graph_edits"].iloc[0] == 0
    classes = cohort.spec.model_copy(update={"classes": ("p", "q", "RAA")})
    labelled = replace(cohort, spec=classes)
    found = predict_cases(Decoder(len(STRUCTURES)), experiment_of(), labelled, None)
    assert found.cases["topology_class"].tolist() == ["", "RAA", "", ""]
    assert found.cases["agrees"].tolist() == ["", "no", "", ""]


def test_a_truth_that_cannot_be_read_names_its_case(cohort: Cohort, tmp_path: Path) -> None:
    broken = replace(cohort.cases[0], reference=tmp_path / "gone.nii.gz")
    with pytest.raises(ImageError, match=r"case c0: .*gone\.nii\.gz"):
        predict_cases(Decoder(len(STRUCTURES)), experiment_of(), replace(cohort, cases=(broken,)), None)


# Propagation alone


def test_propagated_structures_are_a_prediction_without_network(cohort: Cohort) -> None:
    progress: list[tuple[int, int]] = []
    tables = label_tables(cohort, None, progress=lambda *done: progress.append(done))
    assert progress == [(1, 1)]  # the one case with a reference
    expected = structure_rows(IMAGES["c0"], PROPAGATED["c0"], STRUCTURES, (MM,) * 3)
    assert_rows(rows_of("c0", tables.structures), [*expected])
    row = tables.cases.iloc[0]
    assert (row["case_id"], row["part"], row["label"], row["arch"]) == ("c0", "test", "CoA", "single-left")
    assert row["mask_overlap_voxels"] == ((IMAGES["c0"] > 0) & (PROPAGATED["c0"] > 0)).sum()


def test_a_registration_that_failed_misses_everything(cohort: Cohort) -> None:
    second = replace(cohort.cases[1], reference=cohort.cases[1].structures)
    failed = without_structures(cohort.cases[0])
    tables = label_tables(replace(cohort, cases=(failed, second)), None)
    rows = rows_of("c0", tables.structures)
    assert (rows["predicted_voxels"] == 0).all()
    there = rows["truth_voxels"] > 0
    assert there.sum() > 5
    np.testing.assert_allclose(rows.loc[there, "hd95_mm"], 64 * MM * np.sqrt(3))
    assert tables.cases["arch"].tolist() == ["undetermined", "single-right"]


def test_a_case_that_cannot_be_read_is_left_out_of_propagation_alone(cohort: Cohort, tmp_path: Path) -> None:
    second = replace(cohort.cases[1], reference=cohort.cases[1].structures)
    broken = replace(cohort.cases[0], reference=tmp_path / "gone.nii.gz")
    failed: Failures = {}
    tables = label_tables(replace(cohort, cases=(broken, second)), None, failed=failed)
    assert tables.cases["case_id"].tolist() == ["c1"]
    assert "gone.nii.gz" in failed["c0"]
    with pytest.raises(ImageError, match=r"none of its cases can be used.*\n.*gone"):
        label_tables(replace(cohort, cases=(broken,)), None, failed={})


def test_propagation_that_cannot_be_judged_is_refused(cohort: Cohort) -> None:
    split = Split("column", {"c0": "train", "c1": "test", "c2": "test", "c3": "validation"})
    with pytest.raises(CohortError, match="no test case has a reference"):
        label_tables(cohort, split)
    bare = replace(cohort, cases=(without_structures(cohort.cases[0]),))
    with pytest.raises(CohortError, match="no test case has structures"):
        label_tables(bare, None)
    with pytest.raises(CohortError, match="not in the split"):
        label_tables(cohort, Split("column", {"c0": "test"}))
