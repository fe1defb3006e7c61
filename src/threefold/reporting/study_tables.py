"""The tables of a study: what each claim came to, what each variant did, each pair of runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from threefold.evaluation.comparison import ClaimRow, Effect, PairRow, RelianceRow, VariantRow
from threefold.evaluation.estimate import Difference
from threefold.evaluation.metrics import title
from threefold.reporting.results import Entry
from threefold.reporting.table import LEAK_MARK, LEAK_NOTE, Number, Table

_Row = ClaimRow | VariantRow | RelianceRow | PairRow

LATE = "late"
"""Said of a claim that was written down after runs that it rests on had finished."""
_N = (
    "n: cases/patients, in brackets, where a test has fewer, the cases of the smallest one and the fewest "
    "patients of a kind that the metric rests on (the rarer class of an AUC)"
)
_RULE = (
    "supported: differs as claimed with an adjusted p below {alpha:g}; contradicted: differs the other way "
    "with an adjusted p below {alpha:g}; undecided: anything else, at this number of patients and seeds."
)


def claim_table(
    rows: Sequence[ClaimRow],
    *,
    confidence: float,
    replicates: int,
    margin: float,
    withdrawn: Sequence[str],
) -> Table:
    """Return the verdict of each claim, one row per cohort in which it was tested.

    Args:
        rows: the claims.
        confidence, replicates, margin: settings of the comparison.
        withdrawn: withdrawn claims, which are not among the rows but count in the correction.
    """
    notes = [
        "Difference: variant minus baseline, mean over pairs of the same split and seed; on the same test "
        f"cases, but for groups set against each other. [low, high]: {percent(confidence)} interval over "
        f"{replicates} replicates of patients and seeds; p: of the same replicates, after Holm's correction "
        f"over the rows; {_N}, x pairs: the lowest and the highest of them. Baseline and "
        "variant are means over the same cases, which can be fewer than a variant has alone.",
        _RULE.format(alpha=round(1 - confidence, 9)),
    ]
    tested = len(rows) + len(withdrawn)
    smallest = tested * 2 / (replicates + 1)
    if smallest >= 1 - confidence:
        notes.append(
            f"{replicates} replicates are too few for {tested} rows: the smallest corrected p is "
            f"{min(1.0, smallest):.3f}, so that no claim can be supported. Raise `replicates`."
        )
    if margin:
        notes.append(f"Differences up to {margin:g} count as none.")
    if any(row.beyond for row in rows):
        notes.append(
            "above, below: the difference that the claim says is exceeded or not reached, and that p is of, "
            "where it is not 0."
        )
    if any(row.is_late for row in rows):
        notes.append(
            f"{LATE}: registered or changed after results were visible. A claim that was suggested by runs "
            "can't be tested on them."
        )
    if withdrawn:
        notes.append(
            "Withdrawn or changed after results were visible; each row counts in the correction: "
            f"{numbered(withdrawn)}."
        )
    if any(row.finished_before is None for row in rows):
        notes.append(
            "It is unknown when these claims were registered, because an earlier version began the study."
        )
    notes += _leak_note(rows)
    return Table(
        "Verdict of each claim",
        ("claim", "cohort", "metric", "baseline", "variant", "difference", "p", "verdict"),
        tuple(
            (
                row.claim,
                cohorts_of(row),
                f"{title(row.metric)}, {groups_of(row)}{_beyond(row)}",
                f"{row.baseline} {_number(row.baseline_mean.estimate.value, row)}",
                f"{row.variant} {_number(row.variant_mean.estimate.value, row)}",
                _difference(row),
                _p(row.adjusted),
                verdict_of(row),
            )
            for row in rows
        ),
        tuple(notes),
        name="claims",
    )


def variant_table(rows: Sequence[VariantRow], *, confidence: float, replicates: int) -> Table:
    """Return the metrics of each variant, with rows by cohort and variant and columns by metric and group."""
    columns = list(dict.fromkeys((row.metric, row.group) for row in rows))
    found = {(row.cohort, row.variant, row.metric, row.group): row for row in rows}
    names = list(dict.fromkeys((row.cohort, row.variant) for row in rows))
    notes = [
        f"Mean over the runs. [low, high]: {percent(confidence)} interval over {replicates} resamples of "
        f"patients and runs; {_N}, x runs: the lowest and the highest of them."
    ]
    notes += _leak_note(rows)
    return Table(
        "Variants",
        ("cohort", "variant", *(f"{title(metric)}, {group}" for metric, group in columns)),
        tuple(
            (cohort, variant, *(_mean(found.get((cohort, variant, *column))) for column in columns))
            for cohort, variant in names
        ),
        tuple(notes),
        name="variants",
    )


def reliance_table(rows: Sequence[RelianceRow]) -> Table:
    """Return shortcut use, probes and calibration, with rows by cohort, variant and group."""
    columns = list(dict.fromkeys(row.what for row in rows))
    found = {(row.cohort, row.variant, row.group, row.what): row for row in rows}
    places = list(dict.fromkeys((row.cohort, row.variant, row.group) for row in rows))
    return Table(
        "Shortcut use, probes and calibration",
        ("cohort", "variant", "cases", *columns),
        tuple((*place, *(_range(found.get((*place, name))) for name in columns)) for place in places),
        (
            "Mean over the runs, and [lowest, highest] of them. Worst group: accuracy in that group of one "
            "label and one value of the shortcut in which it is lowest. Probes: AUC with which a linear "
            "probe of the frozen features tells label, shortcut or site. Calibration error, and what the "
            "temperature fitted on the validation part adds to it, in the runs that have one. Each run's own "
            "tables have the intervals over patients.",
            *_leak_note(rows),
        ),
        name="reliance",
    )


def _range(row: RelianceRow | None) -> str:
    if row is None:
        return ""
    mark = LEAK_MARK if row.leaks else ""
    return f"{row.mean:.3f}{mark} [{row.lowest:.3f}, {row.highest:.3f}] x{row.runs}"


def percent(share: float) -> str:
    """Return a share in percent, with as many digits as it has."""
    return f"{round(100 * share, 9):g}%"


def _leak_note(rows: Sequence[_Row]) -> tuple[str, ...]:
    return (LEAK_NOTE,) if any(row.leaks for row in rows) else ()


def pair_table(rows: Sequence[PairRow], *, confidence: float) -> Table:
    """Return DeLong's test of each pair of runs."""
    return Table(
        "AUC of each pair, by DeLong's test",
        (
            "cohort",
            "group",
            "variant over baseline",
            "split",
            "seed",
            "baseline",
            "variant",
            "difference",
            "p",
            "n",
        ),
        tuple(
            (
                cohorts_of(row),
                row.group,
                f"{row.variant} over {row.baseline}",
                str(row.split),
                str(row.seed),
                _number(row.difference.first.value, row),
                _number(row.difference.second.value, row),
                _signed(row.difference, LEAK_MARK if row.leaks else ""),
                _p(row.difference.p),
                f"{row.cases}/{row.patients}",
            )
            for row in rows
        ),
        (
            f"[low, high]: {percent(confidence)} interval; structural components clustered by patient "
            "(Obuchowski 1997). p: of the pair alone, not corrected. n: cases/patients.",
            *_leak_note(rows),
        ),
        name="pairs",
    )


def cohorts_of(row: ClaimRow | PairRow) -> str:
    """Return the variant's cohort, and the baseline's where it is another."""
    return row.cohort if row.cohort == row.baseline_cohort else f"{row.cohort} against {row.baseline_cohort}"


def _difference(row: ClaimRow) -> str:
    return _cell(row.effect, asked=row.pairs, leaks=row.leaks, form="+.3f")


def _beyond(row: ClaimRow) -> str:
    """Return from which difference on a claim says that the variant differs; empty where from none on."""
    side = "above" if row.expected == "higher" else "below"
    return f", {side} {row.beyond:+g}" if row.beyond else ""


def _mean(row: VariantRow | None) -> str:
    return "no such value" if row is None else _cell(row.mean, asked=row.runs, leaks=row.leaks, form=".3f")


def _cell(effect: Effect, *, asked: int, leaks: bool, form: str) -> str:
    """Return a number with its interval and its n, of `asked` runs or pairs."""
    number = effect.estimate
    if math.isnan(number.value):
        return number.note
    mark = LEAK_MARK if leaks else ""
    shown = f"[{number.note}]" if number.why else f"[{number.low:{form}}, {number.high:{form}}]"
    runs = f"{effect.runs}" if effect.runs == asked else f"{effect.runs} of {asked}"
    tested = f"n={number.n}/{number.patients}"
    if effect.fewest_cases < number.n:
        tested += f" ({effect.fewest_cases}/{effect.fewest_patients})"
    if effect.runs > 1:
        runs += f": {min(effect.each):{form}} to {max(effect.each):{form}}"
    return Number(number, f"{number.value:{form}}{mark}", shown, f"{tested} x{runs}")


def _signed(found: Difference, mark: str) -> str:
    change = found.change
    if math.isnan(change.value):
        return "not estimable"
    shown = "no interval" if change.interval is None else f"{change.low:+.3f}, {change.high:+.3f}"
    return Number(change, f"{change.value:+.3f}{mark}", f"[{shown}]")


def _number(value: float, row: _Row) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}{LEAK_MARK if row.leaks else ''}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def numbered(claims: Sequence[str]) -> str:
    """Return each different claim once, with the number of its lines."""
    return "; ".join(
        claim if number == 1 else f"{claim} ({number} rows)" for claim, number in Counter(claims).items()
    )


def verdict_of(row: ClaimRow) -> str:
    """Return the verdict, and whether the claim came after its runs."""
    return f"{row.verdict}, {LATE}" if row.is_late else row.verdict


def groups_of(row: ClaimRow) -> str:
    """Return the variant's test cases, and the baseline's where they are others."""
    same = row.baseline_group == row.group
    return row.group if same else f"{row.group} against {row.baseline_group}"


def claim_entries(row: ClaimRow) -> list[Entry]:
    """Return a claim's means and its difference, with what each is about."""
    about = about_of(row)
    whose = ("baseline", row.baseline_mean), ("variant", row.variant_mean), ("difference", row.effect)
    return [Entry(each.estimate, {**about, "of": of, **_over_runs(each)}) for of, each in whose]


def pair_entries(row: PairRow) -> list[Entry]:
    """Return the AUCs of a pair and their difference, with what each is about."""
    about, found = about_of(row), row.difference
    tested = {"p": found.p, "error": found.error}
    return [
        Entry(found.first, {**about, "of": "baseline"}),
        Entry(found.second, {**about, "of": "variant"}),
        Entry(found.change, {**about, "of": "difference", **tested}),
    ]


def about_of(row: _Row) -> dict[str, Any]:
    """Return what a row says beside its numbers; of a mean over runs how those went as well."""
    numbers = [value for value in vars(row).values() if isinstance(value, Effect)]
    said = {key: value for key, value in vars(row).items() if not isinstance(value, Effect | Difference)}
    return said | (_over_runs(numbers[0]) if len(numbers) == 1 else {})


def _over_runs(effect: Effect) -> dict[str, Any]:
    said = {key: value for key, value in vars(effect).items() if key != "estimate"}
    return said | {"each": list(effect.each)}
