"""What threefold/head-ct is worth on real slices with few patients: as it is, fine-tuned, and random weights.

    python benchmarks/transfer.py --cohort CT_ICH_COHORT --work FOLDER [--epochs 20] [--seeds 3] [--model RUN]

Leave one patient out; the protocol is in docs/results/transfer.md. What is done is kept in --work: a stopped
comparison goes on. Prints the tables of that page.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import threefold as tf
from _machine import machine
from threefold.cohorts.cohort import Case, Cohort, read_cohort
from threefold.images.reading import read_image, read_label_map
from threefold.inference.predictor import Predictor

TRAINED = {"fine-tuned": 0.001, "random weights": 0.003}
"""Methods that are trained, and their learning rates."""
RULES = ("55 to 90 HU", "threshold")
AS_SHIPPED = "as shipped"
Mask = NDArray[np.bool_]
DRAWS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="what is kept")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", default="threefold/head-ct")
    asked = parser.parse_args()
    cohort = read_cohort(asked.cohort, allow_outside=True)
    measured = {name: [untrained(name, cohort, asked.model)] for name in (*RULES, AS_SHIPPED)}
    for seed in range(asked.seeds):
        for name in TRAINED:
            found: dict[str, Any] = {}
            for patient in patients_of(cohort):
                found |= trained(name, cohort, patient, seed, asked)
            measured.setdefault(name, []).append(found)
    print(tables(measured, cohort))


def patients_of(cohort: Cohort) -> list[str]:
    return sorted({case.patient_id for case in cohort.cases})


def untrained(name: str, cohort: Cohort, model: str) -> dict[str, Any]:
    """Return what is measured of each case, by its id, of a method that learns nothing here."""
    if name == AS_SHIPPED:
        return measure(Predictor.from_run(model), cohort, cohort.cases)
    rule = within_skull if name == "threshold" else plain
    return {case.case_id: score(rule(*hu_of(case)), truth_of(case)) for case in cohort.cases}


def trained(name: str, cohort: Cohort, patient: str, seed: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Train without a patient, and return what is measured of that patient's cases."""
    out = asked.work / f"{patient}-{name.replace(' ', '-')}-{seed}"
    done = out / "measured.json"
    if not done.is_file():
        fold = write_fold(asked.cohort, cohort, patient, out / "cohort")
        changes = {
            "data.split.kind": "column",
            "tasks.classification": None,
            "training.epochs": asked.epochs,
            "training.batch_size": 4,
            "training.seed": seed,
            "training.optimiser.learning_rate": TRAINED[name],
            "training.selection.metric": "loss",
        }
        if name == "fine-tuned":
            changes["initial_weights.path"] = asked.model
        experiment = tf.recipe("hematoma/head-ct", changes)
        run = tf.train(experiment, fold, out / "run", resume=True)
        cases = tuple(case for case in fold.cases if case.patient_id == patient)
        found = measure(run.predictor(), fold, cases)
        done.write_text(json.dumps(found), encoding="utf-8", newline="\n")
        shutil.rmtree(out / "run" / "checkpoints")
    return dict(json.loads(done.read_text(encoding="utf-8")))


def write_fold(source: Path, cohort: Cohort, patient: str, folder: Path) -> Cohort:
    """Write a table whose parts leave a patient out; the files stay where they are."""
    others = [one for one in patients_of(cohort) if one != patient]
    counts = {one: sum(case.patient_id == one for case in cohort.cases) for one in others}
    validates = min(others, key=lambda one: counts[one])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "cohort.yaml", folder)
    with (source / "cases.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with (folder / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "split"])
        writer.writeheader()
        for row in rows:
            part = {patient: "test", validates: "validation"}.get(row["patient_id"], "train")
            paths = {key: str((source / row[key]).resolve()) for key in ("image", "mask") if row[key]}
            writer.writerow({**row, **paths, "split": part})
    return read_cohort(folder, allow_outside=True)


def measure(predictor: Predictor, cohort: Cohort, cases: tuple[Case, ...]) -> dict[str, Any]:
    """Predict cases as a user would; return what is measured of each by its id."""
    wanted = {case.case_id: case for case in cases}
    found = {}
    for one in predictor.predict(replace(cohort, cases=cases)):
        found[one.case_id] = score(np.asarray(one.mask) > 0, truth_of(wanted[one.case_id]))
        found[one.case_id] |= {name: float(p) for name, p in one.probabilities.items()}
    return found


def score(found: Mask, truth: Mask) -> dict[str, float]:
    overlap = int((found & truth).sum())
    return {"dice": 2 * overlap / max(1, int(found.sum() + truth.sum())), "missed": float(overlap == 0)}


def hu_of(case: Case) -> tuple[NDArray[np.float32], tuple[float, ...]]:
    image = read_image(case.image)
    return np.asarray(image.array, np.float32), image.spacing


def truth_of(case: Case) -> Mask:
    assert case.mask is not None
    return np.asarray(read_label_map(case.mask).array) > 0


def plain(hu: NDArray[np.float32], spacing: tuple[float, ...]) -> Mask:
    return (hu >= 55) & (hu <= 90)


def within_skull(hu: NDArray[np.float32], spacing: tuple[float, ...]) -> Mask:
    """Smoothed 55 to 90 HU inside the skull, in components of a square centimetre at least."""
    pixel = spacing[0]
    bone = ndimage.binary_closing(hu > 95, iterations=round(3 / pixel))
    inside = ndimage.binary_fill_holes(bone) & ~bone
    inside = ndimage.binary_erosion(inside, iterations=round(1 / pixel))
    mask = plain(ndimage.gaussian_filter(hu, 1 / pixel), spacing) & inside
    labels, count = ndimage.label(mask)
    areas = ndimage.sum_labels(mask, labels, np.arange(1, count + 1)) * pixel**2
    return np.isin(labels, 1 + np.flatnonzero(areas >= 100))


def tables(measured: Mapping[str, list[dict[str, Any]]], cohort: Cohort) -> str:
    """Return the numbers as Markdown."""
    patient_of = {case.case_id: case.patient_id for case in cohort.cases}
    patients = patients_of(cohort)
    lines = [
        f"{len(patient_of)} slices of {len(patients)} patients. {machine()}.",
        "",
        "| method | Dice | lesions missed | " + " | ".join(patients) + " |",
        "|" + " --- |" * (3 + len(patients)),
    ]

    def values(name: str, what: str) -> dict[str, float]:
        runs = measured[name]
        return {case: float(np.mean([run[case][what] for run in runs])) for case in patient_of}

    def interval(one: Mapping[str, float]) -> str:
        by = [np.array([one[case] for case in one if patient_of[case] == name]) for name in patients]
        low, high = np.quantile([*_draws(by)], (0.025, 0.975))
        return f"{np.mean([*one.values()]):.3f} [{low:.3f}, {high:.3f}]"

    for name in measured:
        dice = values(name, "dice")
        of_each = [np.mean([dice[case] for case in dice if patient_of[case] == one]) for one in patients]
        cells = [interval(dice), interval(values(name, "missed")), *(f"{one:.3f}" for one in of_each)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| difference | Dice | lesions missed |", "| --- | --- | --- |"]
    for first, second in (
        ("fine-tuned", "random weights"), ("fine-tuned", AS_SHIPPED), (AS_SHIPPED, "threshold"),
    ):  # fmt: skip
        cells = []
        for what in ("dice", "missed"):
            one, other = values(first, what), values(second, what)
            cells.append(interval({case: one[case] - other[case] for case in one}))
        lines.append(f"| {first} above {second} | {' | '.join(cells)} |")
    spread = {
        name: [np.mean([one["dice"] for one in run.values()]) for run in measured[name]] for name in TRAINED
    }
    said = "; ".join(f"{name} {', '.join(f'{one:.3f}' for one in each)}" for name, each in spread.items())
    return "\n".join([*lines, "", f"Dice of single seeds: {said}."])


def _draws(by: list[NDArray[np.float64]]) -> Iterator[float]:
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
        yield float(np.concatenate([by[i] for i in generator.integers(len(by), size=len(by))]).mean())


if __name__ == "__main__":
    main()
