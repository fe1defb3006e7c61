"""A cohort of 32 x 32 pictures that trains in a second, and an experiment of its size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, MaskSpec, write_cohort
from threefold.experiment import Experiment

SIDE = 32

MakeCohort = Callable[..., Cohort]
MakeExperiment = Callable[..., Experiment]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


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


def build_experiment(**changes: Any) -> Experiment:
    """Return a mini experiment; `changes` are the fields of `training`, or whole parts by name."""
    parts = {
        name: changes.pop(name)
        for name in ("data", "tasks", "balancing", "network", "before", "initial_weights")
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
