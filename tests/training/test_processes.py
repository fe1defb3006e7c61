"""Two CPU processes against one: the same metrics and weights, no case counted twice, errors come home."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.fabric.strategies.ddp import DDPStrategy
from safetensors.torch import load_file

from threefold.cohorts.cohort import Cohort
from threefold.errors import TrainingError
from threefold.run import RunFolder
from threefold.training import launch
from threefold.training.devices import _available
from threefold.training.run import train

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or _available()[0] < 2, reason="needs two CPU cores and no GPU"
)
# Stochastic depth is drawn for each process, so it is off where the two are compared.
NETWORK = {
    "kind": "swin-unet",
    "encoder": {"embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4, "drop_path": 0.0},
}
DATA = {
    "split": {"kind": "column"},
    "preprocessing": {"size": [32, 32]},
    "augmentation": {"flip": 0.5, "rotation": 15},
}


@pytest.fixture(autouse=True)
def _from_one_that_has_imported_everything(trainees: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes, which get what spawned ones do, from the server of `trainees`."""
    real = DDPStrategy.__init__

    def init(self: DDPStrategy, start_method: str) -> None:
        assert start_method == "spawn"
        real(self, start_method="forkserver")

    monkeypatch.setattr(DDPStrategy, "__init__", init)


def _rows(run: RunFolder) -> list[dict[str, float]]:
    with run.metrics.open(newline="") as stream:
        return [
            {name: float(value) for name, value in row.items() if value and not name.startswith("seconds")}
            for row in csv.DictReader(stream)
        ]


def test_two_processes_train_as_one_does_at_the_same_global_batch(
    cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    # An odd number of validation cases: padding would count one of them twice. One training case is left
    # over: in the last step one process has none of its own.
    validation = [case for case in cohort.cases if case.split == "validation"]
    training = [case for case in cohort.cases if case.split == "train"]
    dropped = [*validation[: 1 - len(validation) % 2], *training[: (len(training) - 1) % 4]]
    cohort = Cohort(cohort.folder, cohort.spec, tuple(case for case in cohort.cases if case not in dropped))
    assert sum(case.split == "validation" for case in cohort.cases) % 2 == 1
    assert sum(case.split == "train" for case in cohort.cases) % 4 == 1
    one, two = (
        train(make_experiment(epochs=2, network=NETWORK, data=DATA, **sizes), cohort, tmp_path / name)
        for name, sizes in {"one": {"batch_size": 4}, "two": {"batch_size": 2, "devices": 2}}.items()
    )
    for row, other in zip(_rows(one), _rows(two), strict=True):
        assert row.keys() == other.keys()
        assert other == pytest.approx(row, rel=1e-4, abs=1e-5)
    first, second = load_file(one.weights), load_file(two.weights)
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_an_error_in_a_process_comes_home_as_it_was(
    cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    experiment = make_experiment(
        batch_size=2, devices=2, optimiser={"learning_rate": 1e30, "schedule": "constant"}
    )
    with pytest.raises(TrainingError, match="not finite"):
        train(experiment, cohort, run.path)
    assert run.read_status()["state"] == "failed"


def test_a_started_process_computes_with_the_threads_that_the_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "environment.json").write_text('{"threads": 1}')
    monkeypatch.setattr(launch, "_train", lambda *_: torch.get_num_threads())
    job: Any = SimpleNamespace(run=RunFolder(tmp_path))
    monkeypatch.setattr(launch, "share_cores", lambda: torch.set_num_threads(2))
    before = torch.get_num_threads()
    try:
        assert launch._work(job, -1, cast(Any, None)) == 1
    finally:
        torch.set_num_threads(before)
