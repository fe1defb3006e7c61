"""Starting the processes of a training and propagating their errors."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.utils.deterministic
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from threefold import errors
from threefold.allocation import tune_allocation
from threefold.errors import ThreefoldError, TrainingError
from threefold.interruption import exit_code_of, terminating_as_interrupt
from threefold.threads import computing_with, share_cores
from threefold.training.devices import Devices, make_devices, quiet_lightning
from threefold.training.folder import threads_of
from threefold.training.history import Row
from threefold.training.loop import Training, TrainingContext
from threefold.training.progress import Silence

_MARK = "threefold-error:"
_SECONDS_TO_END = 10.0


def train_network(context: TrainingContext) -> list[Row]:
    """Train in as many processes as the experiment asks for; return the history.

    Raises:
        ThreefoldError: as raised in any of the processes.
        KeyboardInterrupt: the checkpoint of the last complete epoch has been written.
    """
    devices = make_devices(context.experiment.training)
    try:
        # A partial, since arguments are searched for modules, which does not know frozen dataclasses.
        history: list[Row] = devices.launch(partial(_work, context, os.getpid()))
        return history
    except ProcessRaisedException as problem:
        raise _brought_home(str(problem)) from None
    except ProcessExitedException as problem:
        raise TrainingError(
            f"a training process ended without a message ({str(problem).splitlines()[0]}), most often for "
            "lack of memory. Lower training.batch_size or training.devices, then use --resume."
        ) from None
    except KeyboardInterrupt:
        _end_processes()
        raise


def _end_processes() -> None:
    """End the processes that this one started, and wait: none writes after the run's state is written."""
    processes = multiprocessing.active_children()
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(context: TrainingContext, starter: int, devices: Devices) -> list[Row]:
    """Run in each process; `starter` is the one that trains alone, or started this one."""
    if os.getpid() == starter:
        return _train(context, devices)
    share_cores()
    try:
        # Interrupted, it ends its own readers of cases; the number of threads decides the last bits of sums.
        with terminating_as_interrupt(), computing_with(threads_of(context.run, Silence())):
            return _train(context, devices)
    except KeyboardInterrupt as stop:
        sys.exit(exit_code_of(stop))


def _train(context: TrainingContext, devices: Devices) -> list[Row]:
    quiet_lightning()
    if devices.device.type == "cpu":
        tune_allocation()
    try:
        with deterministic(devices.device), _memory_explained():
            training = Training(context, devices)
            training.run()
        return training.history
    except ThreefoldError as error:
        message = _as_raised(error)
        if devices.world_size == 1:
            raise type(error)(message) from error
        # Only text crosses processes.
        raise RuntimeError(_MARK + json.dumps([type(error).__name__, message])) from None
    finally:
        if devices.is_global_zero:
            context.progress.stop()


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


def _as_raised(error: ThreefoldError) -> str:
    """Return an error's message, without the traceback that a process which reads cases puts before it."""
    message = str(error.args[0]) if error.args else ""
    if not message.startswith("Caught "):
        return message
    return message.rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2].strip()


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is the former
        said = (str(error).splitlines() or ["MemoryError"])[0]
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise TrainingError(
                f"not enough memory ({said}). Lower training.batch_size and raise training.accumulate by as "
                "much, or set network.encoder.gradient_checkpointing=true; then use --resume."
            ) from error
        if said.startswith("DataLoader worker"):
            raise TrainingError(
                f"a data-loading process ended without a message ({said}), most often for lack of memory. "
                "Lower data.workers, then use --resume."
            ) from error
        raise


def _brought_home(text: str) -> Exception:
    """Return the error that a process marked, or its whole traceback."""
    found = re.search(re.escape(_MARK) + r"(\[.*\])", text)
    if found is None:
        return RuntimeError(text)
    name, message = json.loads(found[1])
    kind = getattr(errors, name, TrainingError)
    return kind(message) if issubclass(kind, ThreefoldError) else TrainingError(message)
