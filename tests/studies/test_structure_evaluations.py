"""Runs on volumes beside propagation alone: the same test cases, one command, tables and files."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from threefold.cli.app import main
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.splits import Split, write_split
from threefold.errors import CohortError, PredictionsError
from threefold.evaluation.predictions import write_predictions
from threefold.experiment import EvaluationSpec, Part
from threefold.experiments import experiment_yaml, load_experiment
from threefold.images.writing import write_nifti
from threefold.inference.label_tables import label_tables
from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_propagated, evaluate_propagated_as, evaluate_run

from ..cohorts.cases import retold

CLASSES = ("CoA", "RAA", "DAA")
PARTS: tuple[Part, ...] = ("train", "test", "test", "test")


def _call(*arguments: str | Path, code: int = 0) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == code


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Two CoA, one RAA, one DAA; the structures are the truth, one voxel beside it."""
    folder = tmp_path_factory.mktemp("propagated") / "cohort"
    update = {"patients": (2, 1, 1), "size": 40, "spacing": 1.4, "internal_sites": 2, "external_share": 0}
    spec = PRESETS["demo"].model_copy(update=update)
    make_fetal_heart_cohort(folder, spec, seed=3)
    table = pd.read_csv(folder / "cases.csv", dtype=str).sort_values("label", kind="stable")
    table["structures"] = [_shifted(folder, row["reference"], 1) for _, row in table.iterrows()]
    table.to_csv(folder / "cases.csv", index=False)
    return read_cohort(folder)


def _shifted(folder: Path, reference: str, voxels: int) -> str:
    stored = nibabel.load(folder / reference)
    labels = np.roll(np.asarray(stored.dataobj), voxels, axis=0).astype(np.uint8)
    (folder / "structures").mkdir(exist_ok=True)
    path = f"structures/{Path(reference).name}"
    write_nifti(folder / path, labels, stored.affine)
    return path


@pytest.fixture(scope="module")
def split(cohort: Cohort) -> Split:
    return Split("patient", {case.case_id: part for case, part in zip(cohort.cases, PARTS, strict=True)})


@pytest.fixture(scope="module")
def run(cohort: Cohort, split: Split, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run whose predictions are the truth; its classifier takes every case for RAA."""
    run = RunFolder(tmp_path_factory.mktemp("runs") / "joint")
    run.path.mkdir()
    experiment = load_experiment("aortic-arch/demo-joint", ["evaluation.replicates=50"])
    run.experiment.write_text(experiment_yaml(experiment))
    meaning = cohort.spec.model_dump(mode="json")
    described = {"name": "x", "fingerprint": "0", "folder": str(run.path / "gone"), "spec": meaning}
    run.cohort.write_text(json.dumps(described))
    run.write_status(state="finished", threshold=None)
    write_split(run.split, split)
    right = tuple(retold(case, structures=case.reference) for case in cohort.cases)
    tables = label_tables(replace(cohort, cases=right), split)
    cases = tables.cases.assign(probability_CoA=0.1, probability_RAA=0.8, probability_DAA=0.1)
    cases["agrees"] = np.where(cases["topology_class"] == "RAA", "yes", "no")
    write_predictions(cases, run.predictions)
    write_predictions(tables.structures, run.structures)
    return run


def test_propagation_is_judged_on_the_runs_test_cases(run: RunFolder, cohort: Cohort, tmp_path: Path) -> None:
    alone = evaluate_propagated_as(run, cohort, tmp_path).evaluation
    joint = evaluate_run(run).evaluation
    assert alone.test_cases == joint.test_cases == {case.case_id for case in cohort.cases[1:]}
    assert alone.spec == joint.spec
    for structure in ("", "union", "AO"):
        propagated = alone.find("structure_dice", class_name=structure)
        perfect = joint.find("structure_dice", class_name=structure)
        assert propagated is not None
        assert perfect is not None
        assert 0.1 < propagated.value < perfect.value == 1
        assert propagated.n == perfect.n == 3
    distance = alone.find("hd95_mm", class_name="union")
    assert distance is not None
    assert distance.value == pytest.approx(1.4)
    assert alone.find("auc") is None
    assert (tmp_path / "propagation" / "structures.csv").is_file()


def test_without_a_run_all_cases_are_tested(cohort: Cohort, tmp_path: Path) -> None:
    report = evaluate_propagated(cohort, None, tmp_path, EvaluationSpec(replicates=20))
    assert len(report.evaluation.test_cases) == 4
    other = Split("patient", {"another": "test"})
    with pytest.raises(CohortError, match="not in the split"):
        evaluate_propagated(cohort, other, tmp_path, EvaluationSpec(replicates=20))


def test_one_command_compares_and_writes(
    run: RunFolder, cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "comparison"
    _call("evaluate", run.path, "--propagated", cohort.folder, "--out", out)
    printed = capsys.readouterr().out
    for title in ("by diagnosis", "by structure: Dice", "by class: structures and topology"):
        assert f"Variants {title}" in printed
    assert f"Comparison: {out / 'tables' / 'comparison.md'}" in printed
    numbers = pd.read_csv(out / "tables" / "comparison.csv")
    assert numbers["variant"].unique().tolist() == ["propagation", "joint"]
    assert "DAA: Arch as classified" in (out / "tables" / "comparison.md").read_text()
    listed = (run.tables / "disagreements.md").read_text()
    assert [case.case_id in listed for case in cohort.cases[1:]] == [
        CLASSES[case.label or 0] != "RAA" for case in cohort.cases[1:]
    ]
    _call("evaluate", "--propagated", cohort.folder, "--out", out, "--json")
    assert list(json.loads(capsys.readouterr().out)) == ["propagation"]


def test_structures_of_another_run_are_refused(run: RunFolder, tmp_path: Path) -> None:
    mixed = RunFolder(tmp_path / "mixed")
    mixed.path.mkdir()
    for name in ("experiment", "cohort", "split", "status", "predictions"):
        path: Path = getattr(run, name)
        (mixed.path / path.name).write_bytes(path.read_bytes())
    other = pd.read_csv(run.structures)
    write_predictions(other.assign(case_id="other-" + other["case_id"]), mixed.structures)
    with pytest.raises(
        PredictionsError, match=r"structures\.csv: case 'other-.* is not in the table of pred"
    ):
        evaluate_run(mixed)
