"""Stopped by a signal to the whole process group, with readers of cases and other ranks alive."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from threefold.cohorts.cohort import Cohort
from threefold.experiments import experiment_yaml
from threefold.interruption import Stopped, terminating_as_interrupt
from threefold.run import RunFolder
from threefold.training.checkpoints import load_checkpoint

pytestmark = pytest.mark.skipif(os.name == "nt", reason="process groups are POSIX's")
PATIENCE = 600
"""Seconds; on a busy machine starting takes most of them."""


@pytest.fixture
def start(
    trainees: Any, cohort: Cohort, make_experiment: Callable[..., Any], tmp_path: Path
) -> Callable[..., tuple[Any, Any, RunFolder]]:
    """Start a training as the leader of a process group of its own."""
    import trainee

    def start(**changes: Any) -> tuple[Any, Any, RunFolder]:
        run, file = RunFolder(tmp_path / "run"), tmp_path / "experiment.yaml"
        data = {"split": {"kind": "column"}, "preprocessing": {"size": [32, 32]}, "workers": 1}
        file.write_text(experiment_yaml(make_experiment(epochs=500, data=data, **changes)))
        ours, theirs = trainees.Pipe(duplex=False)
        arguments = (file, cohort.folder, run.path, theirs)
        process = trainees.Process(target=trainee.lead, args=arguments)
        process.start()
        theirs.close()
        return process, ours, run

    return start


def _wait_for_an_epoch(run: RunFolder) -> None:
    deadline = time.monotonic() + PATIENCE
    while not run.metrics.is_file():
        assert time.monotonic() < deadline, "no epoch"
        time.sleep(0.05)


def _group_is_gone(group: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM, signal.SIGTERM, signal.SIGINT), 143),
    ],
    ids=["SIGINT", "SIGTERM and impatience"],
)
def test_a_signal_to_the_group_ends_in_interrupted(
    signals: tuple[signal.Signals, ...], code: int, start: Callable[..., Any]
) -> None:
    process, messages, run = start()
    _wait_for_an_epoch(run)
    for each in signals:
        os.killpg(process.pid, each)
        time.sleep(0.02)
    process.join(PATIENCE)
    assert process.exitcode == code
    assert _group_is_gone(process.pid)
    said = messages.recv()
    assert said == "interrupted"
    status = run.read_status()
    assert status["state"] == "interrupted"
    assert load_checkpoint(run.last_checkpoint)["epoch"] == status["epoch"]
    assert not list(run.path.rglob("*.partial"))


def test_a_signal_to_the_group_of_two_ranks_ends_in_interrupted(start: Callable[..., Any]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two CPU cores")
    process, _, run = start(devices=2, batch_size=2)
    _wait_for_an_epoch(run)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 143
    assert _group_is_gone(process.pid)
    assert run.read_status()["state"] == "interrupted"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_the_first_signal_raises_and_the_next_is_ignored_until_the_end(name: str) -> None:
    number = getattr(signal, name)
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    cleaned = False
    with pytest.raises(Stopped) as stop, terminating_as_interrupt():  # noqa: PT012
        try:
            with terminating_as_interrupt():
                os.kill(os.getpid(), number)
                time.sleep(10)
        finally:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            cleaned = True
    assert cleaned
    assert stop.value.exit_code == 128 + number
    assert {each: signal.getsignal(each) for each in before} == before


def test_a_signal_that_is_ignored_on_purpose_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminating_as_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGHUP, previous)
