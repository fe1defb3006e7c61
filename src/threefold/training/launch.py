"""Starting the training's processes, and bringing their errors home."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.deterministic
from lightning.fabric import Fabric
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from threefold import errors
from threefold.errors import ThreefoldError, TrainingError
from threefold.networks.kernels import tune_allocation
from threefold.training.devices import make_fabric, quiet_lightning
from threefold.training.history import Row
from threefold.training.loop import Job, Training

_MARK = "threefold-error:"


def train_network(job: Job) -> list[Row]:
    """Train in as many processes as the experiment asks for; return the history.

    Raises:
        ThreefoldError: as raised in any of the processes.
        KeyboardInterrupt: the last whole epoch's checkpoint is there.
    """
    fabric = make_fabric(job.experiment.training)
    try:
        # A partial, since arguments are searched for modules, which does not know frozen dataclasses.
        history: list[Row] = fabric.launch(partial(_work, job))
        return history
    except ProcessRaisedException as problem:
        raise _brought_home(str(problem)) from None
    except ProcessExitedException as problem:
        raise TrainingError(
            f"a training process ended without a word ({str(problem).splitlines()[0]}), most often for "
            "want of memory. Lower training.batch_size or training.devices, then go on with --resume."
        ) from None
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def _work(job: Job, fabric: Fabric) -> list[Row]:
    """Run in each process."""
    quiet_lightning()
    if fabric.device.type == "cpu":
        tune_allocation()
    try:
        with deterministic(fabric.device), _memory_explained():
            training = Training(job, fabric)
            training.run()
        return training.history
    except ThreefoldError as error:
        if fabric.world_size == 1:
            raise
        # Only text crosses processes.
        raise RuntimeError(_MARK + json.dumps([type(error).__name__, str(error)])) from None
    finally:
        if fabric.is_global_zero:
            job.progress.stop()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Let the same inputs give the same bits on a CPU; on a GPU the price would be too high.

    Without it the gradient of an indexed table (relative position bias) depends on the threads' order.
    """
    was = torch.are_deterministic_algorithms_enabled()
    options: Any = torch.utils.deterministic  # sets its one option through a property of the module
    filled = options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(was or device.type == "cpu")
    options.fill_uninitialized_memory = False  # costs time, and nothing here reads it
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was)
        options.fill_uninitialized_memory = filled


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"not enough memory ({str(error).splitlines()[0]}). Lower training.batch_size and raise "
            "training.accumulate by as much, or set network.encoder.gradient_checkpointing=true."
        ) from error


def _brought_home(text: str) -> Exception:
    """Return the error that a process marked, or its whole traceback."""
    found = re.search(re.escape(_MARK) + r"(\[.*\])", text)
    if found is None:
        return RuntimeError(text)
    name, message = json.loads(found[1])
    kind = getattr(errors, name, TrainingError)
    return kind(message) if issubclass(kind, ThreefoldError) else TrainingError(message)
