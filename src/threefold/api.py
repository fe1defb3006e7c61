"""The functions of `import threefold as tf`: training and using runs from Python.

Each function corresponds to the command of the same name and raises the error that the command would print.
The names are exported by `threefold`, which imports this module on first use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.errors import PredictionsError, UsageError
from threefold.evaluation.by_task import KnownTasks, numbers_by_task
from threefold.evaluation.comparison import difference_of, mean_of
from threefold.evaluation.estimate import COLUMNS, Difference, Estimate
from threefold.evaluation.evaluate import Evaluation
from threefold.evaluation.evaluate import evaluate as evaluate_predictions
from threefold.evaluation.measures import OF_ALL, Tables, measured_pair
from threefold.evaluation.metrics import is_share, largest_difference
from threefold.evaluation.predictions import Predictions, read_predictions, validate
from threefold.experiment import EvaluationSpec, Experiment
from threefold.experiments import load_experiment, read_experiment
from threefold.models.store import run_path
from threefold.run import Epoch, RunFolder

if TYPE_CHECKING:
    from threefold.inference.listing import Inputs
    from threefold.inference.output import Prediction
    from threefold.inference.predictor import Predictor
    from threefold.training.plan import Plan
    from threefold.training.progress import TrainingProgress

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Results:
    """All metrics of an evaluation, with n and intervals.

    Attributes:
        evaluation: of the columns without a task's prefix; with the threshold and notes.
        tasks: the estimates of each task with its own columns, by the task's name.
    """

    evaluation: Evaluation
    tasks: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """A long table with one row per estimate: task (empty: the only one of its kind), level, group_kind,
        group, metric, class_name, value, low, high, n, patients, positives, replicates_missing, note, leaks.
        """
        rows = [
            {"task": task, **row.record()}
            for task, numbers in (("", self.evaluation.rows), *self.tasks.items())
            for row in numbers
        ]
        return pd.DataFrame(rows, columns=["task", *COLUMNS]).astype({"positives": "Int64"})


@dataclass(frozen=True)
class Run:
    """A run, the output folder of a training; or an ensemble of runs, which predicts and is evaluated as one.

    Attributes:
        path: the folder.
    """

    path: Path
    _predictors: dict[tuple[str, Epoch | None, bool, bool], Predictor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def members(self) -> tuple[Run, ...]:
        """The runs of an ensemble; a run alone is its own only member.

        Raises:
            RunError: a member is gone, or another run now.
        """
        from threefold.runs.ensembles import member_runs

        return tuple(Run(run.path) for run in member_runs(self.path))

    @property
    def experiment(self) -> Experiment:
        """The experiment with all defaults.

        Raises:
            ExperimentError: the file is damaged.
            RunError: it is an ensemble; each of its members has one.
        """
        run = RunFolder(self.path)
        run.read_status()
        return read_experiment(run.experiment)

    @property
    def status(self) -> dict[str, Any]:
        """Content of status.json: state, epoch, epochs, metric, best_epoch, best_value, threshold.

        Raises:
            RunError: the file is damaged; or it is an ensemble, whose members have one each.
        """
        return RunFolder(self.path).read_status()

    def predict(
        self,
        inputs: Inputs,
        out: PathLike | None = None,
        *,
        device: str = "cpu",
        weights: Epoch | None = None,
        flips: bool = False,
        disagreement_maps: bool = False,
    ) -> list[Prediction]:
        """Predict images, folders, DICOM series or cohorts; no labels are needed.

        Keeps all predictions in memory, each with its image. For more images than fit, iterate over
        `predictor().predict(inputs)`.

        Args:
            inputs: a path, several paths, a cohort, or the files of one case by channel.
            out: a folder for predictions.csv and masks; existing predictions are neither repeated nor
                returned. None: write nothing.
            device: cpu, cuda, cuda:1, ...
            weights: weights of the best or the last epoch; None: the experiment's choice.
            flips: average over mirror images, along the axes that the recipe's augmentation mirrors.
            disagreement_maps: of an ensemble, return (and write) how far its members are apart at each voxel.

        Raises:
            RunError: the run has no (such) weights, or `out` contains something else.
            ImageError: an input is unreadable, or does not match the training data.
            CohortError: a cohort is unreadable, or has targets that the network was not trained for.
            UsageError: the device does not exist; or `flips`, and the recipe mirrors along no axis; or
                `disagreement_maps` of a single run.
        """
        predicting = self.predictor(device, weights, flips=flips, disagreement_maps=disagreement_maps)
        return list(predicting.predict(inputs, out))

    def predictor(
        self,
        device: str = "cpu",
        weights: Epoch | None = None,
        *,
        flips: bool = False,
        disagreement_maps: bool = False,
    ) -> Predictor:
        """Return the run's network, loaded once per device and weights; errors as for `predict`.

        Of an ensemble, the weights of one member at a time are loaded while it predicts.
        """
        key = device, weights, flips, disagreement_maps
        if key not in self._predictors:
            from threefold.runs.ensembles import load_predictor

            made = load_predictor(
                self.path, device=device, weights=weights, flips=flips, maps=disagreement_maps
            )
            self._predictors[key] = made
        return self._predictors[key]

    def evaluate(
        self,
        cohort: Cohort | PathLike | None = None,
        *,
        device: str = "cpu",
        weights: Epoch | None = None,
    ) -> Results:
        """Evaluate the run's test part, or another cohort.

        Writes tables, figures and results.json to the run folder, or to its evaluations/COHORT.

        Args:
            cohort: another cohort to predict and evaluate; all its cases are test cases. None: the run's
                predictions of its test part; of a cross-validation, those out of fold.
            device: device to predict another cohort on.
            weights: weights of the best or the last epoch; None: the experiment's choice.

        Raises:
            RunError: the run has not finished, was changed since, or has no such weights.
            PredictionsError: its predictions are damaged.
            CohortError: the cohort is unreadable, or has other targets than the run was trained for.
            ImageError: none of its cases is readable.
        """
        from threefold.runs.crossvalidated import evaluate_own
        from threefold.runs.evaluate import evaluate_run_on

        if cohort is not None:
            report = evaluate_run_on(RunFolder(self.path), _cohort(cohort), device=device, weights=weights)
        else:
            report = evaluate_own(self.path, weights, device=device)
        return Results(report.evaluation, report.by_task)

    def report(self, out: PathLike | None = None) -> Path:
        """Write everything in the run and its evaluations to one HTML file; return its path.

        Args:
            out: the file; None: report.html in the run folder.

        Raises:
            RunError: a part of the run is damaged, or the file can't be written.
        """
        from threefold.studies.reports import report

        return report(self.path, None if out is None else Path(out))


def recipe(recipe_or_file: PathLike, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Experiment:
    """Return the experiment of a recipe or a YAML file, with overrides.

    Args:
        recipe_or_file: a name listed by `threefold recipes list`, or the path of a YAML file.
        overrides: values by key path, `{"training.epochs": 5}`, or as on the command line,
            `["training.epochs=5"]`.

    Raises:
        ExperimentError: with the key path and the nearest valid key or recipe.
    """
    return load_experiment(os.fspath(recipe_or_file), overrides)


def auto(
    cohort: Cohort | PathLike,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    budget: float = 1800.0,
) -> Experiment:
    """Return an experiment chosen for a cohort; its `description` gives the reason for each choice.

    docs/how-to/own-data.md lists the rules.

    Args:
        cohort: the cohort to be trained on, or its folder.
        overrides: values that are not to be chosen, as for `recipe`.
        budget: seconds that the training may take on this machine at its current load.

    Raises:
        CohortError: the cohort can't be divided, or has no target that can be learnt.
        ExperimentError: an override is invalid, or does not fit the choices.
        ImageError: with the case that can't be read.
        UsageError: the budget is too short.
    """
    from threefold.training.auto import choose

    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return choose(_cohort(cohort), overrides, budget=budget)[0]


def train(
    experiment: Experiment | Plan,
    cohort: Cohort | PathLike,
    folder: PathLike,
    *,
    resume: bool = False,
    progress: TrainingProgress | None = None,
) -> Run:
    """Train an experiment on a cohort; return the finished run.

    All checks are made before the folder is created. After a killed process, `resume` continues the run and
    ends with the same weights.

    Args:
        experiment: from `recipe` or `auto`, or its `plan`.
        cohort: the training cohort, or its folder.
        folder: the run folder to create.
        resume: continue an existing run, or start it if there is none.
        progress: receives the progress; None: a bar or one line per epoch, on standard error.

    Raises:
        CohortError, ExperimentError, ImageError, UsageError, WeightsError: as `plan`.
        RunError: the folder exists, belongs to another experiment or cohort, or is not writable; the initial
            weights were trained on test cases.
        TrainingError: a loss was not finite.
        KeyboardInterrupt: interrupted; the same call with `resume` continues.
    """
    from threefold.training.progress import terminal_progress
    from threefold.training.run import train as train_run

    told = progress or terminal_progress()
    try:
        return Run(train_run(experiment, _cohort(cohort), Path(folder), resume=resume, progress=told).path)
    finally:
        told.stop()


def load_run(folder: PathLike) -> Run:
    """Return the run in a folder, finished or not, or the ensemble in it.

    Raises:
        RunError: the folder is neither, or its status is damaged; a member is gone, or another run now.
    """
    from threefold.runs.ensembles import member_runs

    path = run_path(folder)
    for run in member_runs(path):
        run.read_status()
    return Run(path)


def predict(
    run: Run | PathLike, inputs: Inputs, out: PathLike | None = None, *, device: str = "cpu"
) -> list[Prediction]:
    """Predict images, folders, DICOM series or cohorts with a run or a run folder: `Run.predict`."""
    return _run(run).predict(inputs, out, device=device)


def evaluate(
    source: Run | PathLike | pd.DataFrame,
    *,
    positive: str | None = None,
    threshold: float | None = None,
    metrics: Sequence[str] = (),
) -> Results:
    """Evaluate a run, or a table of predictions of any program.

    A run is evaluated by `Run.evaluate`. For a table, nothing is written.

    Args:
        source: a run or its folder; a table of predictions (CSV file or DataFrame) with the columns listed in
            docs/reference/metrics.md: case_id, label and probability_CLASS, or those of masks.
        positive: the positive class of a table with two classes; None: that of the last column.
        threshold: the decision threshold of a table with two classes; None: chosen on the table's validation
            part, or 0.5.
        metrics: your own metrics for a table, computed beside the built-in ones: module:NAME of a `Metric`
            (in a notebook __main__:NAME), or a name from an installed package.

    Raises:
        ExperimentError: a metric can't be imported.
        UsageError: `positive`, `threshold` or `metrics` is given for a run, which has its own.
        RunError: the run has not finished, or was changed since.
        PredictionsError: with the column and the case, what was expected and what was found.
    """
    predictions = _opened(source, positive)
    if isinstance(predictions, Run):
        if positive is not None or threshold is not None or metrics:
            raise UsageError(
                "positive, threshold and metrics are for a table of predictions; a run has its own. Leave "
                "them out."
            )
        return predictions.evaluate()
    if threshold is not None and predictions.positive is None:
        raise PredictionsError(
            f"a threshold is given, but there are {len(predictions.classes)} classes: only of two is one "
            "decided for by a threshold. Leave it out."
        )
    spec = EvaluationSpec(metrics=tuple(metrics))
    tasks = numbers_by_task(
        predictions.table,
        spec,
        known=KnownTasks(),
        leaks=predictions.leaks,
        evaluate_one=lambda one, _, cut: evaluate_predictions(one, spec, threshold=cut),
    )
    evaluation = evaluate_predictions(predictions, spec, threshold=threshold)
    return Results(evaluation, {one.task: one.rows for one in tasks})


def compare(
    first: Run | PathLike | pd.DataFrame,
    second: Run | PathLike | pd.DataFrame,
    metric: str = "auc",
    *,
    group: str = OF_ALL,
    replicates: int = 2000,
    confidence: float = 0.95,
) -> Difference:
    """Compare two runs or tables of predictions on the test cases for which both have the metric.

    The difference is paired: the bootstrap draws the same patients, with all their cases, for both. It
    applies to these two runs; use a study to include the variance over training seeds.

    Args:
        first, second: a run or its folder, or a table of predictions (CSV file or DataFrame).
        metric: from docs/reference/metrics.md, for example auc, dice or dice:SVC; of a task with columns of
            its own, density.auc, age.mae or findings.subdural.auc; your own metric, module:NAME.
        group: all, a site group, a site, a class, or COLUMN=VALUE for another column.
        replicates: number of bootstrap replicates.
        confidence: of the intervals.

    Returns:
        The metric of both, and the second minus the first (`change`), each with n and interval; and the
        two-sided `p` of no difference.

    Raises:
        PredictionsError: the metric or group does not exist, or a case has another patient or label in the
            other table.
        RunError: a run has not finished, or was changed since.
    """
    tables = [_tables(source) for source in (first, second)]
    pair = measured_pair(tables[0], tables[1], metric, group)
    asked: dict[str, Any] = {
        "replicates": replicates,
        "confidence": confidence,
        "metric": metric,
        "group": group,
        "leaks": any(each.predictions.leaks for each in tables),
    }
    each = [mean_of([one], is_share=is_share(metric), **asked).estimate for one in pair]
    effect = difference_of([pair], largest=largest_difference(metric), **asked)
    return Difference(first=each[0], second=each[1], change=effect.estimate, p=effect.p)


def _cohort(cohort: Cohort | PathLike) -> Cohort:
    return cohort if isinstance(cohort, Cohort) else read_cohort(cohort)


def _run(run: Run | PathLike) -> Run:
    return run if isinstance(run, Run) else load_run(run)


def _opened(source: Run | PathLike | pd.DataFrame, positive: str | None = None) -> Run | Predictions:
    """Return a run, or a table of predictions as such: a file is a table, a folder is a run's."""
    if isinstance(source, Run):
        return source
    if isinstance(source, pd.DataFrame):
        return validate(source, positive=positive)
    path = Path(source)
    is_table = path.is_file() or path.suffix == ".csv"
    return read_predictions(path, positive=positive) if is_table else load_run(path)


def _tables(source: Run | PathLike | pd.DataFrame) -> Tables:
    """Return what is compared: of a run with its own threshold and with what `explain` found."""
    opened = _opened(source)
    if not isinstance(opened, Run):
        return Tables(opened)
    from threefold.studies.comparison import run_tables

    return run_tables(RunFolder(opened.path))
