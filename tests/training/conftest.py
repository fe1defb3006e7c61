"""Cohorts of 32 x 32 pictures and of 16^3 volumes that train in a second, and experiments of their sizes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, write_cohort
from threefold.core.targets import ClassTarget, MaskSpec, MaskTarget, MultilabelTarget, NumberTarget
from threefold.experiment import Experiment
from threefold.images.writing import write_nifti
from threefold.run import RunFolder
from threefold.training import loop
from threefold.training.run import train

SIDE = 32
VOLUME = 16

MakeCohort = Callable[..., Cohort]
MakeExperiment = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def trainees() -> Iterator[Any]:
    """Processes forked from one that has imported everything and computed nothing."""
    folder = str(Path(__file__).parent)
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # Where the server, whose failing imports are silent, looks for what it imports.
        patch.setenv(
            "PYTHONPATH", os.pathsep.join([folder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        )
        context.set_forkserver_preload(["trainee"])
        yield context


def write_cases(
    folder: Path, patients: int = 12, slices: int = 2, labels: tuple[str, ...] = ("no", "yes")
) -> Cohort:
    """Bright squares, `yes` with a dark spot inside; some masks and labels are absent."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    rows = []
    for patient in range(patients):
        label = labels[patient % len(labels)]
        for number in range(slices):
            name, index = f"p{patient:02d}-{number}", patient * slices + number
            pixels = rng.integers(0, 60, (SIDE, SIDE))
            inside = np.zeros((SIDE, SIDE), bool)
            top, left = rng.integers(4, 14, 2)
            inside[top : top + 12, left : left + 12] = True
            pixels[inside] += 150
            if label == "yes":
                pixels[top + 4 : top + 8, left + 4 : left + 8] = 20
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
            Image.fromarray(inside.astype(np.uint8)).save(folder / f"{name}-mask.png")
            rows.append(
                {
                    "case_id": name,
                    "patient_id": f"p{patient:02d}",
                    "site": "north" if patient % 4 < 2 else "south",
                    "split": ("train", "train", "train", "train", "validation", "test")[patient // 2 % 6],
                    "image": f"{name}.png",
                    "mask": f"{name}-mask.png" if index % 3 else None,
                    "label": label if index % 5 else None,
                }
            )
    spec = CohortSpec(
        name="squares",
        modality="photo",
        dimensions=2,
        classes=("no", "yes"),
        mask=MaskSpec(),
        intensity=IntensitySpec(unit="grey", window=(0, 255)),
        spacing=(1.0, 1.0),
    )
    return write_cohort(folder, spec, rows)


class StoppedError(Exception):
    """Ends a training amid an epoch."""


@contextmanager
def stopped_in_second_epoch() -> Iterator[None]:
    """Let a training in this context end amid its second epoch, as a fault would end it."""
    epoch = loop.Training._epoch

    def stops(self: loop.Training, number: int) -> Any:
        if number == 1:
            raise StoppedError
        return epoch(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_epoch", stops)
        with pytest.raises(StoppedError):
            yield


def build_experiment(**changes: Any) -> Experiment:
    """Return a mini experiment; `changes` are the fields of `training`, or whole parts by name."""
    parts = {
        name: changes.pop(name)
        for name in ("data", "tasks", "balancing", "network", "pretrain", "initial_weights")
        if name in changes
    }
    content: dict[str, Any] = {
        "name": "mini",
        "data": {"split": {"kind": "column"}, "preprocessing": {"size": [SIDE, SIDE]}},
        "network": {"encoder": {"embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}},
        "tasks": {"classification": {}, "segmentation": {}, "reconstruction": {}},
        "training": {"epochs": 2, "batch_size": 4, "optimiser": {"learning_rate": 0.01}, **changes},
        "evaluation": {"replicates": 10},
    }
    content["network"]["kind"] = "swin-unet"
    return Experiment.model_validate({**content, **parts})


def write_volumes(folder: Path, cases: int = 15, labels: tuple[str, ...] = ("A", "B", "C")) -> Cohort:
    """Two bright blobs; the class is the place of the second. Each case lacks mask, structures or label, in
    turns, every seventh all three, and the first nothing."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True)
    rows = []
    parts = ("train", "train", "train", "validation", "test")
    for number in range(cases):
        name, label = f"v{number:02d}", number % len(labels)
        structures = np.zeros((VOLUME,) * 3, np.uint8)
        structures[2:6, 2:6, 3:13] = 1
        structures[9:13, 2 + 4 * label : 6 + 4 * label, 4:12] = 2
        image = rng.normal(20, 6, structures.shape) + np.where(structures, 150, 0) + 30 * (structures == 2)
        arrays = {"": image.astype(np.float32), "-mask": (structures > 0).astype(np.uint8)}
        for suffix, array in {**arrays, "-structures": structures}.items():
            write_nifti(folder / f"{name}{suffix}.nii.gz", array, np.diag([1.0, 1.0, 1.0, 1.0]))
        lacks = (
            {"mask", "structures", "label"}
            if number % 7 == 6
            else {("", "mask", "structures", "label")[number % 4]}
        )
        targets = {
            "mask": f"{name}-mask.nii.gz",
            "structures": f"{name}-structures.nii.gz",
            "label": labels[label],
        }
        rows.append(
            {
                "case_id": name,
                "patient_id": name,
                "site": "north",
                "split": parts[(number // len(labels)) % 5],
                "image": f"{name}.nii.gz",
                **{key: value for key, value in targets.items() if key not in lacks},
            }
        )
    spec = CohortSpec(
        name="blobs",
        modality="mri",
        dimensions=3,
        classes=labels,
        mask=MaskSpec(),
        structures=("first", "second"),
    )
    return write_cohort(folder, spec, rows)


MANY_TASKS: dict[str, Any] = {
    "density": {"kind": "classification", "target": "density"},
    "side": {"kind": "classification", "target": "side"},
    "signs": {"kind": "multilabel"},
    "age": {"kind": "regression"},
    "square": {"kind": "segmentation", "target": "square"},
    "spot": {"kind": "segmentation", "target": "spot"},
}
"""One task for each target of `write_many_targets`."""


def write_many_targets(folder: Path) -> Cohort:
    """The squares of `write_cases` with two diagnoses, two findings, an age and two masks; each is not known
    of some cases, and of the first case nothing is."""
    drawn = write_cases(folder)
    rng = np.random.default_rng(4)
    rows = []
    for number, case in enumerate(drawn.cases):
        spot = np.zeros((SIDE, SIDE), np.uint8)
        spot[4 * (number % 5) :, 8:12] = 7
        Image.fromarray(spot).save(folder / f"{case.case_id}-spot.png")
        told = {
            "density": ("low", "high")[number // 2 % 2],
            "side": ("left", "middle", "right")[number % 3],
            "signs_edge": number % 2,
            "signs_dot": int(number % 4 < 2),
            "age": round(float(rng.normal(30, 4)), 2),
            "square": f"{case.case_id}-mask.png",
            "spot": f"{case.case_id}-spot.png",
        }
        lacks = {*told} if not number else {*[*told][number % 9 : number % 9 + 1]}
        rows.append(
            {
                "case_id": case.case_id,
                "patient_id": case.patient_id,
                "site": case.site,
                "split": case.split,
                "image": case.image.name,
                **{name: value for name, value in told.items() if name not in lacks},
            }
        )
    spec = CohortSpec(
        name="many",
        modality="photo",
        dimensions=2,
        targets={
            "density": ClassTarget(classes=("low", "high"), positive="low"),
            "side": ClassTarget(classes=("left", "middle", "right")),
            "signs": MultilabelTarget(kind="multilabel", classes=("edge", "dot")),
            "age": NumberTarget(kind="number", unit="weeks"),
            "square": MaskTarget(kind="mask"),
            "spot": MaskTarget(kind="mask", name="spot", values=(7,)),
        },
        intensity=IntensitySpec(unit="grey", window=(0, 255)),
        spacing=(1.0, 1.0),
    )
    return write_cohort(folder, spec, rows)


UNET = {"kind": "attention-unet", "channels": [4, 8], "dropout": 0.2}
VOLUME_TASKS = {
    "segmentation": {"target": "structures"},
    "region": {"weight": {"start": 0.0, "step": 0.5, "every": 1}},
}


def build_volume_experiment(**changes: Any) -> Experiment:
    """Return a mini experiment on volumes, a segmenter unless `network` and `tasks` say otherwise."""
    data = {
        "split": {"kind": "column"},
        "sampling": "balanced",
        "preprocessing": {"size": [VOLUME] * 3},
        "augmentation": {"probability": 0.5, "rotation": 10, "noise": 0.05, "intensity_shift": 0.1},
    }
    optimiser = {"name": "adamw", "learning_rate": 0.003, "schedule": "linear"}
    defaults = {"data": data, "network": UNET, "tasks": VOLUME_TASKS, "batch_size": 2, "optimiser": optimiser}
    return build_experiment(**{**defaults, **changes})


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Mini networks gain nothing by threads, and other tests run beside these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_cohort(tmp_path: Path) -> MakeCohort:
    """Write a cohort into a folder of the test."""

    def make(name: str = "cohort", **options: Any) -> Cohort:
        return write_cases(tmp_path / name, **options)

    return make


@pytest.fixture
def cohort(make_cohort: MakeCohort) -> Cohort:
    return make_cohort()


@pytest.fixture
def make_experiment() -> MakeExperiment:
    """Build a mini experiment."""
    return build_experiment


@pytest.fixture(scope="session")
def _finished_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cohort, RunFolder]:
    folder = tmp_path_factory.mktemp("finished")
    cohort = write_cases(folder / "cohort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return cohort, train(build_experiment(epochs=1), cohort, folder / "run")


@pytest.fixture
def finished(_finished_once: tuple[Cohort, RunFolder], tmp_path: Path) -> tuple[Cohort, RunFolder]:
    """A cohort that is not to be changed, and a run of `make_experiment(epochs=1)` on it that may be."""
    cohort, run = _finished_once
    shutil.copytree(run.path, tmp_path / "run")
    return cohort, RunFolder(tmp_path / "run")


@pytest.fixture
def volumes(tmp_path: Path) -> Cohort:
    """Volumes of which each lacks something."""
    return write_volumes(tmp_path / "volumes")


@pytest.fixture
def many_targets(tmp_path: Path) -> Cohort:
    """Pictures of which six things may be known."""
    return write_many_targets(tmp_path / "many")


@pytest.fixture
def make_volume_experiment() -> MakeExperiment:
    """Build a mini experiment on volumes."""
    return build_volume_experiment
