"""After the last epoch: weights to share, predictions, the decision threshold, the calibration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn

import threefold
from threefold.checksums import remove_table, seal_tensors, verify_table, verify_tensors
from threefold.cohorts.cohort import Cohort, CohortSpec
from threefold.cohorts.failures import Failures, listed, none_left, write_failures
from threefold.cohorts.splits import Split
from threefold.errors import RunError
from threefold.evaluation.classification import choose_threshold
from threefold.evaluation.predictions import NOT_MEASURED, probability_column, write_predictions
from threefold.experiment import Experiment, Part
from threefold.inference.calibration import Calibration, fit_calibration, with_trust, write_calibration
from threefold.inference.cases import CaseTables, predict_cases, training_features
from threefold.inference.out_of_distribution import FEWEST, TrainingFeatures, write_features
from threefold.run import Epoch, RunFolder, write_atomically
from threefold.runs.finished import verify_made
from threefold.tasks.build import build_network
from threefold.tasks.questions import questions_of
from threefold.training.checkpoints import load_checkpoint, load_network
from threefold.training.history import Row, monitored
from threefold.training.progress import TrainingProgress
from threefold.validation import read_table

if TYPE_CHECKING:
    import pandas as pd

_PREDICTED: tuple[Part, ...] = ("validation", "test")
_OTHER: Mapping[Epoch, Epoch] = {"best": "last", "last": "best"}


def finish(
    experiment: Experiment,
    cohort: Cohort,
    split: Split,
    run: RunFolder,
    history: Sequence[Row],
    progress: TrainingProgress,
) -> dict[str, Any]:
    """Write the weights, and predictions.csv and structures.csv of the epoch that the run predicts with.

    calibration.json and features.safetensors are of these weights too.

    Cases that can't be read any more are left out; failed.csv says which and why. The thresholds of the other
    epoch's weights are in their description.

    Returns:
        What status.json gets to know: threshold, chosen on the validation cases (None without a two-class
        diagnosis), and thresholds, by task, where there are several diagnoses.

    Raises:
        ImageError: not one case of the validation or of the test part can be predicted.
    """
    which = experiment.training.selection.weights
    chosen, other = (_checkpoint(run, one) for one in (which, _OTHER[which]))
    _write_weights(chosen, experiment, cohort, run.weights, history)
    progress.say("predicting the validation and test cases")
    thresholds = _predict(chosen, experiment, cohort, split, run, progress)
    for epoch in _OTHER:
        for path in (run.other_weights(epoch), run.other_weights(epoch).with_suffix(".json")):
            path.unlink(missing_ok=True)
    if other["epoch"] != chosen["epoch"]:
        own = _thresholds_of(other, experiment, cohort, split, run)
        _write_weights(other, experiment, cohort, run.other_weights(_OTHER[which]), history, **own)
    return thresholds


def _checkpoint(run: RunFolder, which: Epoch) -> dict[str, Any]:
    """Return the checkpoint of the best or the last whole epoch; a kill may leave best.ckpt as the last."""
    best = load_checkpoint(run.best_checkpoint)
    last = load_checkpoint(run.last_checkpoint) if run.last_checkpoint.is_file() else best
    return best if which == "best" or best["epoch"] > last["epoch"] else last


def _write_weights(
    checkpoint: Mapping[str, Any],
    experiment: Experiment,
    cohort: Cohort,
    path: Path,
    history: Sequence[Row],
    **thresholds: Any,
) -> None:
    """Write an epoch's weights, and beside them what they are."""
    epoch = int(checkpoint["epoch"])
    state = {name: tensor.contiguous() for name, tensor in checkpoint["network"].items()}
    content = safetensors.torch.save(state, {"threefold": threefold.__version__})
    write_atomically(path, seal_tensors(content))
    selection = experiment.training.selection
    description = {
        "experiment": experiment.name,
        "network": experiment.network.model_dump(mode="json"),
        "tasks": list(experiment.tasks),
        "preprocessing": experiment.data.preprocessing.model_dump(mode="json"),
        "cohort": cohort.spec.name,
        "classes": list(cohort.spec.classes),
        "epoch": epoch,
        "metric": selection.metric,
        "value": monitored(history[:epoch], selection),
        "version": threefold.__version__,
        **thresholds,
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path.with_suffix(".json"), text)


def history_of_best(run: RunFolder) -> list[Row]:
    """Return the history up to the last whole epoch, which best.ckpt may be ahead of last.ckpt with.

    Raises:
        RunError: no epoch is whole.
    """
    if not run.best_checkpoint.is_file():
        raise RunError(
            f"{run.path}: has no checkpoint of a whole epoch ({run.best_checkpoint.name}), so there are no "
            f"weights to finish with. Train on: `threefold train {run.experiment} ... --resume`."
        )
    best = load_checkpoint(run.best_checkpoint)
    last = load_checkpoint(run.last_checkpoint) if run.last_checkpoint.is_file() else {}
    history = max((best.get("history", []), last.get("history", [])), key=len)
    if len(history) < int(best["epoch"]):  # best.ckpt held no history in earlier versions
        raise RunError(
            f"{run.path}: {run.best_checkpoint.name} is of epoch {best['epoch']}, of which there is no "
            f"record. Train that epoch again: `threefold train {run.experiment} ... --resume`."
        )
    return list(history)


def has_whole_outputs(run: RunFolder) -> bool:
    """Whether weights and predictions of a finished run, of all cases and all measures, are as written."""
    try:
        if run.failed.exists() or not (run.weights.is_file() and run.predictions.is_file()):
            return False
        verify_tensors(run.weights, RunError, "")
        for table in (run.predictions, run.structures):
            verify_table(table, RunError, "")
        verify_made(run)
        return NOT_MEASURED not in read_table(run.predictions, RunError, "")
    except RunError:
        return False


def _network_of(
    checkpoint: Mapping[str, Any], experiment: Experiment, cohort: Cohort, run: RunFolder
) -> nn.Module:
    network = build_network(experiment, cohort.spec)
    source = f"{run.best_checkpoint.parent}, epoch {checkpoint['epoch']}"
    load_network(network, checkpoint["network"], source)
    return network


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _thresholds_of(
    checkpoint: Mapping[str, Any], experiment: Experiment, cohort: Cohort, split: Split, run: RunFolder
) -> dict[str, Any]:
    """Return what status.json would say of thresholds, were the run to predict with a checkpoint."""
    asked = questions_of(experiment, cohort.spec)
    if all(one.kind != "class" or one.positive_class is None for one in asked):
        return {"threshold": None}
    found = predict_cases(
        _network_of(checkpoint, experiment, cohort, run),
        experiment,
        cohort,
        split,
        parts=("validation",),
        device=_device(),
        failed={},
    )
    return _thresholds(experiment, cohort.spec, found.cases)


def _predict(
    checkpoint: Mapping[str, Any],
    experiment: Experiment,
    cohort: Cohort,
    split: Split,
    run: RunFolder,
    progress: TrainingProgress,
) -> dict[str, Any]:
    """Write predictions.csv, the masks of the test cases and the calibration; return the thresholds."""
    import pandas as pd

    network = _network_of(checkpoint, experiment, cohort, run)
    failed: Failures = {}
    tables = [
        predict_cases(
            network,
            experiment,
            cohort,
            split,
            parts=(part,),
            device=_device(),
            masks=run.masks if part == "test" else None,
            failed=failed,
            progress=partial(progress.step, f"predicting {part}"),
        )
        for part in _PREDICTED
    ]
    for part, table in zip(_PREDICTED, tables, strict=True):
        if split.cases(cohort, part) and not len(table.cases):
            raise none_left(f"{cohort.folder}, {part} part", failed)
    write_failures(run.failed, failed)
    for line in listed(failed):
        progress.say(f"warning: {line}")
    unmeasured = [*chain.from_iterable(_unmeasured(table.cases) for table in tables)]
    if unmeasured:
        progress.say(
            f"warning: {len(unmeasured)} case(s) could not be measured whole (first {unmeasured[0]}); their "
            f"cells are empty. `threefold finish {run.path}` measures them again."
        )
    calibration, features = _calibrate(network, experiment, cohort, split, tables[0], run, progress)
    cases = [
        with_trust(table, calibration, features, questions_of(experiment, cohort.spec)) for table in tables
    ]
    structures = [table.structures for table in tables]
    for tables_of, path in ((cases, run.predictions), (structures, run.structures)):
        parts = [rows for rows in tables_of if len(rows)]
        if parts:
            write_predictions(pd.concat(parts, ignore_index=True), path)
        else:
            remove_table(path)
    return _thresholds(experiment, cohort.spec, tables[0].cases)


def _calibrate(
    network: nn.Module,
    experiment: Experiment,
    cohort: Cohort,
    split: Split,
    validation: CaseTables,
    run: RunFolder,
    progress: TrainingProgress,
) -> tuple[Calibration, TrainingFeatures | None]:
    """Write what the validation cases say of the predictions, and the training features."""
    questions = questions_of(experiment, cohort.spec)
    fitted = fit_calibration(validation.cases, questions, experiment.evaluation.coverage)
    found: list[NDArray[np.float32]] = []
    if validation.features:
        found = training_features(
            network,
            experiment,
            cohort.spec,
            split.cases(cohort, "train"),
            device=_device(),
            progress=partial(progress.step, "comparing the training cases"),
        )
    thresholds, known, why = None, None, "the network gives no features"
    if found:
        known = TrainingFeatures(np.stack(found))
        thresholds = known.thresholds(np.stack([*validation.features.values()]))
        why = "" if thresholds is not None else f"there are fewer than {FEWEST} training or validation cases"
    fitted = fitted.model_copy(update={"distances": thresholds, "no_distances": why})
    if known is None:
        run.features.unlink(missing_ok=True)
    else:
        write_features(run.features, known)
    write_calibration(run.calibration, fitted)
    for line in fitted.limits():
        progress.say(f"note: {line}")
    return fitted, known


def _unmeasured(cases: pd.DataFrame) -> Iterator[str]:
    """Yield each case that lacks a measure, with what and why."""
    if NOT_MEASURED in cases:
        lacking = cases[cases[NOT_MEASURED].notna()]
        yield from (
            f"{case}: {why}" for case, why in zip(lacking["case_id"], lacking[NOT_MEASURED], strict=True)
        )


def _thresholds(experiment: Experiment, cohort: CohortSpec, validation: pd.DataFrame) -> dict[str, Any]:
    """Choose thresholds on the labelled validation cases: as `threshold` that of the only diagnosis (None
    without one of two classes), as `thresholds` those of several, by task."""
    chosen: dict[str, float] = {}
    only: float | None = None
    for question in questions_of(experiment, cohort):
        if question.kind != "class" or question.positive_class is None:
            continue
        positive = question.classes[question.positive_class]
        labelled = validation[validation[f"{question.prefix}label"] != ""]
        threshold = choose_threshold(
            (labelled[f"{question.prefix}label"] == positive).to_numpy(),
            labelled[question.prefix + probability_column(positive)].to_numpy(),
            experiment.evaluation.threshold,
        )
        if not question.prefix:
            only = threshold
        elif threshold is not None:
            chosen[question.head] = threshold
    return {"threshold": only, **({"thresholds": chosen} if chosen else {})}
