"""What an ensemble of folds gains over its single networks, and what mirror images add.

    python benchmarks/ensembles.py FOLDS ... > docs/results/ensembles.md

FOLDS are folders of finished cross-validations. Measured are the cases that no fold was trained on (held-out
sites), so that the single networks and the ensemble are tested on the same patients. The single networks'
value is the mean over the folds; the difference is the mean over the folds of ensemble minus network, paired
by patient, with an interval over patients and folds (`threefold.evaluation.comparison.difference_of`).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from threefold.cohorts.splits import read_split
from threefold.errors import UsageError
from threefold.evaluation.comparison import difference_of, mean_of
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.measures import Tables, measured_pair
from threefold.evaluation.metrics import is_share, largest_difference, metric_of
from threefold.evaluation.predictions import validate
from threefold.evaluation.structures import with_structures
from threefold.inference.cases import predict_cases
from threefold.inference.predictor import Predictor
from threefold.run import RunFolder
from threefold.runs.ensembles import EnsembleFolder, load_predictor
from threefold.runs.evaluate import cohort_of_run

METRICS = ("auc", "brier", "balanced_accuracy", "dice")
REPLICATES = 2000


def tables_of(predictor: Predictor, run: RunFolder, held_out: set[str]) -> Tables:
    """Predict the held-out cases of a run's cohort."""
    cohort = cohort_of_run(run)
    cohort = replace(cohort, cases=tuple(case for case in cohort.cases if case.case_id in held_out))
    found = predict_cases(
        predictor.network, predictor.experiment, cohort, None, trained=predictor.cohort, seen=predictor.seen
    )
    classes, positive = cohort.spec.classes, cohort.spec.positive
    predictions = validate(found.cases.fillna({"label": ""}), classes=classes, positive=positive)
    if len(found.structures):
        structures = found.structures.astype(object).where(found.structures.notna(), "").astype(str)
        predictions = with_structures(predictions, structures, source="benchmark")
    return Tables(predictions, predictor.threshold)


def told(estimate: Estimate, signed: bool = False) -> str:
    """Return a value with its interval."""
    form = "{:+.3f}" if signed else "{:.3f}"
    if np.isnan(estimate.value):
        return "not estimable"
    interval = "" if estimate.interval is None else f" [{form}, {form}]".format(*estimate.interval)
    return form.format(estimate.value) + interval


def rows_of(folder: Path) -> tuple[list[str], str]:
    """Return the rows of a cross-validation's table, and what they are of."""
    members = EnsembleFolder(folder).members()
    splits = [read_split(run.split) for run in members]
    held_out = {case for case in splits[0].parts if all(split.parts[case] == "test" for split in splits)}
    singles = [tables_of(load_predictor(run.path), run, held_out) for run in members]
    asked = {"ensemble": partial(load_predictor, folder)}
    if load_flips(members[0].path):
        asked["ensemble, mirror images"] = partial(load_predictor, folder, flips=True)
    ensembles = {name: tables_of(load(), members[0], held_out) for name, load in asked.items()}
    if len(asked) > 1:
        flipped = [tables_of(load_predictor(run.path, flips=True), run, held_out) for run in members]
    rows = []
    for metric in METRICS:
        try:
            pairs = {
                name: [measured_pair(one, together, metric, "all") for one in singles]
                for name, together in ensembles.items()
            }
        except Exception as error:  # a metric that this cohort does not have
            print(f"{folder}: {metric}: {error}")
            continue
        if len(asked) > 1:
            both = zip(singles, flipped, strict=True)
            pairs = {"single, mirror images": [measured_pair(*two, metric, "all") for two in both]} | pairs
        settings = {"replicates": REPLICATES, "confidence": 0.95, "metric": metric, "group": "all"}
        first = next(iter(pairs.values()))
        single = mean_of([pair[0] for pair in first], is_share=is_share(metric), **settings).estimate
        if np.isnan(single.value):
            continue
        title = metric_of(metric).title
        rows.append(f"| {title} | single | {told(single)} | |")
        for name, found in pairs.items():
            second = mean_of([pair[1] for pair in found], is_share=is_share(metric), **settings).estimate
            change = difference_of(found, largest=largest_difference(metric), **settings).estimate
            rows.append(f"| {title} | {name} | {told(second)} | {told(change, signed=True)} |")
    table = singles[0].predictions.table
    patients = table["patient_id"].nunique()
    experiment = load_predictor(members[0].path).experiment
    about = (
        f"{experiment.name}, {len(members)} folds, {experiment.training.epochs} epochs, "
        f"{' x '.join(map(str, experiment.data.preprocessing.size))} voxels; tested on {len(table)} cases of "
        f"{patients} patients at {table['site'].nunique()} sites that no fold has seen"
    )
    return rows, about + apart(ensembles["ensemble"].predictions.table)


def load_flips(run: Path) -> bool:
    """Whether a run's recipe mirrors images."""
    try:
        load_predictor(run, flips=True)
    except UsageError:
        return False
    return True


def apart(table: pd.DataFrame) -> str:
    """Return how far the members are apart where the ensemble is right, and where it is wrong."""
    names = [name for name in table if name.startswith("probability_")]
    if not names:
        return ""
    numbers = table[names].astype(float)
    best = numbers.idxmax(axis=1).str.removeprefix("probability_")
    known = table["label"] != ""
    right = known & (best == table["label"])
    if right.all() or not (known & ~right).any():
        return ". The ensemble's most probable class is right in every case"
    by = [table.loc[which, "member_disagreement"].astype(float).median() for which in (right, known & ~right)]
    return (
        f". Median disagreement of the members: {by[0]:.4f} nats where the most probable class is right "
        f"({int(right.sum())} cases), {by[1]:.4f} where it is wrong ({int((known & ~right).sum())})"
    )


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folds", nargs="+", type=Path)
    for folder in parser.parse_args().folds:
        rows, about = rows_of(folder)
        print(f"\n## {about.partition(',')[0]}\n\n{about}.\n")
        print("| metric | network | value | difference to single |\n| --- | --- | --- | --- |")
        print("\n".join(rows))


if __name__ == "__main__":
    main()
