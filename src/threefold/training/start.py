"""The network a training starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from threefold.cohorts.cohort import CohortSpec
from threefold.errors import RunError
from threefold.experiment import Experiment
from threefold.networks.joint import JointSwin
from threefold.networks.pretrained import LoadReport, load_pretrained
from threefold.run import RunFolder
from threefold.tasks.build import build_network
from threefold.tasks.task import Task
from threefold.training.checkpoints import load_checkpoint


def pretraining_folder(run: RunFolder) -> RunFolder:
    """Return the folder of the run that is trained first."""
    return RunFolder(run.path / "before")


def starting_network(
    experiment: Experiment, cohort: CohortSpec, run: RunFolder, tasks: Sequence[Task] | None = None
) -> tuple[nn.Module, LoadReport | None]:
    """Build the network (random weights from torch's global generator) and give it what it starts from.

    Returns:
        The network, and what became of the weights that it was given.

    Raises:
        WeightsError: if `initial_weights`, or the encoder trained before, does not fit.
        RunError: if the run before has no weights.
    """
    network = build_network(experiment, cohort, tasks)
    report = None
    if experiment.initial_weights is not None:
        spec = experiment.initial_weights
        report = load_pretrained(
            network,
            Path(spec.path),
            decoders_from_encoder=spec.decoders_from_encoder,
        )
    if experiment.before is not None:
        before = _best_of(pretraining_folder(run))
        if isinstance(network, JointSwin):
            network.adopt(_encoder_of(before))
        else:
            report = load_pretrained(network, before, decoders_from_encoder=False)
    return network, report


def _best_of(before: RunFolder) -> Path:
    if not before.best_checkpoint.is_file():
        raise RunError(f"{before.path}: the run before has no best checkpoint; train it with --resume.")
    return before.best_checkpoint


def _encoder_of(checkpoint: Path) -> dict[str, Tensor]:
    state = load_checkpoint(checkpoint)["network"]
    return {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}
