"""Training on volumes: partial labels, balanced draws, cascades and what is trained before them."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import threefold.training.loop as loop
from threefold.cohorts.cohort import Cohort
from threefold.errors import ExperimentError, UsageError, WeightsError
from threefold.experiments import read_experiment
from threefold.run import RunFolder
from threefold.tasks import topology
from threefold.training.progress import Silence
from threefold.training.run import train

from ..cohorts.cases import retold

MakeExperiment = Callable[..., Any]
UNET: dict[str, Any] = {"kind": "attention-unet", "channels": [4, 8], "dropout": 0.2}
DENSENET: dict[str, Any] = {"blocks": [1, 1], "growth": 4, "stem": 4, "dropout": 0.2}
CASCADE: dict[str, Any] = {
    "kind": "cascade",
    "segmenter": {"channels": [4, 8], "dropout": 0.2},
    "classifier": DENSENET,
    "classifier_input": "image+structures",
}
CLASSIFY: dict[str, Any] = {"classification": {}}
ALL_TASKS = {
    "classification": {"weight": 14.0},
    "segmentation": {"target": "structures"},
    "region": {"weight": 1.0},
}


class Told(Silence):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def rows_of(run: RunFolder) -> list[dict[str, str]]:
    with run.metrics.open(newline="") as stream:
        return list(csv.DictReader(stream))


NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "segmenter": (UNET, {"segmentation": {"target": "structures"}, "region": {}}),
    "mask alone": (UNET, {"segmentation": {"target": "mask"}}),
    "shared encoder": (UNET, ALL_TASKS),
    "classifier": ({"kind": "densenet", **DENSENET}, CLASSIFY),
    "cascade": (CASCADE, ALL_TASKS),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_cases_that_lack_something_train_what_they_can(
    name: str, volumes: Cohort, make_volume_experiment: MakeExperiment, tmp_path: Path
) -> None:
    network, tasks = NETWORKS[name]
    experiment = make_volume_experiment(network=network, tasks=tasks, epochs=2)
    run = train(experiment, volumes, tmp_path / "run")
    first, last = rows_of(run)
    for task in tasks:
        assert math.isfinite(float(last[f"train_loss_{task}"]))
        assert float(last[f"train_loss_{task}"]) != float(first[f"train_loss_{task}"])
    assert math.isfinite(float(last["validation_loss"]))
    assert run.predictions.is_file()
    assert run.read_status()["state"] == "finished"


def test_a_segmenter_learns_the_structures(
    volumes: Cohort, make_volume_experiment: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make_volume_experiment(
        network={**UNET, "channels": [8, 16], "dropout": 0.0},
        epochs=16,
        optimiser={"name": "adamw", "learning_rate": 0.02, "schedule": "linear"},
        selection={"metric": "dice"},
    )
    run = train(experiment, volumes, tmp_path / "run")
    assert run.read_status()["best_value"] > 0.6
    # The published ramp: nothing of the region in the first epoch, half in the second.
    assert [float(row["weight_region"]) for row in rows_of(run)][:3] == [0.0, 0.5, 1.0]


def test_balanced_accuracy_selects_the_best_epoch(
    volumes: Cohort, make_volume_experiment: MakeExperiment, tmp_path: Path
) -> None:
    experiment = make_volume_experiment(
        network={"kind": "densenet", **DENSENET}, tasks=CLASSIFY, selection={"metric": "balanced_accuracy"}
    )
    cases = tuple(
        case if case.split != "validation" else retold(case, label=number % 3)
        for number, case in enumerate(volumes.cases)
    )
    run = train(experiment, Cohort(volumes.folder, volumes.spec, cases), tmp_path / "run")
    values = [float(row["validation_balanced_accuracy"]) for row in rows_of(run)]
    status = run.read_status()
    assert status["best_value"] == pytest.approx(max(values))
    assert status["best_epoch"] == 1 + values.index(max(values))


def test_topology_losses_train_and_need_their_extra(
    volumes: Cohort,
    make_volume_experiment: MakeExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = {"segmentation": {"target": "structures", "cl_dice": 0.5, "homology": 0.01}}
    experiment = make_volume_experiment(tasks=tasks, epochs=1)
    assert math.isfinite(float(rows_of(train(experiment, volumes, tmp_path / "run"))[0]["train_loss"]))
    monkeypatch.setattr(topology, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'threefold\[topology\]'"):
        train(experiment, volumes, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_resumed_cascade_ends_with_the_weights_of_an_unbroken_one(
    volumes: Cohort,
    make_volume_experiment: MakeExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Dropout in both networks, balanced draws, augmentation, AdamW with a part's own rate.
    optimiser = {
        "name": "adamw",
        "learning_rate": 0.003,
        "schedule": "linear",
        "part_factors": {"classifier": 0.1},
    }
    experiment = make_volume_experiment(network=CASCADE, tasks=ALL_TASKS, epochs=3, optimiser=optimiser)
    unbroken = train(experiment, volumes, tmp_path / "unbroken")
    real = loop.write_history

    def stop_after_the_second(path: Path, history: list[Any]) -> None:
        real(path, history)
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_history", stop_after_the_second)
        with pytest.raises(KeyboardInterrupt):
            train(experiment, volumes, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert run.read_status()["state"] == "interrupted"
    train(experiment, volumes, run.path, resume=True)
    assert run.weights.read_bytes() == unbroken.weights.read_bytes()


# --- what is trained before, and what a training starts from ---------------------------------------------


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, make_volume_experiment: MakeExperiment) -> str:
    """A segmenter's recipe that `pretrain` may name."""
    content = make_volume_experiment(
        network={"kind": "attention-unet", "channels": [16, 32]},
        epochs=99,
        optimiser={"name": "adamw", "learning_rate": 0.02},
        selection={"metric": "dice"},
    )
    monkeypatch.setattr("threefold.training.plan.read_recipe", lambda name: content)
    return "mini/segmenter"


FROZEN = {**CASCADE, "freeze_segmenter": True}


def test_before_a_cascade_its_segmenter_is_trained_by_the_recipe_on_this_data(
    volumes: Cohort, make_volume_experiment: MakeExperiment, tmp_path: Path, recipe: str
) -> None:
    experiment = make_volume_experiment(network=FROZEN, tasks=CLASSIFY, pretrain=recipe, epochs=2, seed=3)
    told = Told()
    run = train(experiment, volumes, tmp_path / "run", progress=told)
    before = RunFolder(run.path / "pretrain")
    first = read_experiment(before.experiment)
    assert first.network == experiment.network.segmenter
    assert first.data == experiment.data
    assert first.training.optimiser.learning_rate == 0.02  # the recipe's
    assert first.training.selection.metric == "dice"  # the recipe's
    assert (first.training.epochs, first.training.seed) == (2, 3)  # this experiment's
    segmenter, cascade = load_file(before.weights), load_file(run.weights)
    assert segmenter
    for name, value in segmenter.items():
        assert torch.equal(cascade[f"segmenter.{name}"], value), name  # frozen, batch norm included
    # Classes alone are learned; the structures are predicted all the same.
    assert "train_loss_segmentation" not in rows_of(run)[0]
    assert any("into" in line and "pretrain" in line for line in told.lines)


def test_an_interrupted_first_stage_is_gone_on_with(
    volumes: Cohort,
    make_volume_experiment: MakeExperiment,
    tmp_path: Path,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_volume_experiment(network=FROZEN, tasks=CLASSIFY, pretrain=recipe, epochs=2)
    unbroken = train(experiment, volumes, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_history", lambda path, history: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(experiment, volumes, tmp_path / "run")
    run = train(experiment, volumes, tmp_path / "run", resume=True)
    assert run.weights.read_bytes() == unbroken.weights.read_bytes()


def test_initial_weights_replace_the_stage_before_and_are_found_from_anywhere(
    volumes: Cohort,
    make_volume_experiment: MakeExperiment,
    tmp_path: Path,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segmenter = train(make_volume_experiment(epochs=1), volumes, tmp_path / "segmenter")
    monkeypatch.chdir(tmp_path)
    experiment = make_volume_experiment(
        network=FROZEN, tasks=CLASSIFY, pretrain=recipe, initial_weights={"path": "segmenter"}, epochs=2
    )
    run = train(experiment, volumes, tmp_path / "run")
    written = read_experiment(run.experiment)
    assert written.pretrain is None
    assert written.initial_weights is not None
    assert written.initial_weights.path == str(segmenter.path)
    assert not (run.path / "pretrain").exists()
    expected, found = load_file(segmenter.weights), load_file(run.weights)
    assert all(torch.equal(found[f"segmenter.{name}"], value) for name, value in expected.items())
    # The same command goes on with it, and what it started from is needed no more.
    run.write_status(state="interrupted")
    segmenter.path.rename(tmp_path / "moved")
    assert train(experiment, volumes, run.path, resume=True).read_status()["state"] == "finished"


def test_a_joint_training_starts_from_a_cascade(
    volumes: Cohort, make_volume_experiment: MakeExperiment, tmp_path: Path, recipe: str
) -> None:
    first = train(
        make_volume_experiment(network=FROZEN, tasks=CLASSIFY, pretrain=recipe, epochs=1),
        volumes,
        tmp_path / "first",
    )
    still = {"name": "adamw", "learning_rate": 1e-30, "weight_decay": 0.0}
    joint = make_volume_experiment(
        network=CASCADE, tasks=ALL_TASKS, initial_weights={"path": str(first.path)}, epochs=1, optimiser=still
    )
    told = Told()
    run = train(joint, volumes, tmp_path / "joint", progress=told)
    start, end = load_file(first.weights), load_file(run.weights)
    assert start.keys() == end.keys()
    parameters = [name for name in start if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(start[name], end[name]) for name in parameters)
    assert any("weights loaded" in line for line in told.lines)


def test_what_does_not_fit_a_cascade_is_refused_before_there_is_a_folder(
    volumes: Cohort,
    make_volume_experiment: MakeExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wide = {"kind": "attention-unet", "channels": [6, 12]}
    other = train(make_volume_experiment(network=wide, epochs=1), volumes, tmp_path / "other")
    run = tmp_path / "run"
    cascade = {"network": FROZEN, "tasks": CLASSIFY, "epochs": 1}
    for weights in (other.path, tmp_path / "nowhere"):
        experiment = make_volume_experiment(**cascade, initial_weights={"path": str(weights)})
        with pytest.raises(WeightsError, match=weights.name):
            train(experiment, volumes, run)
    classifier = make_volume_experiment(network={"kind": "densenet", **DENSENET}, tasks=CLASSIFY)
    monkeypatch.setattr("threefold.training.plan.read_recipe", lambda name: classifier)
    # A stage of another network, and one before a network that has no parts.
    for changes, said in (
        (cascade, r"trains a densenet network; expected a attention-unet"),
        ({}, "has no part that is trained first"),
    ):
        experiment = make_volume_experiment(**changes, pretrain="mini/classifier")
        with pytest.raises(ExperimentError, match=said):
            train(experiment, volumes, run)
    assert not run.exists()


def test_the_rate_of_a_part_that_is_not_there_is_refused_before_there_is_a_folder(
    volumes: Cohort, make_volume_experiment: MakeExperiment, tmp_path: Path
) -> None:
    optimiser = {"name": "adamw", "part_factors": {"clasifier": 0.1}}
    experiment = make_volume_experiment(network=CASCADE, tasks=ALL_TASKS, optimiser=optimiser)
    with pytest.raises(ExperimentError, match=r"in 'clasifier'.*segmenter, classifier.*'classifier'\?"):
        train(experiment, volumes, tmp_path / "run")
    assert not (tmp_path / "run").exists()
