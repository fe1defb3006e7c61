"""Killed for real, at random moments and amid a checkpoint's writing, then resumed: the same bits."""

from __future__ import annotations

import csv
import hashlib
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threefold.cohorts.cohort import Cohort
from threefold.experiments import experiment_yaml
from threefold.run import RunFolder
from threefold.training.checkpoints import load_checkpoint
from threefold.training.run import train

EPOCHS = 4
PATIENCE = 600
"""Seconds; on a busy machine a process takes minutes to start."""

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="kills as POSIX does, and looks into /proc"
)

# Everything that has a state or draws numbers: momentum, learned weights, augmentation, stochastic depth.
CHANGES: dict[str, Any] = {
    "epochs": EPOCHS,
    "balancing": {"method": "uncertainty"},
    "data": {
        "split": {"kind": "patient", "seed": 3},
        "preprocessing": {"size": [32, 32]},
        "augmentation": {"flip": 0.5, "rotation": 20, "noise": 0.05},
        "cache": "disk",
    },
    "network": {
        "kind": "swin-unet",
        "encoder": {"embed_dim": 8, "depths": [2, 2], "heads": [1, 2], "window": 4, "drop_path": 0.3},
    },
}


class Trainee:
    """A process that trains into a run folder."""

    def __init__(self, context: Any, experiment: Path, cohort: Path, run: Path, stop_at: str | None) -> None:
        import trainee

        self.messages, child = context.Pipe(duplex=False)
        self.process = context.Process(target=trainee.work, args=(experiment, cohort, run, stop_at, child))
        self.process.start()
        child.close()

    def wait_for(self, count: int, prefix: str) -> None:
        """Wait for messages that begin with `prefix`."""
        seen = 0
        while seen < count:
            assert self.messages.poll(PATIENCE), f"no message {prefix!r}"
            seen += self.messages.recv().startswith(prefix)

    def end(self, sign: signal.Signals) -> int:
        """Send a signal; return the exit code."""
        os.kill(self.process.pid, sign)
        self.process.join(PATIENCE)
        return int(self.process.exitcode)


def _digest(run: RunFolder) -> str:
    return hashlib.sha256(run.weights.read_bytes()).hexdigest()


def test_kills_and_resumes_end_with_the_weights_of_an_unbroken_run(
    trainees: Any, cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path
) -> None:
    experiment = make_experiment(**CHANGES)
    unbroken = train(experiment, cohort, tmp_path / "unbroken")
    run, file = RunFolder(tmp_path / "run"), tmp_path / "experiment.yaml"
    file.write_text(experiment_yaml(experiment))

    def start(stop_at: str | None = None) -> Trainee:
        return Trainee(trainees, file, cohort.folder, run.path, stop_at)

    # Amid the very first checkpoint: there is none to go on from, and the half of one must not be taken.
    trainee = start("best.ckpt")
    trainee.wait_for(1, "half written")
    assert trainee.end(signal.SIGKILL) == -signal.SIGKILL
    assert list(run.last_checkpoint.parent.glob(".*.partial"))
    assert not run.last_checkpoint.exists()

    # Between the two checkpoints of an epoch, and amid the table.
    for name, epochs in [("last.ckpt", 0), ("metrics.csv", 1), ("last.ckpt", 1)]:
        trainee = start(name)
        trainee.wait_for(1, "half written")
        assert trainee.end(signal.SIGKILL) == -signal.SIGKILL
        there = load_checkpoint(run.last_checkpoint)["epoch"] if run.last_checkpoint.exists() else 0
        assert there == epochs

    # At a random moment.
    trainee = start()
    trainee.wait_for(random.Random(0).randint(2, 7), "epoch")
    assert trainee.end(signal.SIGKILL) == -signal.SIGKILL
    assert run.read_status()["state"] == "running"

    # A scheduler's stop, or Ctrl-C: the state says so.
    trainee = start()
    trainee.wait_for(2, "epoch")
    assert trainee.end(signal.SIGTERM) == 0
    assert run.read_status()["state"] == "interrupted"

    # Amid the finish.
    trainee = start("weights.safetensors")
    trainee.wait_for(1, "half written")
    assert trainee.end(signal.SIGKILL) == -signal.SIGKILL

    trainee = start()
    trainee.wait_for(1, "finished")
    trainee.process.join(60)

    assert run.read_status() == unbroken.read_status()
    assert _digest(run) == _digest(unbroken)
    assert run.predictions.read_bytes() == unbroken.predictions.read_bytes()
    assert not list(run.path.rglob("*.partial"))
    rows = []
    for folder in (run, unbroken):
        with folder.metrics.open(newline="") as stream:
            rows.append([_without_times(row) for row in csv.DictReader(stream)])
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [str(epoch + 1) for epoch in range(EPOCHS)]


def _without_times(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if not name.startswith("seconds")}
