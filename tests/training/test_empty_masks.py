"""A cohort of normal and abnormal cases, the masks of the normal ones empty: trained, evaluated, reported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from threefold.cli.app import main
from threefold.cohorts.cohort import Case, write_cohort
from threefold.cohorts.staging import row_of
from threefold.inference import cases
from threefold.inference.engine import Prepared, Result
from threefold.training.run import finish_early, train

from .conftest import SIDE, build_experiment, write_cases

NORMAL = "no"


def _row(case: Case, folder: Path) -> dict[str, Any]:
    """Return a case as a row whose mask is empty where its patient is normal."""
    normal = int(case.case_id[1:3]) % 2 == 0
    name = f"{case.case_id}-mask.png"
    if normal:
        Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(folder / name)
    return {"image": case.image.name, "mask": name, "label": NORMAL if normal else "yes"}


def test_empty_masks_train_are_evaluated_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = write_cases(tmp_path / "cohort")
    rows = [row_of(case, drawn.spec) | _row(case, drawn.folder) for case in drawn.cases]
    cohort = write_cohort(drawn.folder, drawn.spec, rows)
    normal = {row["case_id"] for row in rows if row["label"] == NORMAL}
    failing = next(row["case_id"] for row in rows if row["split"] == "test" and row["label"] == "yes")
    run_network, measure = cases.run_network, cases.measure_structures

    def finds_nothing_in_normal_ones(*given: Any, **settings: Any) -> Iterator[tuple[Prepared, Result]]:
        for one, result in run_network(*given, **settings):
            if one.case_id in normal:
                nothing = {head: np.zeros_like(labels) for head, labels in result.labels.items()}
                result = replace(result, labels=nothing)
            yield one, result

    def fails_once(case_id: str, *given: Any, **settings: Any) -> list[dict[str, Any]]:
        if case_id == failing:
            raise ZeroDivisionError("no such distance")
        return measure(case_id, *given, **settings)

    monkeypatch.setattr(cases, "run_network", finds_nothing_in_normal_ones)
    monkeypatch.setattr(cases, "measure_structures", fails_once)
    run = train(build_experiment(epochs=1), cohort, tmp_path / "run")

    assert run.read_status()["state"] == "finished"
    predictions = pd.read_csv(run.predictions, keep_default_na=False).set_index("case_id")
    tested = predictions[predictions["part"] == "test"]
    assert {*tested.loc[tested.index.isin(normal), "mask_truth_voxels"].astype(float)} == {0.0}
    assert tested["not_measured"][failing] == "structures: no such distance"
    assert (tested["not_measured"].drop(failing) == "").all()
    structures = pd.read_csv(run.structures).set_index("case_id")
    assert failing not in structures.index
    assert (
        structures.loc[structures.index.isin(normal), ["asd_mm", "hd95_mm", "cl_dice"]].isna().all(axis=None)
    )

    for verb in ("evaluate", "report"):
        monkeypatch.setattr(sys, "argv", ["threefold", verb, str(run.path)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"1 cases could not be measured whole (first {failing}: structures: no such distance)" in said
    assert (run.path / "report.html").is_file()

    # What was not measured is measured when the run is finished again.
    monkeypatch.setattr(cases, "measure_structures", measure)
    finish_early(run.path, cohort)
    assert "not_measured" not in run.predictions.read_text()
    assert failing in run.structures.read_text()
