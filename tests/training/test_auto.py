"""The experiment that is chosen for a cohort: by what, with which reasons, and that it trains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import threefold as tf
from threefold.cli.app import app
from threefold.cli.auto import seconds_of
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.trained_on import describe_training
from threefold.errors import CohortError, RunError, UsageError
from threefold.experiment import AttentionUnetSpec, Experiment, SegmentationSpec
from threefold.experiments import read_experiment
from threefold.run import RunFolder
from threefold.training import auto
from threefold.training.auto import choose

TINY = ("network.channels=[2,4]", "data.preprocessing.size=[32,32]")


def ticking(step: float = 0.01) -> Callable[[], float]:
    """Return a clock by which everything that is timed takes `step` seconds."""
    ticks = count()
    return lambda: step * next(ticks)


def chosen(cohort: Cohort, *overrides: str, **options: Any) -> tuple[Experiment, dict[str, str]]:
    """Return the experiment, and the reasons by key."""
    experiment, choices = choose(cohort, overrides, **{"clock": ticking(), **options})
    return experiment, {choice.key: choice.reason for choice in choices}


def test_slices_get_a_small_unet_with_a_task_for_each_target(cohort: Cohort) -> None:
    experiment, reasons = chosen(cohort)
    assert isinstance(experiment.network, AttentionUnetSpec)
    assert experiment.network.background_prior == 0.95
    assert experiment.training.optimiser.learning_rate == 3e-3
    assert [*experiment.tasks] == ["classification", "segmentation"]
    assert experiment.tasks_of(SegmentationSpec)["segmentation"].dice_over == "batch"
    assert experiment.data.split.kind == "column"
    assert experiment.data.preprocessing.size == (32, 32)  # as the images are, not enlarged
    assert experiment.data.augmentation.flip == 0.5
    assert experiment.training.selection.metric == "tasks"
    assert experiment.training.selection.weights == "last"  # four validation patients
    assert all(reasons.values())
    for key, reason in reasons.items():
        assert f"{key}: " in experiment.description
        assert f"({reason})" in experiment.description


def test_epochs_fill_the_budget(cohort: Cohort) -> None:
    n = [sum(case.split == part for case in cohort.cases) for part in ("train", "validation", "test")]
    case = 0.01 / 4  # four cases are measured
    short, _ = chosen(cohort, *TINY, budget=5.0)
    epoch = case * (1.15 * n[0] + 0.4 * n[1])
    reading = 2 * 0.01 / 12 * sum(n)
    expected = (5.0 - case * 0.4 * (n[1] + n[2]) - reading) / epoch
    assert short.training.epochs == pytest.approx(expected, abs=2)
    assert chosen(cohort, *TINY, budget=1e6)[0].training.epochs == 500
    with pytest.raises(UsageError, match=r"--budget: an epoch of 16 training cases takes about .* Give it"):
        chosen(cohort, *TINY, budget=0.1)


def test_what_is_given_is_not_chosen(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "measure_cost", lambda *_, **__: pytest.fail("nothing was to be measured"))
    given = ("network.kind=densenet", "network.blocks=[1]", "training.epochs=2", "data.split.kind=patient")
    tasks = ("tasks.segmentation=null", "data.preprocessing.size=[32,32]")
    experiment, reasons = chosen(cohort, *given, *tasks)
    assert experiment.network.kind == "densenet"
    assert experiment.training.epochs == 2
    assert experiment.data.split.kind == "patient"
    keys = {override.partition("=")[0] for override in given} | {
        "network.channels",
        "data.preprocessing.size",
    }
    assert not keys & {*reasons}
    assert [*experiment.tasks] == ["classification"]


def test_python_has_it_too(cohort: Cohort) -> None:
    given = {"network.kind": "densenet", "network.blocks": [1], "training.epochs": 2}
    experiment = tf.auto(
        cohort, {**given, "data.preprocessing.size": [32, 32], "tasks.segmentation": None}, budget=60
    )
    assert experiment.training.epochs == 2
    assert experiment.network.kind == "densenet"
    assert "data.split.kind: column (" in experiment.description
    with pytest.raises(UsageError, match="budget"):
        tf.auto(cohort.folder, TINY, budget=0.01)


def test_the_grid_is_as_fine_as_the_budget_holds(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    look_like(monkeypatch, size=((200, 400), (200, 300)), extent_mm=((100, 200), (100, 150)))
    small = ("network.channels=[2,4]", "training.epochs=1")
    fine, _ = chosen(cohort, *small, budget=1e6)
    coarse, reasons = chosen(cohort, *small, budget=10)
    assert fine.data.preprocessing.size == (256, 192)
    assert coarse.data.preprocessing.size[0] < 256
    assert "at " in reasons["data.preprocessing.size"]
    assert fine.data.preprocessing.spacing == pytest.approx(200 / 256, abs=1e-3)
    assert "fields of view differ" in reasons["data.preprocessing.spacing"]
    look_like(monkeypatch, size=((400, 400), (300, 300)), extent_mm=((190, 200), (140, 150)))
    assert chosen(cohort, *small, budget=1e6)[0].data.preprocessing.spacing is None


def look_like(monkeypatch: pytest.MonkeyPatch, **images: Any) -> None:
    """Let images be described as others."""
    monkeypatch.setattr(
        auto, "describe_training", lambda *asked: describe_training(*asked).model_copy(update=images)
    )


def test_only_what_looks_alike_is_flipped(cohort: Cohort, volumes: Cohort) -> None:
    def flip(modality: str, *classes: str) -> Any:
        spec = cohort.spec.model_copy(update={"modality": modality, "classes": classes})
        return chosen(replace(cohort, spec=spec), *TINY, "training.epochs=1")[0].data.augmentation.flip

    assert flip("ct", "no", "yes") == (0.0, 0.5)
    assert flip("ct", "Left bleed", "right bleed") == 0.0
    given = ("network.channels=[2,4]", "data.preprocessing.size=[16,16,16]", "training.epochs=1")
    experiment, reasons = chosen(volumes, *given)
    assert experiment.data.augmentation.flip == 0.0
    assert reasons["data.augmentation.flip"] == "structures: left and right may differ"
    assert [task.target for task in experiment.tasks_of(SegmentationSpec).values()] == ["mask", "structures"]
    assert {task.dice_over for task in experiment.tasks_of(SegmentationSpec).values()} == {"foreground"}
    assert experiment.training.batch_size == 2


def test_a_cohort_without_anything_to_learn_is_refused(cohort: Cohort) -> None:
    cases = tuple(replace(case, targets={"label": 1}) for case in cohort.cases)
    with pytest.raises(CohortError, match="the same label; no training case has a mask"):
        chosen(replace(cohort, cases=cases))


def test_a_diagnosis_that_is_not_learned_has_no_say(cohort: Cohort) -> None:
    cases = tuple(replace(case, targets={**case.targets, "label": 1}) for case in cohort.cases)
    experiment, reasons = chosen(replace(cohort, cases=cases), *TINY, "training.epochs=1")
    assert [*experiment.tasks] == ["segmentation"]
    assert experiment.evaluation.threshold == "youden"
    assert reasons["training.selection.weights"].startswith("validation patients: 2: ")


def test_many_validation_cases_choose_the_epoch_and_the_threshold(cohort: Cohort) -> None:
    cases = tuple(
        replace(case, case_id=f"{case.case_id}-{copy}", patient_id=f"{case.patient_id}-{copy}")
        for case in cohort.cases
        for copy in range(20)
    )
    experiment, _ = chosen(replace(cohort, cases=cases), *TINY, "training.epochs=1")
    assert experiment.training.selection.weights == "best"
    assert experiment.training.selection.smoothing == 3
    assert experiment.evaluation.threshold == "youden"


def test_the_command_says_why_and_leaves_an_ordinary_run(cohort: Cohort, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    asked = ["--cohort", str(cohort.folder), *TINY]
    told = CliRunner().invoke(app, ["train", "auto", "--out", str(run.path), *asked, "training.epochs=1"])
    assert told.exit_code == 0, told.output
    assert "network.kind: attention-unet (16 training cases" in told.stderr
    experiment = read_experiment(run.experiment)
    assert experiment.name == "auto"
    assert "network.kind: attention-unet" in experiment.description
    again = CliRunner().invoke(app, ["train", "auto", "--out", str(run.path), "--resume", *asked])
    assert again.exit_code == 0, again.output
    assert "nothing to do" in again.stderr
    other = ["train", "auto", "--out", str(run.path), "--resume", *asked, "training.seed=5"]
    with pytest.raises(RunError, match=r"training\.seed: 0 in the run, 5 now"):
        CliRunner().invoke(app, other, catch_exceptions=False)
    planned = CliRunner().invoke(app, ["plan", "auto", *asked, "training.epochs=1", "--json"])
    keys = [choice["key"] for choice in json.loads(planned.stdout)["choices"]]
    assert "tasks.segmentation" in keys
    assert "data.preprocessing.size" not in keys


def test_a_budget_is_a_time_and_for_auto_alone(cohort: Cohort) -> None:
    assert [seconds_of(text) for text in (None, "90s", "1.5h")] == [1800, 90, 5400]
    for wrong in ("30", "0m", "m", "1d", "-5m"):
        with pytest.raises(UsageError, match="expected a time such as"):
            seconds_of(wrong)
    asked = ["plan", "hematoma/demo", "--cohort", str(cohort.folder), "--budget", "5m"]
    with pytest.raises(UsageError, match="--budget is for `auto`"):
        CliRunner().invoke(app, asked, catch_exceptions=False)
