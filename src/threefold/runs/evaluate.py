"""Evaluating what runs left: a run on its own cohort, a run on another one, anyone's table of predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.checksums import checksum_of, note_unchecked
from threefold.cohorts.cohort import Cohort, CohortSpec, fingerprint, read_cohort
from threefold.cohorts.failures import Failures, left_out_notes, none_left, read_failures, write_failures
from threefold.cohorts.splits import Split, read_split
from threefold.core.targets import ClassTarget, NumberTarget
from threefold.csv_tables import as_numbers
from threefold.errors import CohortError, PredictionsError, RunError
from threefold.evaluation.by_task import KnownTasks
from threefold.evaluation.predictions import Predictions, read_predictions, write_predictions
from threefold.evaluation.structures import read_structures_table, with_structures
from threefold.experiment import EvaluationSpec, Experiment
from threefold.experiments import read_experiment
from threefold.locks import alone_in
from threefold.reporting.run_report import Report, choose_examples, write_report
from threefold.run import PROPAGATION, Epoch, RunFolder, make_folder, put_in_place, write_atomically
from threefold.runs.finished import verify_made, verify_settings
from threefold.tasks.resolve import only_diagnosis, targets_of
from threefold.validation import parse_spec

if TYPE_CHECKING:
    from threefold.inference.predictor import Predictor

Progress = Callable[[int, int], None]

FAILED_NAME = "failed.csv"
"""Of the cases that are left out of an evaluation, among its tables; absent where there are none."""


def evaluate_run(run: RunFolder) -> Report:
    """Evaluate the test part of a finished run; tables and figures go into the run folder.

    The network is not asked again: everything comes from the run's predictions, the threshold from those of
    the validation part, by the rule with which the run chose its own.

    Raises:
        RunError: not a run, or one that has not finished.
        PredictionsError: the predictions were damaged.
    """
    predictions = read_run_predictions(run)
    experiment, trained, folder = of_run(run)
    examples = None
    cohort = cohort_if_there(folder)
    if cohort is not None:
        examples = choose_examples(predictions, cohort, trained, experiment.data.preprocessing, run.masks)
    return write_report(
        predictions,
        experiment.evaluation,
        run.path,
        threshold=None,
        history=run.metrics,
        examples=examples,
        known=known_tasks(experiment, trained, {}),
    )


def read_run_predictions(run: RunFolder) -> Predictions:
    """Return the predictions of a finished run, structures included.

    Raises:
        RunError: not a run, or one that has not finished.
        PredictionsError: the predictions were damaged.
    """
    status = run.read_status()
    if not run.predictions.is_file():
        raise RunError(
            f"{run.path}: has no {run.predictions.name} (state: {status['state']}). Let its training finish "
            f"(`threefold train ... --resume`); if it has, recreate it: `threefold finish {run.path}`."
        )
    verify_settings(run)
    experiment, trained, _ = of_run(run)
    asked = only_diagnosis(experiment, trained)
    predictions = read_predictions(
        run.predictions,
        classes=None if asked is None else asked.classes,
        positive=positive_of(asked),
        leaks=read_split(run.split).leaks,
    )
    if not checksum_of(run.predictions).is_file():
        note_unchecked(run.predictions)
    verify_made(run, run.predictions, run.structures, run.failed, run.metrics)
    early = stopped_early(status)
    if early is not None:
        predictions = replace(predictions, notes=(*predictions.notes, early))
    failed = read_failures(run.failed)
    predictions = without_failed(predictions, failed, len(predictions.table) + len(failed))
    return with_structures_beside(predictions, run)


def evaluate_weights(
    run: RunFolder, weights: Epoch, *, device: str = "cpu", progress: Progress | None = None
) -> Report:
    """Evaluate the test part of a run with the weights of its best or its last epoch.

    With those that the run predicts with this is `evaluate_run`; with the others the cases are predicted, and
    the report goes to RUN/evaluations, as `evaluate_run_on`.

    Raises:
        CohortError: the run's cohort is not where it was, or changed since.
        RunError: as `evaluate_run`; or the run keeps no such weights.
        ImageError: no case can be read.
    """
    from threefold.inference.predictor import weights_of

    if weights_of(run, weights) == run.weights:
        return evaluate_run(run)
    cohort = cohort_of_run(run)
    tested = replace(cohort, cases=read_split(run.split).cases(cohort, "test"))
    return evaluate_run_on(run, tested, device=device, weights=weights, progress=progress)


def evaluate_run_on(
    run: RunFolder,
    cohort: Cohort,
    *,
    device: str = "cpu",
    weights: Epoch | None = None,
    progress: Progress | None = None,
) -> Report:
    """Predict and evaluate a run, or an ensemble, on another cohort, all of whose cases are test cases.

    The run's threshold holds; nothing is chosen on the new cohort.

    The folder RUN/evaluations/<the cohort folder's name> holds the report, the predictions and the masks
    (NAME-best or NAME-last where the weights are named). It appears, or takes the place of an earlier
    evaluation of the same cohort, when it is whole.
    A case that can't be read, or is not what the network was trained on, is left out, which the report says.

    Raises:
        CohortError: the cohort asks another question than the run was trained for.
        RunError: another cohort's evaluation is in that folder.
        ImageError: no case can be read.
    """
    from threefold.runs.ensembles import load_predictor

    predictor = load_predictor(run.path, device=device, weights=weights)
    name = cohort.folder.resolve().name + ("" if weights is None else f"-{weights}")
    with _in_place_of(run.path / "evaluations" / name, cohort) as (beside, out):
        report = _evaluate_on(RunFolder(beside), run, predictor, cohort, device=device, progress=progress)
    return replace(
        report,
        tables=tuple(out / path.relative_to(beside) for path in report.tables),
        figures=tuple(out / path.relative_to(beside) for path in report.figures),
    )


def _evaluate_on(
    out: RunFolder,
    run: RunFolder,
    predictor: Predictor,
    cohort: Cohort,
    *,
    device: str,
    progress: Progress | None,
) -> Report:
    """Predict and evaluate a cohort into a folder that is there."""
    from threefold.inference.calibration import with_trust
    from threefold.inference.cases import predict_cases
    from threefold.runs.ensembles import member_runs

    failed: Failures = {}
    tables = predict_cases(
        predictor.network,
        predictor.experiment,
        cohort,
        None,
        trained=predictor.cohort,
        seen=predictor.seen,
        device=device,
        masks=out.masks,
        failed=failed,
        progress=progress,
    )
    if not len(tables.cases):
        raise none_left(str(cohort.folder), failed)
    table = with_trust(tables, predictor.calibration, predictor.training, predictor.questions)
    write_predictions(table, out.predictions)
    if len(tables.structures):
        write_predictions(tables.structures, out.structures)
    experiment, trained = predictor.experiment, predictor.cohort
    asked = only_diagnosis(experiment, trained)
    predictions = read_predictions(
        out.predictions,
        classes=None if asked is None else asked.classes,
        positive=positive_of(asked),
        leaks=any(
            _shares_patients(member, cohort_if_there(of_run(member)[2]), cohort)
            for member in member_runs(run.path)
        ),
    )
    predictions = _with_agreement(with_structures_beside(predictions, out))
    examples = choose_examples(predictions, cohort, trained, experiment.data.preprocessing, out.masks)
    predictions = without_failed(predictions, failed, len(cohort.cases))
    report = write_report(
        predictions,
        experiment.evaluation,
        out.path,
        threshold=predictor.threshold,
        examples=examples,
        known=known_tasks(experiment, trained, predictor.thresholds),
    )
    write_failures(out.tables / FAILED_NAME, failed)
    return report


def without_failed(predictions: Predictions, failed: Failures, cases: int) -> Predictions:
    """Return predictions that say which of so many cases are left out, and why."""
    notes = left_out_notes(failed, cases)
    return replace(predictions, notes=(*predictions.notes, *notes), left_out=failed)


def _with_agreement(predictions: Predictions) -> Predictions:
    """Return an ensemble's predictions with a note on the cases on which its members decide differently."""
    if "member_agreement" not in predictions.table:
        return predictions
    agreement = as_numbers(predictions.table[["member_agreement"]])["member_agreement"]
    apart = int((agreement < 1).sum())
    note = (
        f"The members of the ensemble decide differently on {apart} of {len(agreement)} cases "
        "(member_agreement below 1 in predictions.csv)."
    )
    return replace(predictions, notes=(*predictions.notes, note))


def evaluate_propagated(
    cohort: Cohort,
    split: Split | None,
    out: Path,
    spec: EvaluationSpec,
    *,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a cohort's propagated structures against its reference, as a prediction without network.

    The folder OUT/propagation holds the tables. A case whose registration failed has no structures: all of
    them are missed. A case whose files can't be read is left out, which the report says.

    Args:
        cohort: with propagated structures, and references.
        split: which cases are test cases; None: all.
        out: gets `propagation`.
        spec: replicates, confidence and rules.
        progress: told after each case.

    Raises:
        CohortError: no test case has a reference, or the split does not know a case.
        ImageError: no case can be read.
    """
    folder = RunFolder(out / PROPAGATION)
    failed: Failures = {}
    write_label_tables(cohort, split, folder, failed=failed, progress=progress)
    predictions = read_label_tables(folder, leaks=split is not None and split.leaks)
    predictions = without_failed(predictions, failed, len(failed) + len(predictions.table))
    report = write_report(predictions, spec, folder.path, threshold=None)
    write_failures(folder.tables / FAILED_NAME, failed)
    return report


def write_label_tables(
    cohort: Cohort,
    split: Split | None,
    folder: RunFolder,
    *,
    failed: Failures | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the tables of a cohort's own structures, held against its reference, into a folder.

    Args:
        cohort: with structures and references.
        split: which cases are test cases; None: all.
        folder: where the tables go.
        failed: gets each case that can't be read, and why; None: the first one raises.
        progress: told after each case.

    Raises:
        CohortError: as `evaluate_propagated`.
        ImageError: naming the case that can't be read, where `failed` is None; else, no case can be read.
    """
    from threefold.inference.label_tables import label_tables

    tables = label_tables(cohort, split, failed=failed, progress=progress)
    make_folder(folder.path)
    write_predictions(tables.structures, folder.structures)
    write_predictions(tables.cases, folder.predictions)  # last: where it is, both are


def read_label_tables(folder: RunFolder, *, leaks: bool = False) -> Predictions:
    """Return what `write_label_tables` wrote.

    Raises:
        PredictionsError: a table was damaged, or is not there.
    """
    return with_structures_beside(read_predictions(folder.predictions, leaks=leaks), folder)


def evaluate_propagated_as(
    run: RunFolder, cohort: Cohort, out: Path, *, progress: Progress | None = None
) -> Report:
    """Evaluate a cohort's propagated structures on a run's test cases, with the run's evaluation settings.

    Raises:
        RunError: not a run.
        CohortError, ImageError: as `evaluate_propagated`.
    """
    run.read_status()
    verify_settings(run)
    spec = read_experiment(run.experiment).evaluation
    return evaluate_propagated(cohort, read_split(run.split), out, spec, progress=progress)


def with_structures_beside(predictions: Predictions, run: RunFolder) -> Predictions:
    """Return the predictions with the table of structures beside them, where there is one."""
    if not (run.structures.is_file() or checksum_of(run.structures).is_file()):
        return predictions
    return with_structures(predictions, read_structures_table(run.structures), source=str(run.structures))


def evaluate_table(
    path: Path,
    out: Path,
    spec: EvaluationSpec,
    *,
    structures: Path | None = None,
    positive: str | None = None,
    threshold: float | None = None,
) -> Report:
    """Evaluate anyone's table of predictions into OUT/tables and OUT/figures.

    Args:
        path: the table (CSV).
        out: gets tables and figures.
        spec: replicates, confidence and rules.
        structures: the table of structures that goes with it.
        positive: of two classes, the one that sensitivity is about; None: the last column's.
        threshold: of its probability; None: chosen on the table's validation part, or 0.5.

    Raises:
        PredictionsError: naming the table, the column and the case.
    """
    predictions = read_predictions(path, positive=positive)
    if threshold is not None and predictions.positive is None:
        raise PredictionsError(
            f"{path}: a threshold is given, but there are {len(predictions.classes)} classes: only of two is "
            "one decided for by a threshold. Leave it out."
        )
    if structures is not None:
        predictions = with_structures(predictions, read_structures_table(structures), source=str(structures))
    return write_report(predictions, spec, out, threshold=threshold)


@contextmanager
def _in_place_of(path: Path, cohort: Cohort) -> Iterator[tuple[Path, Path]]:
    """Make the folder of a cohort's evaluation: what stops on the way leaves the earlier one, or none.

    Yields:
        A folder beside it, to be filled, and the folder itself.

    Raises:
        RunError: another cohort's evaluation is there, or another process is evaluating the run.
    """
    make_folder(path.parent)
    with alone_in(path.parent, f"{path.parent}: another process is evaluating this run. Wait until it ends."):
        _refuse_another(RunFolder(path), cohort)
        beside, old = (path.with_name(f".{path.name}.{which}") for which in ("partial", "old"))
        _settle(path, beside, old)  # after a process that was killed
        make_folder(beside)
        described = {
            "name": cohort.spec.name,
            "fingerprint": fingerprint(cohort),
            "folder": str(cohort.folder.resolve()),
        }
        text = json.dumps(described, indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomically(RunFolder(beside).cohort, text)
            yield beside, path
            if path.exists():
                put_in_place(path, old)
            put_in_place(beside, path)
        except OSError as error:
            raise RunError(
                f"{path}: can't be made ({error.strerror or error}). Free space or fix the permission, and "
                "repeat the command."
            ) from error
        finally:
            _settle(path, beside, old)


def _settle(path: Path, beside: Path, old: Path) -> None:
    """Put an earlier evaluation back where no new one came, and remove what is neither."""
    if old.exists() and not path.exists():
        put_in_place(old, path)
    for left_over in (beside, old):
        shutil.rmtree(left_over, ignore_errors=True)


def _refuse_another(out: RunFolder, cohort: Cohort) -> None:
    """Refuse to replace another cohort's evaluation; one that never became whole is none."""
    if not (out.cohort.is_file() and (out.tables / "metrics.csv").is_file()):
        return
    known = out.read_cohort()
    if known["fingerprint"] != fingerprint(cohort):
        raise RunError(
            f"{out.path}: holds the evaluation of another cohort ('{known['name']}' of {known['folder']}; "
            "its cohort.yaml or cases.csv differ). Rename that folder to keep it, or remove it."
        )


def of_run(run: RunFolder) -> tuple[Experiment, CohortSpec, Path]:
    """Return a run's experiment, the meaning of its cohort, and where that was."""
    described = run.read_cohort()
    return (
        read_experiment(run.experiment),
        parse_spec(CohortSpec, described["spec"], where=str(run.cohort), error=RunError),
        Path(described["folder"]),
    )


def known_tasks(experiment: Experiment, trained: CohortSpec, thresholds: Mapping[str, float]) -> KnownTasks:
    """Return what a run knows of its tasks and its predictions do not say."""
    targets = {name: trained.all_targets[of] for name, of in targets_of(experiment, trained).items()}
    positives = {name: positive_of(one) for name, one in targets.items() if isinstance(one, ClassTarget)}
    return KnownTasks(
        thresholds,
        {name: positive for name, positive in positives.items() if positive is not None},
        {name: one.unit for name, one in targets.items() if isinstance(one, NumberTarget)},
    )


def positive_of(asked: ClassTarget | None) -> str | None:
    """Return the positive class of a diagnosis of two; None for any other."""
    index = None if asked is None else asked.positive_class
    return None if asked is None or index is None else asked.classes[index]


def stopped_early(status: Mapping[str, Any]) -> str | None:
    """Return that a run was finished before its training was, in a sentence; None where it was not."""
    early = status.get("stopped_early")
    if not early:
        return None
    return (
        f"The training stopped ({early['state']}) after {early['epochs']} of {early['of']} epochs; "
        f"`threefold finish` made a run of its best epoch until then, {status['best_epoch']}."
    )


def cohort_if_there(folder: Path) -> Cohort | None:
    """Return the cohort, or None where it was moved or changed: numbers do not need it, pictures do."""
    try:
        return read_cohort(folder, allow_outside=True)
    except CohortError:
        return None


def cohort_of_run(run: RunFolder, given: Cohort | None = None) -> Cohort:
    """Return the cohort that a run was trained on.

    Args:
        run: whose cohort.
        given: it, where it was moved; None: where it was then.

    Raises:
        RunError: not a run.
        CohortError: it is not where it was, or it is another one, or changed since.
    """
    _, _, folder = of_run(run)
    try:
        cohort = read_cohort(folder, allow_outside=True) if given is None else given
    except CohortError as error:
        raise CohortError(
            f"{run.path}: the cohort that it was trained on can't be read ({error}). Where it was moved, "
            "name its folder with --cohort."
        ) from error
    if fingerprint(cohort) != run.read_cohort()["fingerprint"]:
        raise CohortError(
            f"{cohort.folder}: not the cohort that {run.path} was trained on, or its cohort.yaml or cases.csv"
            " changed since. Put the cohort of then back, or name it with --cohort where it was moved."
        )
    return cohort


def _shares_patients(run: RunFolder, trained_on: Cohort | None, cohort: Cohort) -> bool:
    """Whether a patient who trained or validated the run is in the other cohort, by site and patient id.

    Where the cohort trained on was moved, its patients are not known, and its cases' ids stand in for them.
    """
    parts = read_split(run.split).parts
    if trained_on is None:
        return any(parts.get(case.case_id, "test") != "test" for case in cohort.cases)
    known = {
        (case.site, case.patient_id) for case in trained_on.cases if parts.get(case.case_id, "test") != "test"
    }
    return any((case.site, case.patient_id) in known for case in cohort.cases)
