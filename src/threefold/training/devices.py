"""Which devices train, and how the processes on them start."""

from __future__ import annotations

import logging
import os
import warnings

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from threefold.errors import UsageError
from threefold.experiment import TrainingSpec
from threefold.threads import available_cores

# Here and not in a function: spawned processes announce themselves before any of our code runs in them.
for _name, _level in (
    ("lightning.fabric", logging.WARNING),
    ("lightning.pytorch", logging.WARNING),
    ("torch.multiprocessing.spawn", logging.ERROR),
):
    logging.getLogger(_name).setLevel(_level)


def check_devices(training: TrainingSpec) -> None:
    """Refuse more devices than there are.

    Raises:
        UsageError: saying how many there are.
    """
    available, what = _available()
    if training.devices > available:
        raise UsageError(
            f"training.devices is {training.devices}, but this machine has {available} {what}. "
            f"Use training.devices={available} or fewer."
        )
    if training.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UsageError("training.precision is bf16, which this GPU does not compute in. Use 32.")


def make_fabric(training: TrainingSpec) -> Fabric:
    """Return what starts the processes and moves gradients between them.

    Several processes are spawned by this one, or, under torchrun or SLURM, were started by those.
    """
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if training.devices * training.nodes == 1:
        return Fabric(accelerator=accelerator, devices=1)
    strategy = DDPStrategy(start_method="popen" if _started_by_launcher() else "spawn")
    return Fabric(
        accelerator=accelerator, devices=training.devices, num_nodes=training.nodes, strategy=strategy
    )


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
    return bool(TorchElasticEnvironment.detect() or SLURMEnvironment.detect())


def _available() -> tuple[int, str]:
    if torch.cuda.is_available():
        return torch.cuda.device_count(), "GPU(s)"
    return available_cores(), "CPU core(s) and no GPU (each process needs a core)"
