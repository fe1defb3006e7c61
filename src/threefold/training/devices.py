"""Training devices and the start of their processes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from threefold.errors import UsageError
from threefold.experiment import TrainingSpec
from threefold.threads import available_cores

T = TypeVar("T")


def _announce_nothing() -> None:
    """Let Lightning's processes start without a word; its import, too, sets how much is said."""
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)


# Spawned processes, which have imported Lightning by then, announce themselves before any of our code runs.
_announce_nothing()


class Devices(Protocol):
    """Interface that starts the processes of a training and exchanges gradients, such as Lightning's
    Fabric."""

    @property
    def device(self) -> torch.device:
        """Device of this process."""

    @property
    def world_size(self) -> int:
        """Number of processes."""

    @property
    def global_rank(self) -> int:
        """This process's number, from 0."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this process writes."""

    def launch(self, work: Callable[[Any], T]) -> T:
        """Call `work` with itself in each process; return what the first one's gives."""

    def setup(self, module: nn.Module, optimiser: Optimizer) -> Any:
        """Return both, on the device and with gradients summed over the processes."""

    def backward(self, total: Tensor) -> None:
        """Add the gradients."""

    def no_backward_sync(self, module: Any, enabled: bool) -> AbstractContextManager[None]:
        """Leave the gradients of a backward pass in this process, if enabled."""

    def barrier(self) -> None:
        """Wait for all processes."""


class OneDevice:
    """This process alone, on the machine's first GPU or else its CPU; Lightning's import would cost 3 s."""

    world_size = 1
    global_rank = 0
    is_global_zero = True

    def __init__(self) -> None:
        self.device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

    def launch(self, work: Callable[[OneDevice], T]) -> T:
        """Call `work` with itself."""
        return work(self)

    def setup(self, module: nn.Module, optimiser: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Return both, the module's weights on the device."""
        return module.to(self.device), optimiser

    def backward(self, total: Tensor) -> None:
        """Add the gradients."""
        total.backward()  # type: ignore[no-untyped-call]

    def no_backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        """Do nothing: there is only one process."""
        return nullcontext()

    def barrier(self) -> None:
        """Return at once: there is only one process."""


def check_devices(training: TrainingSpec) -> None:
    """Refuse more devices than are available.

    Raises:
        UsageError: with the number of available devices.
    """
    available, what = _available()
    if training.devices > available:
        raise UsageError(
            f"training.devices is {training.devices}, but this machine has {available} {what}. "
            f"Use training.devices={available} or fewer."
        )
    if training.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UsageError("training.precision is bf16, which this GPU does not compute in. Use 32.")


def make_devices(training: TrainingSpec) -> Devices:
    """Return what starts the processes and moves gradients between them.

    Several processes are spawned by this one, or, under torchrun or SLURM, were started by those.
    """
    if training.devices * training.nodes == 1:
        return OneDevice()
    from lightning.fabric import Fabric
    from lightning.fabric.strategies.ddp import DDPStrategy

    _announce_nothing()
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    strategy = DDPStrategy(start_method="popen" if _started_by_launcher() else "spawn")
    fabric = Fabric(
        accelerator=accelerator, devices=training.devices, num_nodes=training.nodes, strategy=strategy
    )
    return cast("Devices", fabric)


def is_leader() -> bool:
    """Whether this process writes the run folder; others under a launcher, or on other nodes, do not."""
    ranks = ("RANK", "SLURM_PROCID") if _started_by_launcher() else ("NODE_RANK", "GROUP_RANK")
    return all(int(os.environ.get(name, "0")) == 0 for name in ranks)


def require_one_process(what: str) -> None:
    """Refuse to do in several processes what one does, which starts others where devices are asked for.

    Raises:
        UsageError: a launcher (torchrun, srun) started several.
    """
    names = ("WORLD_SIZE", "SLURM_NTASKS") if _started_by_launcher() else ()
    processes = max((int(os.environ.get(name, "1")) for name in names), default=1)
    if processes > 1:
        raise UsageError(
            f"{what} is one process, which starts others where training.devices asks for them; a launcher "
            f"started {processes}. Start it once, not once a device."
        )


def quiet_lightning() -> None:
    """Silence the advice that does not concern a user of this program, and nothing else."""
    for message in (
        r"The `srun` command is available",
        r"Grad strides do not match bucket view strides",
    ):
        warnings.filterwarnings("ignore", message=message)


def _started_by_launcher() -> bool:
    if not {"TORCHELASTIC_RUN_ID", "SLURM_NTASKS"} & os.environ.keys():
        return False
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    return bool(TorchElasticEnvironment.detect() or SLURMEnvironment.detect())


def _available() -> tuple[int, str]:
    if torch.cuda.is_available():
        return torch.cuda.device_count(), "GPU(s)"
    return available_cores(), "CPU core(s) and no GPU (each process needs a core)"
