"""Label propagation on fetal-heart phantoms: this program against no registration, affine, and antspyx SyN.

    python benchmarks/propagation_phantoms.py --work FOLDER [--ants FOLDER]

Two cases of each anomaly of the study's phantom (96^3 at 0.75 mm), each registered to the atlas of its
diagnosis. Dice is the mean over the vessels against the phantom's truth. Contestants take turns, case by
case.

What is done is kept in --work.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from _machine import machine
from propagation_quality import ROOT, keep, kept, syn_of

PATIENTS = (2, 2, 2)
SETTINGS: dict[str, dict[str, Any]] = {
    "ours, quick (64^3, 12 steps)": {"size": (64, 64, 64), "refinement_steps": 12},
    "ours, defaults": {},
    "ours, defaults, steered by the mask": {"mask_weight": 0.1},
}
COLUMNS = ("dice_unregistered", "dice_affine", "dice", "folding_share")


def ours(cohort: Any, case: Any, work: Path, **changes: Any) -> dict[str, float]:
    """Propagate to one case from nothing, as a user would, and time it."""
    from threefold.atlases.propagation import propagate
    from threefold.atlases.spec import load_propagation

    out = work / "one"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    propagate(
        replace(cohort, cases=(case,)),
        out,
        load_propagation({"precision": "bf16", "epochs": 0, **changes}),
        copy=False,
    )
    seconds = time.perf_counter() - start
    with (out / "quality.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    return {"seconds": seconds, **{name: float(row[name]) for name in COLUMNS}}


def race(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every contestant on every case; return a row a case."""
    from threefold.cohorts.cohort import read_cohort
    from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort

    folder = arguments.work / "hearts"
    if not folder.exists():
        make_fetal_heart_cohort(folder, PRESETS["study"].model_copy(update={"patients": PATIENTS}), seed=0)
    cohort = read_cohort(folder)
    atlases = {atlas.label: atlas for atlas in cohort.spec.atlases}
    rows = []
    for case in cohort.cases:
        path = arguments.work / f"{case.case_id}.json"
        row = kept(path) or {"case": case.case_id, "label": cohort.spec.classes[case.label]}
        atlas = atlases[row["label"]]
        if "SyN" not in row:
            files = [case.image, folder / atlas.image, folder / atlas.structures, case.reference]
            row["SyN"] = syn_of([str(file) for file in files], arguments)
        for name, changes in SETTINGS.items():
            if name not in row:
                row[name] = ours(cohort, case, arguments.work, **changes)
        keep(path, row)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the table of medians over the cases."""

    def median(name: str, key: str) -> float:
        return statistics.median(row[name][key] for row in rows)

    raced = [*(["SyN"] if rows[0]["SyN"] else []), *SETTINGS]
    plain = "ours, defaults"
    lines = [
        "# Label propagation on fetal-heart phantoms",
        "",
        *(line for line in (__doc__ or "").split("\n\n")[2].splitlines()),
        "SyN: antspyx with its defaults, labels nearest. Ours: refinement from the affine alignment, no "
        "network. Times are of the whole; medians over the cases, the smallest and the largest Dice in "
        "brackets.",
        "",
        f"`python benchmarks/propagation_phantoms.py --work WORK{' --ants ANTS' if arguments.ants else ''}`, "
        f"{datetime.date.today().isoformat()}, {machine()}, {arguments.threads} threads, "
        f"PyTorch {torch.__version__}.",
        "",
        "| | Dice | seconds | folding voxels |",
        "| --- | ---: | ---: | ---: |",
        f"| no registration | {median(plain, 'dice_unregistered'):.3f} | | |",
        f"| affine (ours) | {median(plain, 'dice_affine'):.3f} | | |",
    ]
    for name in raced:
        dice = [row[name]["dice"] for row in rows]
        lines.append(
            f"| {name} | {statistics.median(dice):.3f} [{min(dice):.3f}, {max(dice):.3f}] | "
            f"{median(name, 'seconds'):.1f} | {median(name, 'folding_share'):.3%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/propagation-phantoms"))
    parser.add_argument("--ants", type=Path, help="folder that antspyx was installed into")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/propagation-phantoms.md")
    arguments = parser.parse_args()
    from threefold.allocation import tune_allocation

    tune_allocation()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    table = as_markdown(race(arguments), arguments)
    arguments.out.write_text(table)
    print(f"\n{table}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
