"""This program as shipped against others on anyone's cohort: same folds, same CPU-seconds, same scoring.

    python benchmarks/peers.py --cohort FOLDER --budget 150 --work FOLDER [--folds 5] [--methods auto,monai]

Folds are by patient (as many folds as patients where there are fewer); of the patients that a fold does not
test, a fifth validates, one at least. Every method gets the same three parts, one thread, and so many
CPU-seconds a fold from the first image read to the last step. Masks are scored on each image's own grid,
the test rows of all folds together, with intervals by patient. What is done is kept in --work: a stopped
comparison goes on.

- auto: `threefold train auto --budget`, as it is.
- hematoma/demo: the recipe as it is, for as many epochs as the budget holds (2D), without the task of a
  target that is not there.
- monai: a plain script. DenseNet121 for the class, then BasicUNet for the mask, half of the time each; Adam
  at 0.001, batches of 8 (2 in 3D), 128 pixels a side (64 in 3D), flips, rotations and zooms, the last
  epoch.

A cohort has two classes (`classes`), a mask (`mask`), or both; the rest of it is not looked at.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

METHODS = ("auto", "hematoma/demo", "monai")
PARTS = ("train", "validation", "test")
ROOT = Path(__file__).parents[1]
DONE = "predictions.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--budget", type=float, required=True, help="CPU-seconds a fold and method")
    parser.add_argument("--work", type=Path, required=True, help="what is kept")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--one", help="METHOD of one fold, in this process (used by itself)")
    asked = parser.parse_args()
    if asked.one:
        run_one(asked.one, asked.cohort, asked.work, asked.budget)
        return
    folds = write_folds(asked.cohort, asked.work, asked.folds)
    methods = asked.methods.split(",")
    for fold in folds:
        for method in methods:
            out = fold / method.replace("/", "-")
            if not (out / DONE).is_file():
                start_one(method, fold / "cohort", out, asked.budget)
    print(section(asked.cohort, folds, methods, asked.budget))


# --- folds -------------------------------------------------------------------------------------------------


def write_folds(source: Path, work: Path, count: int) -> list[Path]:
    """Write a cohort for each fold, whose table names the parts and the files where they are."""
    from threefold.cohorts.cohort import read_cohort

    cohort = read_cohort(source, allow_outside=True)
    label = {case.patient_id: str(case.label) for case in cohort.cases}
    patients = sorted(label, key=lambda one: (label[one], one))  # dealt out in turns: classes are spread
    count = min(count, len(patients))
    with (source / "cases.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    paths = {"image", "reference", *cohort.cases[0].label_maps, "mask", "structures"}
    found = []
    for number in range(count):
        folder = work / f"fold-{number}"
        found.append(folder)
        if (folder / "cohort" / "cases.csv").is_file():
            continue
        others = [one for place, one in enumerate(patients) if place % count != number]
        validators = max(1, len(others) // 5)
        validating = {others[(2 * k + 1) * len(others) // (2 * validators)] for k in range(validators)}
        (folder / "cohort").mkdir(parents=True)
        (folder / "cohort" / "cohort.yaml").write_bytes((source / "cohort.yaml").read_bytes())
        with (folder / "cohort" / "cases.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys([*rows[0], "split"])))
            writer.writeheader()
            for row in rows:
                patient = row.get("patient_id") or row["case_id"]
                part = "validation" if patient in validating else "train" if patient in others else "test"
                full = {key: str((source / row[key]).resolve()) for key in paths & {*row} if row[key]}
                writer.writerow({**row, **full, "split": part})
    return found


def start_one(method: str, cohort: Path, out: Path, budget: float) -> None:
    """Run a method on a fold in a process of one thread, as politely as can be."""
    out.mkdir(parents=True, exist_ok=True)
    alone = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--cohort", str(cohort), "--work", str(out), "--one", method]
    with (out / "log.txt").open("w") as log:
        subprocess.run(
            ["nice", "-n", "19", *command, "--budget", str(budget)],
            env={**os.environ, **alone},
            stdout=log,
            stderr=log,
            check=True,
        )


def run_one(method: str, cohort: Path, out: Path, budget: float) -> None:
    import torch

    torch.set_num_threads(1)
    done = with_monai(cohort, budget) if method == "monai" else with_threefold(method, cohort, out, budget)
    with (out / "cost.json").open("w") as stream:
        json.dump({"cpu_seconds": time.process_time(), **done["cost"]}, stream)
    done["table"].to_csv(out / DONE, index=False)


# --- this program ------------------------------------------------------------------------------------------


def with_threefold(method: str, folder: Path, out: Path, budget: float) -> dict[str, Any]:
    import pandas as pd

    from threefold.cohorts.cohort import read_cohort
    from threefold.training.auto import choose
    from threefold.training.run import train

    cohort = read_cohort(folder, allow_outside=True)
    if method == "auto":
        experiment, choices = choose(cohort, budget=budget, clock=time.process_time)
        print(*choices, sep="\n", flush=True)
    else:
        experiment = shipped(method, cohort, budget)
    run = train(experiment, cohort, out / "run")
    table = pd.read_csv(run.predictions)
    status = run.read_status()
    kept = {name: status[name] for name in ("epoch", "best_epoch")}
    return {"table": table[table["part"] == "test"], "cost": {**kept, **vars_of(run)}}


def vars_of(run: Any) -> dict[str, Any]:
    with run.metrics.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    phases = [name for name in rows[0] if name.startswith("seconds_")]
    return {"epochs_seconds": sum(float(row[name]) for row in rows for name in phases)}


def shipped(recipe: str, cohort: Any, budget: float) -> Any:
    """Return a recipe for as many epochs as the budget holds."""
    from threefold.cohorts.splits import make_split
    from threefold.experiments import load_experiment
    from threefold.training.plan import measure_cost, unchecked_plan

    changes = ["data.split.kind=column"]
    if len(cohort.spec.classes) < 2 or len({case.label for case in cohort.cases}) < 2:
        changes += ["tasks.classification=null", "training.selection.metric=loss"]
    if cohort.spec.mask is None:
        changes += ["tasks.segmentation=null"]
    experiment = load_experiment(recipe, changes)
    made = unchecked_plan(experiment, cohort, make_split(cohort, experiment.data.split))
    epoch = measure_cost(made, made.stages[-1], clock=time.process_time).seconds_per_epoch
    epochs = max(1, int(budget / (1.2 * epoch)))
    return load_experiment(recipe, [*changes, f"training.epochs={epochs}"])


# --- MONAI -------------------------------------------------------------------------------------------------


def with_monai(folder: Path, budget: float) -> dict[str, Any]:
    import numpy as np
    import pandas as pd
    import torch
    import torch.nn.functional as F
    import yaml
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet, DenseNet121
    from monai.transforms import (
        Compose,
        EnsureChannelFirst,
        LoadImage,
        RandFlipd,
        RandRotated,
        RandZoomd,
        Resize,
        ScaleIntensityRange,
        ScaleIntensityRangePercentiles,
    )
    from monai.utils import set_determinism

    started = time.process_time()
    set_determinism(0)
    spec = yaml.safe_load((folder / "cohort.yaml").read_text())
    cases = pd.read_csv(folder / "cases.csv", dtype=str).fillna("")
    axes, classes = spec["dimensions"], spec.get("classes", [])
    inside = (spec.get("mask") or {}).get("values", [1])
    side = {2: 128, 3: 64}[axes]
    window = (spec.get("intensity") or {}).get("window")
    scale = (
        ScaleIntensityRange(*window, 0, 1, clip=True)
        if window
        else ScaleIntensityRangePercentiles(1, 99, 0, 1, clip=True)
    )

    def flat(image: Any) -> Any:  # a slice stored as a volume of one
        return image.as_tensor()[..., 0] if image.ndim == axes + 2 else image.as_tensor()

    read = Compose([LoadImage(image_only=True), EnsureChannelFirst(), flat])
    whole = Compose([read, scale, Resize((side,) * axes, mode="area")])
    images = torch.stack([torch.as_tensor(whole(path)[:1]) for path in cases["image"]])
    masks = [
        torch.isin(read(path)[:1], torch.tensor(inside, dtype=torch.float)) if path else None
        for path in cases.get("mask", [""] * len(cases))
    ]
    small = [
        None if mask is None else F.interpolate(mask[None].float(), (side,) * axes, mode="area")[0] > 0.5
        for mask in masks
    ]
    labels = [classes.index(name) if name else None for name in cases.get("label", [""] * len(cases))]
    train = cases.index[cases["split"] == "train"].tolist()
    test = cases.index[cases["split"] == "test"].tolist()
    changed = Compose(
        [RandFlipd(("image", "mask"), prob=0.5, spatial_axis=axis) for axis in range(axes)]
        + [
            RandRotated(
                ("image", "mask"), *(0.26,) * (1 if axes == 2 else 3), prob=0.5, mode=("bilinear", "nearest")
            ),
            RandZoomd(
                ("image", "mask"), prob=0.5, min_zoom=0.85, max_zoom=1.15, mode=("bilinear", "nearest")
            ),
        ]
    )
    seen = {}

    def fit(name: str, network: Any, having: list[int], loss: Any, until: float) -> None:
        optimiser, rng = torch.optim.Adam(network.parameters(), 1e-3), np.random.default_rng(0)
        network.train()
        seen[name] = 0
        size = min(8 if axes == 2 else 2, len(having))
        while time.process_time() - started < until:
            order = rng.permutation(having)
            for first in range(0, len(order) - size + 1, size):
                chosen = order[first : first + size]
                drawn = [
                    changed(
                        {
                            "image": images[i],
                            "mask": torch.zeros_like(images[i]) if small[i] is None else small[i].float(),
                        }
                    )
                    for i in chosen
                ]
                batch = {
                    key: torch.stack([torch.as_tensor(one[key]) for one in drawn])
                    for key in ("image", "mask")
                }
                optimiser.zero_grad()
                loss(network(batch["image"]), batch["mask"], chosen).backward()
                optimiser.step()
                seen[name] += size
                if time.process_time() - started >= until:
                    break
        network.eval()

    known = [i for i in train if labels[i] is not None]
    masked = [i for i in train if small[i] is not None]
    both = len({labels[i] for i in known}) > 1
    classifier = segmenter = None
    if both:
        classifier = DenseNet121(spatial_dims=axes, in_channels=1, out_channels=len(classes))
        until = budget / 2 if masked else budget
        fit(
            "class",
            classifier,
            known,
            lambda out, _, chosen: F.cross_entropy(out, torch.tensor([labels[i] for i in chosen])),
            until,
        )
    if masked:
        segmenter = BasicUNet(spatial_dims=axes, in_channels=1, out_channels=2)
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        fit("mask", segmenter, masked, lambda out, mask, _: loss(out, mask), budget)
    cost = {
        "training_cpu_seconds": time.process_time() - started,
        **{f"cases_{k}": v for k, v in seen.items()},
    }
    rows = []
    with torch.no_grad():
        for i in test:
            case = cases.loc[i]
            row = {"case_id": case["case_id"], "patient_id": case["patient_id"], "part": "test"}
            row["site"] = case.get("site", "")
            if classifier is not None:
                row["label"] = "" if labels[i] is None else classes[labels[i]]
                shares = classifier(images[i][None]).double().softmax(1)[0].tolist()
                row |= {f"probability_{name}": p for name, p in zip(classes, shares, strict=True)}
            if segmenter is not None and masks[i] is not None:
                shares = segmenter(images[i][None]).softmax(1)[:, 1:]
                mode = "bilinear" if axes == 2 else "trilinear"
                found = F.interpolate(shares, masks[i].shape[1:], mode=mode)[0] > 0.5
                row["mask_truth_voxels"] = int(masks[i].sum())
                row["mask_predicted_voxels"] = int(found.sum())
                row["mask_overlap_voxels"] = int((found & masks[i]).sum())
            rows.append(row)
    return {"table": pd.DataFrame(rows), "cost": cost}


# --- what it came to ---------------------------------------------------------------------------------------


def section(source: Path, folds: list[Path], methods: list[str], budget: float) -> str:
    """Return the numbers as a section of Markdown."""
    import pandas as pd

    import threefold as tf
    from _machine import machine

    def folder(method: str, fold: Path) -> Path:
        return fold / method.replace("/", "-")

    tables = {
        method: pd.concat(
            [
                pd.read_csv(folder(method, fold) / DONE, dtype={"case_id": str, "patient_id": str})
                for fold in folds
            ]
        )
        for method in methods
    }
    costs = {
        method: [json.loads((folder(method, fold) / "cost.json").read_text()) for fold in folds]
        for method in methods
    }
    one = tables[methods[0]]
    scored = any(name.startswith("probability_") for name in one)
    asked = {"dice": "mask_truth_voxels" in one, "auc": scored}
    metrics = [name for name, there in asked.items() if there]
    lines = [
        f"## {source.resolve().name}",
        "",
        f"{len(one)} test cases of {one['patient_id'].nunique()} patients in {len(folds)} folds, "
        f"{budget:g} CPU-seconds of training a fold, one thread. {machine()}.",
        "",
        "| method | " + " | ".join(metrics) + " | CPU-seconds a fold, all | seen or epochs |",
        "|" + " --- |" * (len(metrics) + 3),
    ]
    for method in methods:
        cells = []
        for metric in metrics:
            pair = tf.compare(tables[method], tables[methods[0]], metric)
            cells.append(_said(pair.first))
        spent = [cost["cpu_seconds"] for cost in costs[method]]
        counts = [
            cost.get("epoch") or cost.get("cases_mask") or cost.get("cases_class") for cost in costs[method]
        ]
        what = "epochs" if "epoch" in costs[method][0] else "cases"
        lines.append(
            f"| {method} | {' | '.join(cells)} | {min(spent):.0f} to {max(spent):.0f} | "
            f"{min(counts)} to {max(counts)} {what} |"
        )
    lines += ["", "| difference | " + " | ".join(metrics) + " |", "|" + " --- |" * (len(metrics) + 1)]
    for method in methods[1:]:
        changes = [tf.compare(tables[method], tables[methods[0]], metric) for metric in metrics]
        cells = [_said(one.change, sign="+") for one in changes]
        lines.append(f"| {methods[0]} above {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _said(number: Any, sign: str = "") -> str:
    if math.isnan(number.value):
        return "not estimable"
    interval = "" if math.isnan(number.low) else f" [{number.low:{sign}.3f}, {number.high:{sign}.3f}]"
    return f"{number.value:{sign}.3f}{interval}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))
    main()
