"""What the processes of test_resume.py do: train, and say when the right moment to be killed has come."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch._dynamo  # by the first optimiser
from lightning.fabric.strategies import ddp  # by several devices; here, it is imported once for all trainees

import threefold.run
from threefold.cohorts.cohort import read_cohort
from threefold.experiments import read_experiment
from threefold.interruption import exit_code_of
from threefold.training.progress import Silence
from threefold.training.run import train

DDPStrategy = ddp.DDPStrategy


class Steps(Silence):
    """Tells the parent of every step, and waits a little at each so that a kill finds one."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def step(self, stage: str, done: int, total: int) -> None:
        self._parent.send(stage)
        time.sleep(0.005)


def half_write(name: str, parent: Connection) -> None:
    """From now on, writing the file `name` stops halfway for good; the parent is told."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if name in Path(f"/proc/self/fd/{descriptor}").readlink().name:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            parent.send("half written")
            time.sleep(600)
        real(descriptor)

    threefold.run.os.fsync = fsync


def work(experiment: Path, cohort: Path, run: Path, stop_at: str | None, parent: Connection) -> None:
    """Train with --resume; with `stop_at`, the file of that name stays half written."""
    torch.set_num_threads(1)
    if stop_at is not None:
        half_write(stop_at, parent)
    try:
        train(read_experiment(experiment), read_cohort(cohort), run, resume=True, progress=Steps(parent))
    except KeyboardInterrupt:
        parent.send("interrupted")
        return
    parent.send("finished")


def lead(experiment: Path, cohort: Path, run: Path, parent: Connection) -> None:
    """Train as the leader of a new process group, whose ranks are forked; exit as the command does."""
    os.setsid()
    ddp.DDPStrategy = lambda **_: DDPStrategy(start_method="fork")
    torch.set_num_threads(1)
    try:
        train(read_experiment(experiment), read_cohort(cohort), run)
    except KeyboardInterrupt as stop:
        parent.send("interrupted")
        sys.exit(exit_code_of(stop))
