"""After the last epoch: weights to share, predictions, the decision threshold."""

from __future__ import annotations

import json
from collections.abc import Sequence

import safetensors.torch

import threefold
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.splits import Split
from threefold.experiment import Experiment
from threefold.run import RunFolder, write_atomically
from threefold.training.checkpoints import load_checkpoint
from threefold.training.history import Row, monitored
from threefold.training.progress import TrainingProgress


def finish(
    experiment: Experiment,
    cohort: Cohort,
    split: Split,
    run: RunFolder,
    history: Sequence[Row],
    progress: TrainingProgress,
) -> float | None:
    """Write weights.safetensors, weights.json and predictions.csv of the best epoch.

    Returns:
        The threshold chosen on the validation cases; None without a two-class diagnosis.
    """
    write_weights(experiment, cohort, run, history)
    progress.say("predicting the validation and test cases")
    return _predict(experiment, cohort, split, run, progress)


def write_weights(experiment: Experiment, cohort: Cohort, run: RunFolder, history: Sequence[Row]) -> None:
    """Write the best epoch's weights, and beside them what they are."""
    best = load_checkpoint(run.best_checkpoint)
    epoch = int(best["epoch"])
    state = {name: tensor.contiguous() for name, tensor in best["network"].items()}
    metadata = {"program": "threefold", "version": threefold.__version__}
    write_atomically(run.weights, safetensors.torch.save(state, metadata=metadata))
    selection = experiment.training.selection
    description = {
        "experiment": experiment.name,
        "network": experiment.network.model_dump(mode="json"),
        "tasks": list(experiment.tasks.names),
        "preprocessing": experiment.data.preprocessing.model_dump(mode="json"),
        "cohort": cohort.spec.name,
        "classes": list(cohort.spec.classes),
        "epoch": epoch,
        "metric": selection.metric,
        "value": monitored(history[epoch - 1], selection),
        **metadata,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    write_atomically(run.weights.with_suffix(".json"), text)


def _predict(
    experiment: Experiment, cohort: Cohort, split: Split, run: RunFolder, progress: TrainingProgress
) -> float | None:
    raise NotImplementedError
