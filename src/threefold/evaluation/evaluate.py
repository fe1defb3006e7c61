"""From a table of predictions to numbers, each with its n and its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.errors import PredictionsError
from threefold.evaluation.classification import choose_threshold, confusion_shares, weighted_mean
from threefold.evaluation.diagnosis import diagnosis_estimates
from threefold.evaluation.estimate import COLUMNS, Estimate, Place
from threefold.evaluation.groups import (
    WORST_SITE_PATIENTS,
    Group,
    GroupKind,
    Level,
    SampleUnits,
    case_units,
    count_patients,
    group_notes,
    groups_of,
    patient_units,
)
from threefold.evaluation.intervals import MOST_DRAWN, replicates_for
from threefold.evaluation.metrics import Metric, metric_of, metrics
from threefold.evaluation.predictions import Predictions, probability_column
from threefold.evaluation.structures import structure_numbers
from threefold.evaluation.task_tables import tasks_in
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
ThresholdSource = Literal["given", "validation", "default"]


@dataclass(frozen=True)
class Evaluation:
    """Every number of a table of predictions' test part.

    Attributes:
        rows: in the order levels, groups, metrics.
        threshold: a case is positive where p >= threshold; None unless there are two classes.
        threshold_source: given by the caller, chosen on the table's validation part, or 0.5 by default.
        classes, positive: as in the predictions.
        leaks: patients are shared between training and test.
        site_groups: the site group of each test site that is in one.
        spec: replicates, confidence, threshold rule and patient rule.
        notes: what a reader has to know, in sentences.
        test_cases: the ids of the test cases.
        left_out: why cases that were asked for are in no number, by id.
    """

    rows: tuple[Estimate, ...]
    threshold: float | None
    threshold_source: ThresholdSource
    classes: tuple[str, ...]
    positive: str | None
    leaks: bool
    site_groups: Mapping[str, str]
    spec: EvaluationSpec
    notes: tuple[str, ...]
    test_cases: frozenset[str]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """The rows as a long table, a column a field."""
        frame = pd.DataFrame([row.record() for row in self.rows], columns=list(COLUMNS))
        return frame.astype({"positives": "Int64"})

    def find(
        self,
        metric: str,
        *,
        level: Level = "case",
        group_kind: GroupKind = "all",
        group: str = "all",
        class_name: str = "",
    ) -> Estimate | None:
        """Return one number, or None where the predictions have nothing of its kind."""
        return self._found.get((level, group_kind, group, metric, class_name))

    @cached_property
    def _found(self) -> dict[tuple[Level, GroupKind, str, str, str], Estimate]:
        return {(r.level, r.group_kind, r.group, r.metric, r.class_name): r for r in reversed(self.rows)}


def evaluate(
    predictions: Predictions, spec: EvaluationSpec | None = None, *, threshold: float | None = None
) -> Evaluation:
    """Evaluate the test part of a table of predictions.

    Numbers are per case and per patient, over all test cases, by site group, by site, and for the worst site;
    the validation part serves to choose the threshold and is in no number.

    Args:
        predictions: the table.
        spec: replicates, confidence, rules and seed; None: the defaults.
        threshold: of the positive class's probability; None: chosen on the validation part by
            `spec.threshold`, or 0.5 where there is none.

    Raises:
        PredictionsError: if the test part is empty or without any target, or the threshold is not from 0
            to 1.
    """
    spec = spec or EvaluationSpec()
    wanted = [column for name in spec.metrics for column in metric_of(name).columns]
    test = predictions.schema_part("test", *wanted)
    if test.empty:
        parts = predictions.table["part"].value_counts().to_dict()
        raise PredictionsError(
            f"column part: expected cases of part test, found {parts}. Only test cases are evaluated."
        )
    cut, source, notes = decision_threshold(predictions, spec, threshold)
    rows: list[Estimate] = []
    whole, groups = case_units(test, predictions, spec.metrics), groups_of(test)
    levels: tuple[Level, ...] = ("case", "patient")
    for level in levels:
        found: list[Estimate] = []
        for group in groups:
            cases = whole.where(test.index.get_indexer(group.rows.index))
            units = _units(level, cases, predictions, spec)
            found += _Numbers(Place(level, group, spec, predictions.leaks), units, predictions, cut).rows()
        found += structure_numbers(level, predictions, spec)
        rows += found
        rows += _worst_sites(found)
    if not any(row.n for row in rows) and not tasks_in(predictions.table.columns):
        raise PredictionsError(
            f"{len(test)} test cases, and none has a label with probabilities, a true mask, or psnr or ssim. "
            "There is nothing to evaluate: give the cases a target, or use `threefold predict`."
        )
    return Evaluation(
        rows=tuple(rows),
        threshold=cut if predictions.positive is not None else None,
        threshold_source=source,
        classes=predictions.classes,
        positive=predictions.positive,
        leaks=predictions.leaks,
        site_groups={
            site: group for site, group in test[["site", "site_group"]].to_numpy(object) if site and group
        },
        spec=spec,
        notes=(*predictions.notes, *notes, *group_notes(test), *_replicate_notes(groups, spec)),
        test_cases=frozenset(test["case_id"].to_numpy(object)),
        left_out=predictions.left_out,
    )


def decision_threshold(
    predictions: Predictions, spec: EvaluationSpec, given: float | None = None
) -> tuple[float, ThresholdSource, tuple[str, ...]]:
    """Return the smallest probability that is decided positive, where it is from, and what to say of it.

    Args:
        predictions: whose validation part it is chosen on; of any but two classes it has no meaning.
        spec: the rule.
        given: by the caller; None: to be chosen.

    Raises:
        PredictionsError: the one given is not from 0 to 1.
    """
    if given is not None:
        if not 0 <= given <= 1:
            raise PredictionsError(f"threshold: expected a probability from 0 to 1, found {given:g}.")
        return given, "given", ()
    if predictions.positive is None or spec.threshold == "0.5":
        return 0.5, "default", ()
    validation = predictions.schema_part("validation")
    validation = validation[validation["label"] != ""]
    labels = (validation["label"] == predictions.positive).to_numpy()
    if len(set(labels)) < 2:
        found = "one class only" if len(labels) else "no labelled case"
        return 0.5, "default", (f"The validation part has {found}: the decision threshold is 0.5.",)
    scores = validation[probability_column(predictions.positive)].to_numpy(np.float64)
    return choose_threshold(labels, scores, spec.threshold), "validation", ()


def _replicate_notes(groups: Sequence[Group], spec: EvaluationSpec) -> tuple[str, ...]:
    """Say which intervals rest on fewer resamples than asked for."""
    largest = max(len(group.rows) for group in groups)
    fewest = replicates_for(largest, spec.replicates)
    if fewest == spec.replicates:
        return ()
    return (
        f"Intervals of groups of more than {MOST_DRAWN // spec.replicates} cases are by fewer resamples, "
        f"{fewest} for {largest} cases.",
    )


def _units(level: Level, cases: SampleUnits, predictions: Predictions, spec: EvaluationSpec) -> SampleUnits:
    if level == "case":
        return cases
    return patient_units(cases, positive=predictions.positive_index, rule=spec.patient_rule)


@dataclass(frozen=True)
class _Numbers:
    """The numbers of one group at one level."""

    place: Place
    units: SampleUnits
    predictions: Predictions
    threshold: float

    def rows(self) -> Iterator[Estimate]:
        """Yield the numbers of each target that any case of the whole table has."""
        table = self.predictions.table
        if self.predictions.classes and self.predictions.has_labels:
            yield from diagnosis_estimates(self.place, self.units, self.predictions, self.threshold)
            if self.predictions.positive is None:
                yield from self._confusion()
        for metric in metrics(self.place.spec.metrics).values():
            if metric.is_of_a_case and metric.has_cases(table):
                yield self._mean(metric)

    def _confusion(self) -> Iterator[Estimate]:
        """Yield, for each pair of classes, which share of the true one was decided to be the other."""
        units = self.units.where(self.units.labels >= 0)
        classes = self.predictions.classes
        decision = units.probabilities.argmax(axis=1)
        pairs = [(true, decided) for true in range(len(classes)) for decided in range(len(classes))]

        def shares_of(weights: Floats) -> Mapping[tuple[int, int], Floats]:
            shares = confusion_shares(units.labels, decision, weights, classes=len(classes))
            return {(true, decided): shares[:, true, decided] for true, decided in pairs}

        points = shares_of(np.ones((1, len(units))))
        intervals = self.place.bootstrap(shares_of, units)
        for true, decided in pairs:
            of_class = units.labels == true
            row = self.place.estimate(
                metric_of("confusion"),
                float(points[true, decided][0]),
                intervals.get((true, decided)),
                units,
                needed=of_class,
                class_name=confusion_name(classes[true], classes[decided]),
                positives=int((of_class & (decision == decided)).sum()),
                why=f"no case of class {classes[true]}",
            )
            yield replace(row, n=int(of_class.sum()), patients=count_patients(units.patients[of_class]))

    def _mean(self, metric: Metric) -> Estimate:
        """Return the mean of the units' values that are there."""
        units = self.units.where(~np.isnan(self.units.values[metric.name]))
        values = units.values[metric.name]

        def mean(weights: Floats) -> Mapping[str, Floats]:
            return {metric.name: weighted_mean(values, weights)}

        infinite = int(np.isinf(values).sum())
        return self.place.estimate(
            metric,
            float(mean(np.ones((1, len(units))))[metric.name][0]),
            self.place.bootstrap(mean, units).get(metric.name),
            units,
            needed=np.ones(len(units), np.bool_),
            positives=int(values.sum()) if metric.is_share else None,
            why=f"infinite in {infinite} of {len(units)}" if infinite else metric.without,
        )


def confusion_name(true: str, decided: str) -> str:
    """Return the `class_name` of a cell of the confusion matrix."""
    return f"{true} as {decided}"


def _worst_sites(rows: Sequence[Estimate]) -> Iterator[Estimate]:
    """Yield, for each metric of one level, the worst site that has enough patients."""
    sites = [
        row for row in rows if row.group_kind == "site" and metric_of(row.metric).higher_is_better is not None
    ]
    if len({row.group for row in sites}) < 2:
        return
    for metric, class_name in dict.fromkeys((row.metric, row.class_name) for row in sites):
        of_metric = [row for row in sites if (row.metric, row.class_name) == (metric, class_name)]
        eligible = [
            row for row in of_metric if row.patients >= WORST_SITE_PATIENTS and not np.isnan(row.value)
        ]
        enough = f"with at least {WORST_SITE_PATIENTS} patients"
        if eligible:
            choose = min if metric_of(metric).higher_is_better else max
            worst = choose(eligible, key=lambda row: row.value)
            remark = "; ".join(filter(None, (f"worst of {len(eligible)} sites {enough}", worst.remark)))
            yield replace(worst, group_kind="worst site", remark=remark)
        else:
            yield replace(
                of_metric[0],
                group_kind="worst site",
                group="",
                value=np.nan,
                interval=None,
                n=0,
                patients=0,
                positives=None,
                replicates_missing=0,
                why=f"no site {enough} where it exists",
                remark="",
            )
