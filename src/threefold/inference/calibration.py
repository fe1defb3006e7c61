"""What a run's validation cases say of its predictions: calibration.json of a run.

It is fitted once, when a run is finished, on the predictions of the validation part by the weights that the
run predicts with: a temperature of each diagnosis and of each finding (`evaluation.calibration`), the
spread of each number, and the bounds of sets and intervals with a stated coverage (`evaluation.conformal`).
It adds columns to the table of predictions, with the prefix of the task as all its columns:

  calibrated_probability_<class>   the probability at the temperature; the raw one where there is none
  prediction_set                   of a diagnosis, classes that contain the true one: `a | b`
  prediction_set_<finding>         of a finding: present, absent, or both
  interval_low, interval_high      of a number; spread: root mean square of the validation errors
  mask_volume_low, mask_volume_high  of the volume of the mask, in `mask_volume_unit`

An empty end of an interval is no bound: there are too few validation cases for any.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.checksums import seal_object, verify_object
from threefold.errors import RunError
from threefold.evaluation.calibration import fit_temperature, with_temperature
from threefold.evaluation.conformal import class_set, conformal_bound, volume_interval, volume_score
from threefold.evaluation.predictions import (
    CALIBRATED_PREFIX,
    PREDICTION_SET,
    PROBABILITY_PREFIX,
    SET_SEPARATOR,
    probability_column,
)
from threefold.evaluation.task_tables import FINDING, TRUTH_PREFIX, findings_in, tasks_in
from threefold.experiment import Spec
from threefold.inference.cases import CaseTables
from threefold.inference.out_of_distribution import Thresholds, TrainingFeatures, judge
from threefold.run import COPY_AGAIN, write_atomically
from threefold.tasks.questions import Question
from threefold.validation import parse_spec, read_json

Floats = NDArray[np.float64]
AREAS = ("mm2", "px")
"""Units of the size of a mask that has two axes."""


class Fit(Spec):
    """What the validation cases say of one answer of a network."""

    cases: int
    """Validation cases of which the truth is known."""
    patients: int
    temperature: float | None = None
    """Of the probabilities; null: none, they stay as they are."""
    spread: float | None = None
    """Of a number: root mean square of its errors, in its unit."""
    bound: float | None = None
    """Of the scores of a set or an interval; null: too few patients, it contains everything."""
    why: str = ""
    """Why there is no temperature."""


class Calibration(Spec):
    """What the validation cases say of a run's predictions, by task."""

    coverage: float
    """Share of new patients' cases whose truth a set or an interval contains, if they are like these."""
    diagnoses: Mapping[str, Fit] = {}
    findings: Mapping[str, Mapping[str, Fit]] = {}
    """By task and finding."""
    numbers: Mapping[str, Fit] = {}
    volumes: Mapping[str, Mapping[str, Fit]] = {}
    """By task and unit: mL, mm2, or voxels and px where images state no spacing."""
    distances: Thresholds | None = None
    """Of the encoder's features to those of the training part (`inference.out_of_distribution`)."""
    no_distances: str = ""
    """Why there are none."""

    def columns(self, question: Question, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the calibration says of a case's answer to a question, as columns without prefix.

        Args:
            question: one of the network's.
            row: the answer, as columns without prefix; empty for a case without one.
        """
        head = question.head
        if head in self.diagnoses and probability_column(question.classes[0]) in row:
            return _of_diagnosis(self.diagnoses[head], question.classes, row)
        if head in self.findings:
            found: dict[str, Any] = {}
            for name, fit in self.findings[head].items():
                if probability_column(name) in row:
                    found |= _of_finding(fit, name, row)
            return found
        if head in self.numbers and "predicted" in row:
            fit, value = self.numbers[head], float(row["predicted"])
            low, high = (None, None) if fit.bound is None else (value - fit.bound, value + fit.bound)
            return {"interval_low": low, "interval_high": high, "spread": fit.spread}
        if head in self.volumes and "mask_volume" in row:
            unit = row["mask_volume_unit"]
            known = self.volumes[head].get(unit)
            if known is None or known.bound is None:
                return {"mask_volume_low": 0.0, "mask_volume_high": None}
            lowest, highest = volume_interval(float(row["mask_volume"]), known.bound, _axes(unit))
            return {"mask_volume_low": lowest, "mask_volume_high": highest}
        return {}

    def limits(self) -> tuple[str, ...]:
        """Say of which answers sets and intervals contain everything, and which probabilities stay raw."""
        several = (
            *self.diagnoses.items(),
            *((f"{task}, {name}", fit) for task, fits in self.findings.items() for name, fit in fits.items()),
            *self.numbers.items(),
            *((f"{task}, {unit}", fit) for task, fits in self.volumes.items() for unit, fit in fits.items()),
        )
        few = [f"{name} ({fit.patients})" for name, fit in several if fit.bound is None]
        raw = [f"{name} ({fit.why})" for name, fit in several if fit.why]
        needed = math.ceil(self.coverage / (1 - self.coverage) - 1e-9)
        return (
            *((f"features are not compared: {self.no_distances}",) if self.no_distances else ()),
            *((f"the calibrated probabilities are the raw ones: {'; '.join(raw)}",) if raw else ()),
            *(
                (
                    f"sets and intervals with a coverage of {self.coverage:g} need {needed} validation "
                    f"patients; those of {', '.join(few)} contain everything",
                )
                if few
                else ()
            ),
        )


def fit_calibration(validation: pd.DataFrame, questions: Sequence[Question], coverage: float) -> Calibration:
    """Fit what there is to fit on a table of predictions of the validation part.

    Args:
        validation: as `inference.cases.predict_cases` gives it; it may have no rows.
        questions: that the network was asked.
        coverage: of sets and intervals.
    """
    kinds = tasks_in(validation.columns)
    diagnoses: dict[str, Fit] = {}
    findings: dict[str, dict[str, Fit]] = {}
    numbers: dict[str, Fit] = {}
    volumes: dict[str, dict[str, Fit]] = {}
    for question in questions if len(validation) else ():
        head, prefix = question.head, question.prefix
        own = {name.removeprefix(prefix): name for name in validation.columns if name.startswith(prefix)}
        table = validation[[*own.values()]].rename(columns={name: short for short, name in own.items()})
        table["patient_id"] = validation["patient_id"]
        if question.kind == "class":
            diagnoses[head] = _fit_diagnosis(table, question.classes, coverage)
        elif question.kind == "labels":
            volumes[head] = _fit_volumes(table, coverage)
        elif kinds.get(head) == "findings":
            fits = {name: _fit_finding(table, name, coverage) for name in findings_in(table)}
            findings[head] = fits
        elif kinds.get(head) == "number":
            numbers[head] = _fit_number(table, coverage)
    return Calibration(
        coverage=coverage, diagnoses=diagnoses, findings=findings, numbers=numbers, volumes=volumes
    )


def with_trust(
    tables: CaseTables,
    calibration: Calibration | None,
    training: TrainingFeatures | None,
    questions: Sequence[Question],
) -> pd.DataFrame:
    """Return a table of predictions with how far each can be trusted, in further columns.

    Args:
        tables: of a network.
        calibration, training: of its run; None: it has none.
        questions: that the network was asked.
    """
    table = tables.cases
    if not len(table):
        return table
    if calibration is not None:
        table = _with_calibration(table, calibration, questions)
    thresholds = None if calibration is None else calibration.distances
    judged = [
        judge(training, thresholds, tables.features.get(name), tables.unlike.get(name, ())).columns()
        for name in table["case_id"]
    ]
    return pd.concat([table, pd.DataFrame(judged, index=table.index)], axis=1)


def _with_calibration(
    table: pd.DataFrame, calibration: Calibration, questions: Sequence[Question]
) -> pd.DataFrame:
    added: list[dict[str, Any]] = [{} for _ in range(len(table))]
    for question in questions:
        own = {
            name: name.removeprefix(question.prefix)
            for name in table.columns
            if name.startswith(question.prefix) and _is_answer(name.removeprefix(question.prefix))
        }
        answers = table[[*own]].rename(columns=own).to_dict("records")
        for cells, answer in zip(added, answers, strict=True):
            there = {str(name): value for name, value in answer.items() if not _is_missing(value)}
            found = calibration.columns(question, there)
            cells |= {f"{question.prefix}{name}": value for name, value in found.items()}
    return pd.concat([table, pd.DataFrame(added, index=table.index)], axis=1)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write calibration.json, with its checksum.

    Raises:
        RunError: the disk refuses.
    """
    content = seal_object(calibration.model_dump(mode="json"))
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_calibration(path: Path) -> Calibration | None:
    """Read calibration.json; None where there is none, as in runs of earlier versions.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return None
    content = verify_object(read_json(path, RunError, COPY_AGAIN), path, RunError, COPY_AGAIN)
    return parse_spec(Calibration, content, where=str(path), error=RunError, remedy=COPY_AGAIN)


def _of_diagnosis(fit: Fit, classes: Sequence[str], row: Mapping[str, Any]) -> dict[str, Any]:
    raw = [float(row[probability_column(name)]) for name in classes]
    found = class_set(raw, math.inf if fit.bound is None else fit.bound)
    calibrated = zip(classes, _at_temperature(raw, fit), strict=True)
    return {
        **{f"{CALIBRATED_PREFIX}{name}": value for name, value in calibrated},
        PREDICTION_SET: SET_SEPARATOR.join(classes[k] for k in found),
    }


def _of_finding(fit: Fit, name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    present = float(row[probability_column(name)])
    both = [1 - present, present]
    found = class_set(both, math.inf if fit.bound is None else fit.bound)
    return {
        f"{CALIBRATED_PREFIX}{name}": _at_temperature(both, fit)[1],
        f"{PREDICTION_SET}_{name}": SET_SEPARATOR.join(FINDING[k] for k in found),
    }


def _at_temperature(probabilities: Sequence[float], fit: Fit) -> list[float]:
    if fit.temperature is None:
        return [*probabilities]
    scaled: list[float] = with_temperature(np.array([probabilities]), fit.temperature)[0].tolist()
    return scaled


def _fit_diagnosis(table: pd.DataFrame, classes: Sequence[str], coverage: float) -> Fit:
    known = table[table["label"] != ""]
    labels = np.array([classes.index(name) for name in known["label"]], np.int64)
    probabilities = known[[*map(probability_column, classes)]].to_numpy(np.float64)
    return _fit_classes(labels, probabilities, known["patient_id"], coverage)


def _fit_finding(table: pd.DataFrame, name: str, coverage: float) -> Fit:
    truth = pd.to_numeric(table[f"{TRUTH_PREFIX}{name}"], errors="coerce")
    known = table[truth.notna()]
    present = known[probability_column(name)].to_numpy(np.float64)
    labels = truth[truth.notna()].to_numpy(np.int64)
    return _fit_classes(labels, np.stack([1 - present, present], axis=1), known["patient_id"], coverage)


def _fit_classes(labels: NDArray[np.int64], probabilities: Floats, patients: Any, coverage: float) -> Fit:
    temperature, why = fit_temperature(labels, probabilities)
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    return _fit(scores, patients, coverage, temperature=temperature, why=why)


def _fit_number(table: pd.DataFrame, coverage: float) -> Fit:
    truth, predicted = (
        pd.to_numeric(table[name], errors="coerce").to_numpy(np.float64) for name in ("truth", "predicted")
    )
    errors = np.abs(predicted - truth)
    known = np.isfinite(errors)
    spread = float(np.sqrt(np.mean(errors[known] ** 2))) if known.any() else None
    return _fit(errors[known], table["patient_id"][known], coverage, spread=spread)


def _fit_volumes(table: pd.DataFrame, coverage: float) -> dict[str, Fit]:
    """Return the fit of each unit in which the validation cases' masks are measured."""
    known = table[table["mask_truth_volume"].notna()]
    found = {}
    for unit, rows in known.groupby("mask_volume_unit", sort=True):
        predicted, true = (rows[name].to_numpy(np.float64) for name in ("mask_volume", "mask_truth_volume"))
        scores = volume_score(predicted, true, _axes(str(unit)))
        found[str(unit)] = _fit(scores, rows["patient_id"], coverage)
    return found


def _fit(scores: Floats, patients: Iterable[str], coverage: float, **further: Any) -> Fit:
    names = [str(name) for name in patients]
    bound = conformal_bound(scores, names, coverage)
    return Fit(
        cases=len(scores),
        patients=len({*names}),
        bound=bound if math.isfinite(bound) else None,
        **further,
    )


def _axes(unit: str) -> int:
    return 2 if unit in AREAS else 3


def _is_answer(column: str) -> bool:
    return column in ("predicted", "mask_volume", "mask_volume_unit") or column.startswith(PROBABILITY_PREFIX)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
