"""Comparing the runs of a study: what each claim comes to, from what the runs left."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from threefold.csv_tables import frame_text
from threefold.errors import PredictionsError, RunError
from threefold.evaluation.association import holm
from threefold.evaluation.comparison import (
    ClaimRow,
    Effect,
    Measured,
    PairRow,
    RelianceRow,
    VariantRow,
    difference_of,
    effects_of,
    mean_of,
    record_of,
    verdict,
)
from threefold.evaluation.delong import compare_auc
from threefold.evaluation.measures import (
    NOT_TESTED,
    OF_ALL,
    Tables,
    has_group,
    measured,
    measured_pair,
    scores,
)
from threefold.evaluation.metrics import is_share, largest_difference, shown_in
from threefold.evaluation.spread import Spread, moderated
from threefold.reporting.figures import save
from threefold.reporting.results import Entry, Part, write_part
from threefold.reporting.study_figures import claim_figure
from threefold.reporting.study_tables import (
    about_of,
    claim_entries,
    claim_table,
    pair_entries,
    pair_table,
    reliance_table,
    variant_table,
)
from threefold.reporting.table import Table, page
from threefold.run import RunFolder, write_atomically
from threefold.runs.evaluate import known_tasks, of_run, read_label_tables, read_run_predictions
from threefold.runs.explain import read_evidence
from threefold.studies.protocol import lines_of, protocol_of, write_down
from threefold.studies.reliance import reliance_of
from threefold.studies.study_claims import (
    asked_pairs,
    claims_by_cohort,
    finished_pairs,
    is_labels_id,
    labels_id,
)
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import (
    LABELS,
    ClaimSpec,
    RunPlan,
    StudySpec,
    claim_cohorts,
    plan_runs,
)


@dataclass(frozen=True)
class Pair:
    """A claim's metric in two runs of the same split and seed.

    Attributes:
        ids: of baseline and variant.
        split: number of their split.
        both: the metric of baseline and variant.
    """

    ids: tuple[str, str]
    split: int
    both: tuple[Measured, Measured]


MeasuredPairs = Sequence[Pair]


@dataclass(frozen=True)
class Comparison:
    """Everything that a study's finished runs say.

    Attributes:
        study: what was asked.
        claims: a line for each claim and cohort, as the study orders them.
        means: each variant's metrics.
        pairs: DeLong's test for each pair of a claim on the AUC.
        reliance: worst groups, probes and calibration, where the runs were looked into.
        missing: ids of runs that have not finished.
        withdrawn: claims of the lines that were withdrawn, or changed, after runs of theirs had finished.
    """

    study: StudySpec
    claims: tuple[ClaimRow, ...]
    means: tuple[VariantRow, ...]
    pairs: tuple[PairRow, ...]
    reliance: tuple[RelianceRow, ...]
    missing: tuple[str, ...]
    withdrawn: tuple[str, ...]


def compare_study(folder: StudyFolder) -> Comparison:
    """Compare the finished runs of a study.

    Raises:
        RunError: the folder is not a study, or none of its runs has finished.
        PredictionsError: naming the claim whose metric or group does not exist.
    """
    study = folder.read()
    plans = plan_runs(study)
    finished = {plan.id for plan in plans if folder.is_finished(plan.id)}
    judged = {labels_id(name) for name in study.cohorts if folder.labels(name).predictions.is_file()}
    if not finished:
        raise RunError(
            f"{folder.path}: none of its {len(plans)} runs has finished. Run it: `threefold study run`."
        )

    @cache
    def tables(name: str) -> Tables:
        return read_tables(folder, name)

    of = _Measuring(study, finished | judged, tables)
    asked = list(claims_by_cohort(study))
    lines = lines_of(study)
    written = {each.line: each for each in protocol_of(study, folder).lines}
    withdrawn = tuple(each.claim for line, each in written.items() if line not in lines)
    before = [written[line].finished_before for line in lines]
    pairs = [of.pairs(claim, cohort) for claim, cohort in asked]
    spreads = _spreads([claim.metric for claim, _ in asked], pairs, [bool(number) for number in before])
    rows = [
        replace(of.claim(claim, cohort, found, spread), finished_before=number)
        for (claim, cohort), found, spread, number in zip(asked, pairs, spreads, before, strict=True)
    ]
    whole = [of.has_finished(claim, cohort) for claim, cohort in asked]
    # What has not finished counts in the correction already, and what was withdrawn still.
    values = [row.effect.p if there else 1.0 for row, there in zip(rows, whole, strict=True)]
    adjusted = holm([*values, *[1.0 for _ in withdrawn]])[: len(rows)]
    claims = tuple(
        replace(
            row,
            adjusted=p if there else np.nan,
            verdict=verdict(row.effect, p, row.expected, study.confidence, beyond=row.beyond, finished=there),
        )
        for row, p, there in zip(rows, adjusted, whole, strict=True)
    )
    return Comparison(
        study=study,
        claims=claims,
        means=tuple(of.means(plans)),
        # Two claims may name the same pair.
        pairs=tuple(dict.fromkeys(pair for claim in study.claims for pair in of.pair_tests(claim))),
        reliance=tuple(reliance_of(folder, plans, finished, of.leaks)),
        missing=tuple(plan.id for plan in plans if plan.id not in finished),
        withdrawn=withdrawn,
    )


def write_comparison(comparison: Comparison, folder: StudyFolder) -> tuple[Table, ...]:
    """Write a comparison's tables (Markdown to read, CSV to compute with), its figure and results.json.

    The claims are written down as well: from now on what they came to is seen.

    Returns:
        The tables: claims, variants, reliance, pairs; those without a row left out.

    Raises:
        RunError: the disk refuses.
    """
    study = comparison.study
    tables = {
        "claims": claim_table(
            comparison.claims,
            confidence=study.confidence,
            replicates=study.replicates,
            margin=study.margin,
            withdrawn=comparison.withdrawn,
        ),
        "variants": variant_table(comparison.means, confidence=study.confidence, replicates=study.replicates),
        "reliance": reliance_table(comparison.reliance),
        "pairs": pair_table(comparison.pairs, confidence=study.confidence),
    }
    rows: dict[str, Sequence[Any]] = {
        "claims": comparison.claims,
        "variants": comparison.means,
        "reliance": comparison.reliance,
        "pairs": comparison.pairs,
    }
    write_down(study, folder)
    folder.tables.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        for old in (folder.tables / f"{name}.md", folder.tables / f"{name}.csv") if not table.rows else ():
            old.unlink(missing_ok=True)
        if table.rows:
            write_atomically(folder.tables / f"{name}.md", page([table]))
            numbers = pd.json_normalize([record_of(row) for row in rows[name]]).map(_in_a_field)
            write_atomically(folder.tables / f"{name}.csv", frame_text(numbers))
    picture = folder.figures / "claims.png"
    picture.unlink(missing_ok=True)
    if comparison.claims:
        folder.figures.mkdir(parents=True, exist_ok=True)
        save(claim_figure(comparison.claims), picture)
    write_part(folder.path, "compare", _part_of(comparison, [*tables.values()]))
    return tuple(table for table in tables.values() if table.rows)


def _part_of(comparison: Comparison, tables: Sequence[Table]) -> Part:
    """Return a comparison as a part of results.json."""
    study = comparison.study
    facts = {
        "study": study.name,
        "confidence": study.confidence,
        "replicates": study.replicates,
        "margin": study.margin,
        "missing": list(comparison.missing),
        "withdrawn": list(comparison.withdrawn),
    }
    numbers = [entry for row in comparison.claims for entry in claim_entries(row)]
    numbers += [Entry(row.mean.estimate, about_of(row)) for row in comparison.means]
    numbers += [entry for row in comparison.pairs for entry in pair_entries(row)]
    pictures = ("claims",) if comparison.claims else ()
    return Part(facts, tuple(numbers), tuple(table for table in tables if table.rows), pictures)


def _in_a_field(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def read_tables(folder: StudyFolder, name: str) -> Tables:
    """Return what a finished run left to be compared, or by `labels_id` a cohort's own structures."""
    if is_labels_id(name):
        return Tables(read_label_tables(folder.labels(name.partition("/")[0])))
    return run_tables(folder.run(name))


def run_tables(run: RunFolder) -> Tables:
    """Return what a finished run left to be compared, with its own thresholds and what `explain` found."""
    status, (experiment, trained, _) = run.read_status(), of_run(run)
    known = known_tasks(experiment, trained, status.get("thresholds") or {})
    return Tables(
        read_run_predictions(run),
        status.get("threshold"),
        read_evidence(run),
        known.thresholds,
        known.positives,
    )


def _spreads(
    metrics: Sequence[str], pairs: Sequence[MeasuredPairs], late: Sequence[bool]
) -> list[Spread | None]:
    """Return how much each line's effect varies over its pairs, learned from all lines of one metric.

    Of the late lines, which were chosen when the results could be seen, nothing is learned for the others.
    """
    of_all = _spreads_of(metrics, pairs)
    in_time = [number for number, is_late in enumerate(late) if not is_late]
    known = _spreads_of([metrics[number] for number in in_time], [pairs[number] for number in in_time])
    of_those = dict(zip(in_time, known, strict=True))
    return [of_those.get(number, spread) for number, spread in enumerate(of_all)]


def _spreads_of(metrics: Sequence[str], pairs: Sequence[MeasuredPairs]) -> list[Spread | None]:
    """Return it for lines of one kind; those of the same effects (a claim turned round) count once."""
    effects = [effects_of(*_unzipped(each)) for each in pairs]
    found: dict[tuple[str, bytes], Spread | None] = {}
    keys = [
        (metric, np.abs(each - each.mean()).round(12).tobytes() if len(each) else b"")
        for metric, each in zip(metrics, effects, strict=True)
    ]
    for metric in dict.fromkeys(metrics):
        distinct = {key: each for key, each in zip(keys, effects, strict=True) if key[0] == metric}
        found |= dict(zip(distinct, moderated([*distinct.values()]), strict=True))
    return [found[key] for key in keys]


def _unzipped(pairs: MeasuredPairs) -> tuple[list[tuple[Measured, Measured]], list[int]]:
    """Return what was measured of each pair, and the split of each."""
    return [pair.both for pair in pairs], [pair.split for pair in pairs]


class _Measuring:
    """Measures what a study's runs left; tables are read once."""

    def __init__(self, study: StudySpec, finished: Set[str], tables: Callable[[str], Tables]) -> None:
        self.study, self.finished, self.tables = study, finished, tables
        self._means: dict[tuple[object, ...], Effect] = {}
        self.difference = partial(
            difference_of, replicates=study.replicates, confidence=study.confidence, margin=study.margin
        )

    def has_finished(self, claim: ClaimSpec, cohort: str) -> bool:
        """Whether all runs of a claim have finished; a cohort's own structures never wait for anything."""
        return all(
            second in self.finished and (claim.baseline == LABELS or first in self.finished)
            for first, second, _ in asked_pairs(self.study, claim, cohort)
        )

    def pairs(self, claim: ClaimSpec, cohort: str) -> MeasuredPairs:
        """Measure a claim's pairs.

        Raises:
            PredictionsError: naming the claim whose metric or group does not exist.
        """
        found = []
        for first, second, (split, _) in finished_pairs(self.study, claim, cohort, self.finished):
            try:
                both = self._measured(claim, first, second)
            except PredictionsError as error:
                raise PredictionsError(f"claim '{claim.claim}', {second}: {error}") from error
            found.append(Pair((first, second), split, both))
        return found

    def claim(self, claim: ClaimSpec, cohort: str, pairs: MeasuredPairs, spread: Spread | None) -> ClaimRow:
        """Return a claim's line; its p is not adjusted yet, nor said when it was written down."""
        both, splits = _unzipped(pairs)
        leaks = self.leaks([name for pair in pairs for name in pair.ids])
        return ClaimRow(
            claim=claim.claim,
            cohort=cohort,
            baseline_cohort=claim.baseline_cohort or cohort,
            variant=claim.variant,
            baseline=claim.baseline,
            metric=claim.metric,
            group=claim.group,
            baseline_group=claim.baseline_group or claim.group,
            expected=claim.expected,
            beyond=claim.beyond,
            baseline_mean=self._mean(
                [pair.ids[0] for pair in pairs],
                [first for first, _ in both],
                claim.metric,
                claim.baseline_group or claim.group,
            ),
            variant_mean=self._mean(
                [pair.ids[1] for pair in pairs], [second for _, second in both], claim.metric, claim.group
            ),
            effect=self.difference(
                both,
                metric=claim.metric,
                group=claim.group,
                leaks=leaks,
                splits=splits,
                spread=spread,
                beyond=claim.beyond,
                largest=largest_difference(claim.metric),
            ),
            adjusted=np.nan,
            verdict="not estimable",
            pairs=len(self.study.seeds) * len(self.study.splits),
            leaks=leaks,
            finished_before=None,
        )

    def _measured(self, claim: ClaimSpec, first: str, second: str) -> tuple[Measured, Measured]:
        baseline, variant = self.tables(first), self.tables(second)
        if not has_group(baseline, claim.baseline_group or claim.group) or not has_group(
            variant, claim.group
        ):
            return NOT_TESTED, NOT_TESTED
        if claim.baseline_group is None:
            return measured_pair(baseline, variant, claim.metric, claim.group)
        return (
            measured(baseline, claim.metric, claim.baseline_group),
            measured(variant, claim.metric, claim.group),
        )

    def means(self, plans: Sequence[RunPlan]) -> Iterator[VariantRow]:
        """Yield each variant's mean of each metric and group that a claim names.

        Without claims: of the metrics for which a variant has cases, on all test cases.
        """
        asked = dict.fromkeys(
            (claim.metric, group)
            for claim in self.study.claims
            for group in (claim.group, claim.baseline_group or claim.group)
        )
        usual = dict.fromkeys((metric, OF_ALL) for metric in shown_in("means"))
        variants: dict[tuple[str, str], list[str]] = {}
        for plan in plans:
            variants.setdefault((plan.cohort, plan.variant), []).append(plan.id)
        for (cohort, variant), names in variants.items():
            there = [name for name in names if name in self.finished]
            for metric, group in asked or usual if there else ():
                having = [name for name in there if has_group(self.tables(name), group)]
                try:
                    runs = [measured(self.tables(name), metric, group) for name in having]
                except PredictionsError:
                    continue  # this variant was not looked into in that way
                mean = self._mean(having, runs, metric, group)
                if asked or mean.estimate.n:
                    yield VariantRow(cohort, variant, metric, group, mean, len(names), self.leaks(having))

    def _mean(self, names: Sequence[str], runs: Sequence[Measured], metric: str, group: str) -> Effect:
        """Return the mean of a metric over runs; claims of one baseline on the same cases share it."""
        key = (metric, group, *names, *(run.cases.tobytes() for run in runs))
        if key not in self._means:
            self._means[key] = mean_of(
                runs,
                replicates=self.study.replicates,
                confidence=self.study.confidence,
                metric=metric,
                group=group,
                leaks=self.leaks(names),
                is_share=is_share(metric),
            )
        return self._means[key]

    def pair_tests(self, claim: ClaimSpec) -> Iterator[PairRow]:
        """Yield DeLong's test of each pair, for claims on the AUC of two classes."""
        if claim.metric != "auc" or claim.baseline_group is not None:
            return
        for cohort in claim_cohorts(self.study, claim):
            for first, second, (split, seed) in finished_pairs(self.study, claim, cohort, self.finished):
                pair = [self.tables(name) for name in (first, second)]
                if any(
                    each.predictions.positive is None or not has_group(each, claim.group) for each in pair
                ):
                    continue
                both = [scores(each, claim.group) for each in pair]
                joined = both[0].join(both[1]["score"].rename("score_variant"), how="inner")
                yield PairRow(
                    cohort,
                    claim.baseline_cohort or cohort,
                    claim.variant,
                    claim.baseline,
                    claim.group,
                    split,
                    seed,
                    compare_auc(
                        joined["positive"].to_numpy(np.bool_),
                        joined["score"].to_numpy(np.float64),
                        joined["score_variant"].to_numpy(np.float64),
                        joined["patient_id"].to_numpy(str),
                        confidence=self.study.confidence,
                    ),
                    len(joined),
                    joined["patient_id"].nunique(),
                    self.leaks([first, second]),
                )

    def leaks(self, names: Sequence[str]) -> bool:
        """Whether the split of one of the runs shares patients between training and test."""
        return any(self.tables(name).predictions.leaks for name in names)
