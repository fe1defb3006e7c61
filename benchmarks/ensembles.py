"""What an ensemble gains over its single networks, and what mirror images add.

    python benchmarks/ensembles.py ENSEMBLE=RUN ... > docs/results/ensembles.md

Each ENSEMBLE, and each of its members alone, predicts the test part of RUN's cohort, which no member may have
been trained on. The single networks' value is the mean over the members; the difference is the mean over the
members of ensemble minus network, paired by patient, with an interval over patients and members
(`threefold.evaluation.comparison.difference_of`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.splits import read_split
from threefold.csv_tables import frame_text
from threefold.errors import PredictionsError
from threefold.evaluation.comparison import difference_of, mean_of
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.measures import Tables, measured_pair
from threefold.evaluation.metrics import is_share, largest_difference, metric_of
from threefold.evaluation.predictions import validate
from threefold.evaluation.structures import read_structures_table, with_structures
from threefold.inference.cases import predict_cases
from threefold.inference.ensemble import mirrorings
from threefold.inference.predictor import Predictor
from threefold.run import RunFolder, write_atomically
from threefold.runs.ensembles import load_predictor, member_runs
from threefold.runs.evaluate import cohort_of_run

METRICS = ("auc", "brier", "balanced_accuracy", "dice", "structure_dice")
REPLICATES = 2000


def tables_of(predictor: Predictor, cohort: Cohort, work: Path) -> Tables:
    """Predict the cases of a cohort."""
    found = predict_cases(
        predictor.network, predictor.experiment, cohort, None, trained=predictor.cohort, seen=predictor.seen
    )
    spec = cohort.spec
    predictions = validate(found.cases, classes=spec.classes, positive=spec.positive)
    if len(found.structures):
        write_atomically(work, frame_text(found.structures))
        predictions = with_structures(predictions, read_structures_table(work), source=str(work))
        work.unlink()
    return Tables(predictions, predictor.threshold)


def told(estimate: Estimate, form: str = "{:.3f}") -> str:
    """Return a value with its interval."""
    if np.isnan(estimate.value):
        return "not estimable"
    interval = "" if estimate.interval is None else f" [{form}, {form}]".format(*estimate.interval)
    return form.format(estimate.value) + interval


def rows_of(singles: list[Tables], others: dict[str, Tables]) -> list[str]:
    """Return the rows of a table."""
    rows = []
    for metric in METRICS:
        asked: dict[str, Any] = {"replicates": REPLICATES, "confidence": 0.95, "metric": metric}
        try:
            pairs = {
                name: [measured_pair(single, other, metric, "all") for single in singles]
                for name, other in others.items()
            }
        except PredictionsError:  # a metric that this cohort does not have
            continue
        baseline = [first for first, _ in next(iter(pairs.values()))]
        single = mean_of(baseline, is_share=is_share(metric), **asked).estimate
        if np.isnan(single.value):
            continue
        name = "Dice, mean over structures" if metric == "structure_dice" else metric_of(metric).title
        title = f"{name} | {told(single)}"
        for network, both in pairs.items():
            one = mean_of([both[0][1]], is_share=is_share(metric), **asked).estimate
            change = difference_of(both, largest=largest_difference(metric), **asked).estimate
            rows.append(f"| {title} | {network} | {told(one)} | {told(change, '{:+.3f}')} |")
    return rows


def apart(table: pd.DataFrame) -> str:
    """Return how far the members are apart where the ensemble is right, and where it is wrong."""
    chances = table[[name for name in table if name.startswith("probability_")]].astype(float)
    best = chances.idxmax(axis=1).str.removeprefix("probability_")
    right, wrong = (
        table[table["label"].ne("") & (best.eq(table["label"]) == is_right)] for is_right in (1, 0)
    )
    medians = [each["member_disagreement"].astype(float).median() for each in (right, wrong)]
    said = f"Median disagreement of the members: {medians[0]:.4f} nats where the most probable class is right"
    if not len(wrong):
        return f"{said}, which it is in all {len(right)} cases."
    return f"{said} ({len(right)} cases), {medians[1]:.4f} where it is wrong ({len(wrong)} cases)."


def section_of(ensemble: Path, run: RunFolder) -> str:
    """Return the section of one ensemble."""
    cohort = cohort_of_run(run)
    cohort = replace(cohort, cases=read_split(run.split).cases(cohort, "test"))
    members, work = member_runs(ensemble), ensemble / "structures.csv"
    singles = [tables_of(load_predictor(member.path), cohort, work) for member in members]
    others = {"ensemble": tables_of(load_predictor(ensemble), cohort, work)}
    experiments = [load_predictor(member.path).experiment for member in members]
    if any(len(mirrorings(experiment)) > 1 for experiment in experiments):
        flipping = load_predictor(ensemble, flips=True)
        others["ensemble and mirror images"] = tables_of(flipping, cohort, work)
    names = ", ".join(dict.fromkeys(experiment.name for experiment in experiments))
    patients, sites = ({getattr(case, what) for case in cohort.cases} for what in ("patient_id", "site"))
    lines = [
        f"## {ensemble.name}",
        "",
        f"{len(members)} networks ({names}), tested on {len(cohort.cases)} cases of {len(patients)} patients "
        f"at {len(sites)} sites, none of which they were trained on. "
        f"{apart(others['ensemble'].predictions.table)}",
        "",
        "| metric | single, mean | network | value | difference to single |",
        "| --- | --- | --- | --- | --- |",
        *rows_of(singles, others),
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="ENSEMBLE=RUN")
    for pair in parser.parse_args().pairs:
        ensemble, _, run = pair.partition("=")
        print(section_of(Path(ensemble), RunFolder(Path(run))), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
