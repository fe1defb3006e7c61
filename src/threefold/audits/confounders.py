"""Which columns and traces of the acquisition tell a target, and how strongly, ranked.

A network learns whatever tells the target: the scanner, the size of the picture, a tint. For each column of
the table and each measurement of `acquisition`, against each class, finding, number (above its median) and
mask (drawn or not): the AUC of what is ordered, the bias-corrected Cramér's V of what is not, with an
interval over patients, and a test that is corrected for the number of all of them (Holm).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from threefold.audits.acquisition import FROM_DISEASE, Measured, measure_acquisition, measure_file
from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.findings import Finding
from threefold.core.targets import ClassTarget, MultilabelTarget, NumberTarget
from threefold.errors import ImageError
from threefold.evaluation.association import (
    auc_of_patients,
    cramers_v,
    holm,
    p_of_categories,
    p_of_order,
    patient_tables,
    v_interval,
)
from threefold.images.reading import read_image

STRONG_AUC = 0.65
"""AUC from which a measurement is reported."""
STRONG_V = 0.3
"""Cramér's V from which a category is reported."""
LEVEL = 0.05
"""Corrected p below which it is no accident."""
FEWEST_PATIENTS = 10
_FEWEST_OF_CATEGORY = 3
"""Patients; rarer categories are put together."""
_MOST_CATEGORIES = 50
_OTHER, _ABSENT = "(rare)", "(absent)"
_SHOWN = 6
_EXTREMES = 4


@dataclass(frozen=True)
class Confounder:
    """What one column or measurement tells of one outcome.

    Attributes:
        name: `column.NAME`, or a name of `acquisition`.
        target: of the cohort; with more than two classes, and of findings, TARGET=CLASS; of a number, TARGET
            above its median; of label maps, TARGET drawn.
        metric: auc of what is ordered, cramers_v of categories.
        value, low, high: 0.5 (AUC) and 0 (V) tell nothing. The ends are NaN where they are not estimable.
        higher: of an AUC, the class that has the higher values.
        p: corrected for all that were tested.
        n, patients: with both known.
        from_disease: the disease itself can change it.
        extremes: case ids of the lowest and the highest values, or of an example of each category, with
            what was measured.
    """

    name: str
    target: str
    metric: Literal["auc", "cramers_v"]
    value: float
    low: float
    high: float
    higher: str
    p: float
    n: int
    patients: int
    from_disease: bool
    extremes: tuple[tuple[str, str], ...] = ()

    @property
    def is_strong(self) -> bool:
        """Whether it is reported."""
        return self.p < LEVEL and self.value >= (STRONG_AUC if self.metric == "auc" else STRONG_V)

    def text(self) -> str:
        """Return it in a few words."""
        what = "AUC" if self.metric == "auc" else "Cramér's V"
        ends = "" if np.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        higher = f" (higher: {self.higher})" if self.higher else ""
        return f"{self.name}: {what} {self.value:.2f}{ends}{higher}"

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Outcome:
    """A yes or no of some cases.

    Attributes:
        target: as of `Confounder`.
        names: of no and of yes.
        positive: by case id.
    """

    target: str
    names: tuple[str, str]
    positive: Mapping[str, bool]


def find_confounders(
    cohort: Cohort, measured: Mapping[str, Measured], targets: Collection[str] | None = None
) -> tuple[Confounder, ...]:
    """Measure what the table's columns and the acquisition tell of every target, strongest first.

    Args:
        cohort: its cases.
        measured: by case id, as `measure_acquisition` gives it; cases without count by their columns alone.
        targets: those that are asked about; None: all.
    """
    table = _values(cohort, measured)
    found = [
        one
        for outcome in _outcomes(cohort, cohort.spec.all_targets if targets is None else targets)
        for name, values in table.items()
        if name != f"column.{outcome.target}"
        for one in _measure(cohort, outcome, name, values)
    ]
    corrected = holm([one.p for one in found])
    with_p = [Confounder(**{**vars(one), "p": p}) for one, p in zip(found, corrected, strict=True)]
    return tuple(sorted(with_p, key=lambda one: (-_strength(one), one.p, one.name, one.target)))


def check_confounders(found: Sequence[Confounder]) -> Iterator[Finding]:
    """Say what tells a target that is not the disease, and what tells it and may be the disease."""
    strong: dict[tuple[str, bool], list[Confounder]] = defaultdict(list)
    for one in found:
        if one.is_strong:
            strong[one.target, one.from_disease].append(one)
    for (target, from_disease), several in sorted(strong.items()):
        shown = "; ".join(one.text() for one in several[:_SHOWN])
        more = f"; and {len(several) - _SHOWN} more" if len(several) > _SHOWN else ""
        cases = tuple(dict.fromkeys(case for one in several[:_SHOWN] for case, _ in one.extremes))
        if from_disease:
            yield Finding(
                "note",
                "confounders",
                f"The grey values predict {target}: {shown}{more}. This may be the disease: compare the "
                "cases at both ends.",
                cases,
            )
        else:
            yield Finding(
                "warn",
                "confounders",
                f"Predicts {target} and is not the disease: {shown}{more}. A network can learn it "
                "instead. Make it alike (grid, format, way of saving), balance the cases, or test the "
                "network where it is reversed (`threefold probe RUN --shortcut NAME`).",
                cases,
            )


def read_measurements(cohort: Cohort, cases: Sequence[Case]) -> dict[str, dict[str, float | str]]:
    """Return what the table and the images of some cases tell of the acquisition, by name and case id.

    A case whose image can't be read has what its file tells.
    """
    measured: dict[str, Measured] = {}
    for case in cases:
        measured[case.case_id] = measure_file(case)
        with suppress(ImageError):
            image = read_image(case.image, slice_index=case.slice_index, spacing=cohort.spec.spacing)
            measured[case.case_id] = measure_acquisition(case, image)
    return _values(replace(cohort, cases=tuple(cases)), measured)


def _values(cohort: Cohort, measured: Mapping[str, Measured]) -> dict[str, dict[str, float | str]]:
    """Return what is known of the cases, by name and case id."""
    table: dict[str, dict[str, float | str]] = defaultdict(dict)
    for number, case in enumerate(cohort.cases):
        table["table.row"][case.case_id] = float(number)
        if case.slice_index is not None:
            table["table.slice"][case.case_id] = float(case.slice_index)
        for column, text in case.extra.items():
            if text:
                table[f"column.{column}"][case.case_id] = text
        for name, value in measured.get(case.case_id, {}).items():
            table[name][case.case_id] = value
    return {name: _as_numbers(values) for name, values in table.items()}


def _as_numbers(values: dict[str, float | str]) -> dict[str, float | str]:
    """Return numbers where all values are; else the texts."""
    try:
        numbers: dict[str, float | str] = {case: float(value) for case, value in values.items()}
    except ValueError:
        return {case: str(value) for case, value in values.items()}
    return numbers if all(np.isfinite(float(value)) for value in numbers.values()) else values


def _outcomes(cohort: Cohort, asked: Collection[str]) -> Iterator[_Outcome]:
    for name, target in cohort.spec.all_targets.items():
        if name not in asked:
            continue
        known = {case.case_id: case.targets[name] for case in cohort.cases if name in case.targets}
        if isinstance(target, ClassTarget):
            several = len(target.classes) > 2
            for index, each in enumerate(target.classes if several else target.classes[1:], not several):
                rest = "others" if several else target.classes[0]
                said = f"{name}={each}" if several else name
                yield _Outcome(said, (rest, each), {case: value == index for case, value in known.items()})
        elif isinstance(target, MultilabelTarget):
            for index, each in enumerate(target.classes):
                told = {case: value[index] for case, value in known.items() if value[index] is not None}
                yield _Outcome(f"{name}={each}", ("no", each), {case: bool(v) for case, v in told.items()})
        elif isinstance(target, NumberTarget):
            middle = float(np.median(list(known.values()))) if known else 0.0
            yield _Outcome(
                f"{name} above its median",
                ("below", "above"),
                {case: value > middle for case, value in known.items()},
            )
        else:
            drawn = {case.case_id: name in case.targets for case in cohort.cases}
            yield _Outcome(f"{name} drawn", ("not drawn", "drawn"), drawn)


def _measure(
    cohort: Cohort, outcome: _Outcome, name: str, values: Mapping[str, float | str]
) -> Iterator[Confounder]:
    """Yield what a name's values, and whether there is one, tell of an outcome."""
    cases = [case for case in cohort.cases if case.case_id in outcome.positive]
    there = [case for case in cases if case.case_id in values]
    ordered = all(isinstance(values[case.case_id], float) for case in there)
    if ordered:
        yield from _measure_order(there, outcome, name, values)
        if len(there) < len(cases):
            stated = {case.case_id: "stated" if case.case_id in values else _ABSENT for case in cases}
            yield from _measure_categories(cases, outcome, f"{name} stated", stated)
    else:
        filled = {case.case_id: values.get(case.case_id, _ABSENT) for case in cases}
        yield from _measure_categories(cases, outcome, name, filled)


def _measure_order(
    cases: Sequence[Case], outcome: _Outcome, name: str, values: Mapping[str, float | str]
) -> Iterator[Confounder]:
    positive, patients, count = _truth(cases, outcome)
    measured = np.array([float(values[case.case_id]) for case in cases])
    if count < FEWEST_PATIENTS or positive.all() or not positive.any() or np.ptp(measured) == 0:
        return
    area, ends = auc_of_patients(measured, positive, patients)
    if np.isnan(area):
        return
    higher = outcome.names[1 if area >= 0.5 else 0]
    low, high = (np.nan, np.nan) if ends is None else ends
    if area < 0.5:
        area, low, high = 1 - area, 1 - high, 1 - low
    order = np.argsort(measured, kind="stable")
    ends_of = dict.fromkeys([*order[:_EXTREMES], *order[-_EXTREMES:]])
    yield Confounder(
        name,
        outcome.target,
        "auc",
        float(area),
        float(low),
        float(high),
        higher,
        p_of_order(measured, positive, patients),
        len(cases),
        count,
        name.startswith(FROM_DISEASE),
        tuple((cases[i].case_id, f"{measured[i]:g}") for i in ends_of),
    )


def _measure_categories(
    cases: Sequence[Case], outcome: _Outcome, name: str, values: Mapping[str, float | str]
) -> Iterator[Confounder]:
    positive, patients, count = _truth(cases, outcome)
    if count < FEWEST_PATIENTS or positive.all() or not positive.any():
        return
    texts = [str(values[case.case_id]) for case in cases]
    having: dict[str, set[int]] = defaultdict(set)
    for text, patient in zip(texts, patients, strict=True):
        having[text].add(int(patient))
    ranked = Counter({text: len(of) for text, of in having.items()}).most_common(_MOST_CATEGORIES)
    common = [text for text, of in ranked if of >= _FEWEST_OF_CATEGORY]
    known = {text: number for number, text in enumerate(sorted(common))}
    categories = np.array([known.get(text, len(known)) for text in texts])
    if len(np.unique(categories)) < 2:
        return
    categories = np.unique(categories, return_inverse=True)[1]
    tables = patient_tables(categories, positive, patients)
    low, high = v_interval(tables)
    examples = {text: case.case_id for case, text in zip(reversed(cases), reversed(texts), strict=True)}
    yield Confounder(
        name,
        outcome.target,
        "cramers_v",
        float(cramers_v(tables.sum(axis=0))),
        low,
        high,
        "",
        p_of_categories(categories, positive, patients),
        len(cases),
        count,
        name.startswith(FROM_DISEASE),
        tuple((examples[text], text) for text in sorted(known)[: 2 * _EXTREMES]),
    )


def _truth(cases: Sequence[Case], outcome: _Outcome) -> tuple[NDArray[np.bool_], NDArray[np.int64], int]:
    """Return the class of each case, the number of its patient from 0, and how many patients there are."""
    positive = np.array([outcome.positive[case.case_id] for case in cases], dtype=bool)
    names, patients = np.unique([case.patient_id for case in cases], return_inverse=True)
    return positive, patients.astype(np.int64), len(names)


def _strength(one: Confounder) -> float:
    """Return what ranks: the end of the interval that is nearer to nothing, on one scale of 0 to 1."""
    value = one.value if np.isnan(one.low) else one.low
    return 2 * value - 1 if one.metric == "auc" else value
