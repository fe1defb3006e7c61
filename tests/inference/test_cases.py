"""The table of predictions of a cohort."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.failures import Failures
from threefold.cohorts.splits import Split
from threefold.errors import CohortError, ImageError
from threefold.evaluation.predictions import read_predictions, validate, write_predictions
from threefold.experiment import Part
from threefold.images.geometry import Image
from threefold.images.preprocessing import place
from threefold.inference import cases
from threefold.inference.cases import predict_cases
from threefold.inference.engine import restore_labels

from .conftest import AFFINE, Threshold, make_experiment, make_spec

EXPERIMENT = make_experiment()
PARTS: tuple[Part, ...] = ("train", "train", "validation", "validation", "test", "test")
SPLIT = Split("column", {f"case{k}": part for k, part in enumerate(PARTS)})


def test_columns_are_those_that_evaluation_reads(
    known: Threshold, make_cohort: Callable[..., Cohort], tmp_path: Path
) -> None:
    table = predict_cases(known, EXPERIMENT, make_cohort(), SPLIT, batch_size=4).cases
    write_predictions(table, tmp_path / "predictions.csv")
    read = read_predictions(tmp_path / "predictions.csv", classes=("no", "yes"), positive="yes").table
    assert read["case_id"].tolist() == [f"case{k}" for k in range(6)]
    assert read["part"].tolist() == [*PARTS]
    assert read["site_group"].tolist() == ["internal"] * 4 + ["external"] * 2
    assert read["label"].tolist() == ["no", "yes", "", "yes", "no", "yes"]
    assert read["shortcut"].astype(float).tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    np.testing.assert_allclose(read["probability_no"] + read["probability_yes"], 1)
    # reconstruction is the image + 0.1 everywhere
    np.testing.assert_allclose(read["psnr"], 20, atol=1e-4)
    assert ((read["ssim"] > 0) & (read["ssim"] < 1)).all()
    assert not validate(table).leaks


def test_ids_whose_masks_would_be_one_file_are_refused(
    known: Threshold, make_cohort: Callable[..., Cohort], tmp_path: Path
) -> None:
    cohort = make_cohort()
    first, second, *rest = cohort.cases
    alike = replace(cohort, cases=(first, replace(second, case_id=first.case_id.upper()), *rest))
    with pytest.raises(CohortError, match=r"ids differ in case alone.*case0/CASE0"):
        predict_cases(known, EXPERIMENT, alike, None, masks=tmp_path / "masks")
    assert not (tmp_path / "masks").exists()
    assert len(predict_cases(known, EXPERIMENT, alike, None).cases) == 6


@pytest.mark.parametrize("where", ["read_truth", "mask_columns", "prepare"])
def test_memory_that_runs_out_at_one_case_ends_no_other(
    known: Threshold, make_cohort: Callable[..., Cohort], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real, seen = getattr(cases, where), []

    def hungry(*given: Any, **more: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:
            raise MemoryError("Unable to allocate 9 TiB")
        return real(*given, **more)

    monkeypatch.setattr(cases, where, hungry)
    failed: Failures = {}
    found = predict_cases(known, EXPERIMENT, make_cohort(), None, failed=failed).cases
    assert failed == {"case1": "not enough memory (Unable to allocate 9 TiB)"}
    assert found["case_id"].tolist() == ["case0", "case2", "case3", "case4", "case5"]


def test_voxels_are_counted_on_the_images_own_grid(
    known: Threshold, make_cohort: Callable[..., Cohort], tmp_path: Path
) -> None:
    cohort = make_cohort()
    tables = predict_cases(known, EXPERIMENT, cohort, None, masks=tmp_path / "masks")
    table = tables.cases.set_index("case_id")
    # A mask has the union alone.
    assert tables.structures["structure"].tolist() == ["union"] * 6
    assert tables.structures["predicted_voxels"].tolist() == table["mask_predicted_voxels"].tolist()
    assert set(table["part"]) == {"test"}
    for k in range(6):
        row = table.loc[f"case{k}"]
        predicted = np.asarray(nibabel.load(tmp_path / "masks" / f"case{k}.nii.gz").dataobj) > 0
        image = nibabel.load(cohort.folder / f"{k}.nii.gz")
        assert predicted.shape == image.shape
        assert row["mask_predicted_voxels"] == predicted.sum()
        if k % 2:
            truth = np.asarray(nibabel.load(cohort.folder / f"{k}_mask.nii.gz").dataobj) > 0
            assert row["mask_truth_voxels"] == truth.sum()
            assert row["mask_overlap_voxels"] == (truth & predicted).sum()
            assert truth.sum() < predicted.sum()
        else:
            assert math.isnan(row["mask_truth_voxels"])
            assert math.isnan(row["mask_overlap_voxels"])


def test_only_the_parts_asked_for(known: Threshold, make_cohort: Callable[..., Cohort]) -> None:
    progress: list[tuple[int, int]] = []
    table = predict_cases(
        known,
        EXPERIMENT,
        make_cohort(),
        SPLIT,
        parts=("validation", "test"),
        progress=lambda done, total: progress.append((done, total)),
    ).cases
    assert table["case_id"].tolist() == ["case2", "case3", "case4", "case5"]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not known.training


def test_another_cohort_is_seen_with_the_eyes_of_training(
    known: Threshold, make_cohort: Callable[..., Cohort]
) -> None:
    own = make_cohort("own")
    # Another order of the classes and another window: the network's stay as they were.
    other = make_cohort("other", classes=["yes", "no"], intensity={"unit": "HU", "window": [-1000, 1000]})
    expected = predict_cases(known, EXPERIMENT, own, None).cases
    table = predict_cases(known, EXPERIMENT, other, None, trained=own.spec).cases
    for column in ("probability_yes", "probability_no", "label", "mask_overlap_voxels"):
        assert table[column].equals(expected[column])


def test_heads_that_are_not_there_leave_no_column(make_cohort: Callable[..., Cohort]) -> None:
    from threefold.core.outputs import Outputs

    class OnlyClasses(Threshold):
        def forward(self, image: Any) -> Outputs:
            heads = super().forward(image).heads
            return Outputs({"classification": heads["classification"]})

    table = predict_cases(OnlyClasses(), make_experiment(classification={}), make_cohort(), None).cases
    assert "probability_yes" in table
    assert not {"mask_predicted_voxels", "psnr", "ssim"} & {*table.columns}


def test_errors_name_the_case(known: Threshold, make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    path = cohort.folder / "3_mask.nii.gz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match=r"case case3: .*3_mask\.nii\.gz"):
        predict_cases(known, EXPERIMENT, cohort, None)
    (cohort.folder / "2.nii.gz").unlink()
    with pytest.raises(ImageError, match=r"case case2: .*2\.nii\.gz"):
        predict_cases(known, EXPERIMENT, cohort, None)
    volume = replace(
        cohort, cases=(replace(cohort.cases[0], image=cohort.folder / "volume.nii.gz"),), spec=make_spec()
    )
    from threefold.images.writing import write_nifti

    write_nifti(cohort.folder / "volume.nii.gz", np.zeros((8, 8, 3), np.int16), AFFINE)
    with pytest.raises(ImageError, match="Name the slice"):
        predict_cases(known, EXPERIMENT, volume, None)


def test_labels_are_decided_on_the_images_grid() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((4, 56, 56), np.float32)
    scores /= scores.sum(0)
    image = Image(np.zeros((56, 56), np.int16), np.diag([-1.0, -1.0, 1.0, 1.0])[[1, 0, 2, 3]], Path("x"))
    placement = place(image, (56, 56))  # the same grid: the labels are the largest score
    assert (restore_labels(scores, placement) == scores.argmax(0)).all()
    tie = np.full((3, 56, 56), 1 / 3, np.float32)
    assert not restore_labels(tie, placement).any()
    bigger = place(Image(np.zeros((112, 112), np.int16), image.affine, Path("x")), (56, 56))
    half = np.zeros((2, 56, 56), np.float32)
    half[1, :28] = 1
    half[0] = 1 - half[1]
    assert restore_labels(half, bigger).sum() == 56 * 112
