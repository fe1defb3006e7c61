"""Label propagation on real fetal brains: this program against no registration, affine, and antspyx SyN.

    python benchmarks/propagation_quality.py --data FOLDER --work FOLDER [--ants FOLDER]

FOLDER of data: `fetal_brain` of the shared real scans (GA22_notoperated, ...; srr, parcellation, mask).
Every stage's result is kept in --work, so that a study that was stopped goes on where it was. SyN runs where
antspyx can be imported, or from --ants, a folder that `pip install antspyx --target` filled.

1. A network is trained to register the atlas GA26_operated to the volumes that no pair tests.
2. GA26_operated to GA30_operated, in turns: SyN with its defaults, and ours (the network's prediction,
   refined on the pair; and refined from nothing). Times are of the whole: reading, affine alignment,
   registration, labels carried and written.
3. GA25_operated to GA25_notoperated likewise.
4. The whole chain: the atlas's labels propagated to all seven other volumes, a segmenter trained on those of
   five, and its Dice against the true parcellation of the two that the pairs test.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _machine import machine

ROOT = Path(__file__).parents[1]
STRUCTURES = (
    "white matter",
    "ventricles",
    "cerebellum",
    "extra-axial fluid",
    "cortical grey matter",
    "deep grey matter",
    "brainstem",
    "corpus callosum",
)
PAIRS = (("GA26_operated", "GA30_operated"), ("GA25_operated", "GA25_notoperated"))
ATLAS = "GA26_operated"
QUICK: dict[str, Any] = {"size": (64, 64, 64), "refinement_steps": 12}
SEGMENTER = (
    "data.split.kind=column",
    "data.preprocessing.size=[64,64,64]",
    "training.epochs=100",
    "training.batch_size=2",
)
"""Of the recipe aortic-arch/demo-seg, fixed before its first run."""
REMARKS = "What this says, and what not:"
GOAL_DICE, GOAL_SHARE, GOAL_FOLDING = 0.757, 1 / 5, 0.005


# --- cohorts -----------------------------------------------------------------------------------------------


def make_cohort(
    data: Path, folder: Path, atlas: str, cases: list[str], parts: dict[str, str] | None = None
) -> Any:
    """Write a cohort that refers to the volumes where they are; the parcellations are the references.

    `parts` are those of a split of the cases.
    """
    from threefold.cohorts.cohort import AtlasSpec, CohortSpec, write_cohort
    from threefold.core.targets import MaskSpec

    def path(name: str, file: str) -> str:
        return os.path.relpath(data / name / f"{file}.nii.gz", folder.absolute())

    spec = CohortSpec(
        name="fetal-brain",
        modality="mri",
        dimensions=3,
        mask=MaskSpec(name="brain"),
        structures=STRUCTURES,
        atlases=(AtlasSpec(name=atlas, image=path(atlas, "srr"), structures=path(atlas, "parcellation")),),
    )
    rows = [
        {
            "case_id": name,
            "patient_id": name,
            "site": name.partition("_")[2],
            "image": path(name, "srr"),
            "mask": path(name, "mask"),
            "reference": path(name, "parcellation"),
            **({} if parts is None else {"split": parts[name]}),
        }
        for name in cases
    ]
    return write_cohort(folder, spec, rows, allow_outside=True)


def names_of(data: Path) -> list[str]:
    return sorted(folder.name for folder in data.iterdir() if folder.is_dir())


# --- the contestants ---------------------------------------------------------------------------------------


def train(arguments: argparse.Namespace) -> Path:
    """Train the network on the atlas and every volume that no pair tests; return its weights."""
    from threefold.atlases.propagation import propagate

    out = arguments.work / "trained"
    tested = {name for _, fixed in PAIRS for name in [fixed]}
    cases = [name for name in names_of(arguments.data) if name not in tested | {ATLAS}]
    cohort = make_cohort(arguments.data, arguments.work / "training-cohort", ATLAS, cases)
    start = time.perf_counter()
    propagate(
        cohort, out, settings(arguments, epochs=arguments.epochs), copy=False, progress=report("training")
    )
    if kept(arguments.work / "training.json") is None:
        keep(arguments.work / "training.json", {"seconds": time.perf_counter() - start, "cases": cases})
    return out / "registration" / "weights.safetensors"


def settings(arguments: argparse.Namespace, **changes: Any) -> Any:
    from threefold.atlases.spec import load_propagation

    return load_propagation({"precision": "bf16", **changes}, arguments.set)


def ours(
    arguments: argparse.Namespace, pair: tuple[str, str], weights: Path | None, **changes: Any
) -> dict[str, Any]:
    """Propagate from one volume to another as a user would, and time it."""
    from threefold.atlases.propagation import propagate

    folder = arguments.work / f"pair-{pair[0]}-{pair[1]}"
    for one in (folder, folder.with_name(folder.name + "-out")):
        shutil.rmtree(one, ignore_errors=True)
    cohort = make_cohort(arguments.data, folder, pair[0], [pair[1]])
    spec = settings(arguments, epochs=0, weights=None if weights is None else str(weights), **changes)
    out = folder.with_name(folder.name + "-out")
    start = time.perf_counter()
    propagate(cohort, out, spec, copy=False)
    seconds = time.perf_counter() - start
    with (out / "quality.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    measures = ("dice", "dice_affine", "dice_unregistered", "folding_share", "log_jacobian_sd")
    return {"seconds": seconds, **{name: float(row[name]) for name in measures}}


def syn(arguments: argparse.Namespace, pair: tuple[str, str]) -> dict[str, Any] | None:
    """Register a pair with antspyx."""
    moving, fixed = (arguments.data / name for name in pair)
    files = (fixed / "srr", moving / "srr", moving / "parcellation", fixed / "parcellation")
    return syn_of([f"{file}.nii.gz" for file in files], arguments)


def syn_of(files: list[str], arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Register with antspyx in a process of its own; None where it can't be imported.

    Files: the fixed and the moving image, the moving labels, the fixed ones.
    """
    environment = dict(os.environ, ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=str(arguments.threads))
    if arguments.ants:
        environment["PYTHONPATH"] = str(arguments.ants)
    command = [sys.executable, __file__, "--syn", *files]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def run_syn(fixed_file: str, moving_file: str, labels_file: str, truth_file: str) -> None:
    import ants

    start = time.perf_counter()
    fixed, moving = (ants.image_read(file) for file in (fixed_file, moving_file))
    labels = ants.image_read(labels_file)
    found = ants.registration(fixed, moving, type_of_transform="SyN")
    warped = ants.apply_transforms(
        fixed, labels, found["fwdtransforms"], interpolator="nearestNeighbor"
    ).numpy()
    seconds = time.perf_counter() - start
    jacobian = ants.create_jacobian_determinant_image(fixed, found["fwdtransforms"][0]).numpy()
    truth = ants.image_read(truth_file).numpy()
    print(
        json.dumps(
            {
                "seconds": seconds,
                "dice": mean_dice(warped, truth),
                "folding_share": float((jacobian <= 0).mean()),
            }
        )
    )


def mean_dice(labels: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over the labels that the truth has."""
    scores = [
        2 * ((labels == k) & (truth == k)).sum() / ((labels == k).sum() + (truth == k).sum())
        for k in np.unique(truth[truth > 0])
    ]
    return float(np.mean(scores))


# --- the study ---------------------------------------------------------------------------------------------


def keep(path: Path, values: Any) -> None:
    path.with_suffix(".partial").write_text(json.dumps(values, indent=2))
    path.with_suffix(".partial").replace(path)


def kept(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def report(what: str) -> Any:
    def progress(done: int, total: int) -> None:
        if done * 20 // total > (done - 1) * 20 // total:
            print(f"{what}: {done} of {total}", flush=True)

    return progress


def compare(arguments: argparse.Namespace, weights: Path) -> dict[str, Any]:
    """Run the contestants of each pair in turns, round after round."""
    results = {}
    for pair in PAIRS:
        path = arguments.work / f"{pair[0]}-{pair[1]}.json"
        rounds = kept(path) or []
        contestants = {
            "SyN": lambda pair=pair: syn(arguments, pair),
            "network and refinement": lambda pair=pair: ours(arguments, pair, weights),
            "refinement alone": lambda pair=pair: ours(arguments, pair, None),
            "refinement alone, quick": lambda pair=pair: ours(arguments, pair, None, **QUICK),
        }
        for number in range(arguments.rounds):
            if number == len(rounds):
                rounds.append({})
            for name, run in contestants.items():
                if name not in rounds[number]:
                    rounds[number][name] = run()
                    keep(path, rounds)
                    print(pair, number, name, json.dumps(rounds[number][name]), flush=True)
        results[" to ".join(pair)] = rounds
    return results


def whole_chain(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """Propagate the atlas's labels to every other volume, train on five; a row a volume."""
    from threefold.atlases.propagation import propagate

    names = [name for name in names_of(arguments.data) if name != ATLAS]
    tested = {fixed for _, fixed in PAIRS}
    parts = {name: "test" if name in tested else "train" for name in names}
    parts[next(name for name in reversed(names) if name not in tested)] = "validation"
    cohort = make_cohort(arguments.data, arguments.work / "cohort", ATLAS, names, parts)
    out = arguments.work / "propagated"
    if not out.exists():
        propagate(cohort, out, settings(arguments, epochs=0), progress=report("whole chain"))
    with (out / "quality.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = segment(arguments, out)
    return [{**row, "part": parts[row["case_id"]], **found.get(row["case_id"], {})} for row in rows]


def segment(arguments: argparse.Namespace, propagated: Path) -> dict[str, dict[str, str]]:
    """Train a segmenter on propagated labels; return, for each test case, the Dice with the parcellation."""
    from threefold.cohorts.cohort import read_cohort
    from threefold.experiments import load_experiment
    from threefold.reporting.examples import case_dice
    from threefold.runs.evaluate import evaluate_run
    from threefold.training.progress import terminal_progress
    from threefold.training.run import train as train_run

    experiment = load_experiment("aortic-arch/demo-seg", SEGMENTER)
    run = train_run(
        experiment,
        read_cohort(propagated, allow_outside=True),
        arguments.work / "segmenter",
        resume=True,
        progress=terminal_progress(),
    )
    predictions = evaluate_run(run).predictions
    test = predictions.part("test")
    values = case_dice(test, predictions)
    return {name: {"segmenter": f"{one:.3f}"} for name, one in zip(test["case_id"], values, strict=True)}


def as_markdown(results: dict[str, Any], chain: list[dict[str, str]], arguments: argparse.Namespace) -> str:
    command = f"python benchmarks/propagation_quality.py --data DATA --work WORK --rounds {arguments.rounds}"
    command += f" --threads {arguments.threads}" + (" --ants ANTS" if arguments.ants else "")
    command += "".join(f" --set {change}" for change in arguments.set)
    lines = [
        "# Label propagation on real fetal brains",
        "",
        "Eight averages of real fetal brain MRI (135x189x155 at 0.8 mm, Fidon et al. 2021, CC0) with eight "
        "labels. Dice is the mean over the labels, on the image's own grid. SyN: antspyx with its defaults, "
        "labels nearest, as a user runs it. Times are of the whole (reading, affine alignment, registration, "
        "labels carried, measured and written), contestants in turns on the same cores, medians. Quick: "
        "size=[64,64,64] refinement_steps=12; else the defaults.",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}, {machine()}, {arguments.threads} threads, "
        f"PyTorch {torch.__version__}.",
    ]
    for pair, rounds in results.items():
        lines += ["", f"## {pair}", "", "| | Dice | seconds | share of SyN's time | folding voxels |"]
        lines += ["| --- | ---: | ---: | ---: | ---: |"]
        first = rounds[0]["network and refinement"]
        lines += [
            f"| no registration | {first['dice_unregistered']:.3f} | | | |",
            f"| affine (ours) | {first['dice_affine']:.3f} | | | |",
        ]
        for name in ("SyN", "refinement alone, quick", "refinement alone", "network and refinement"):
            found = [one[name] for one in rounds if one[name] is not None]
            if not found:
                lines.append(f"| {name}: antspyx is not installed, skipped | | | | |")
                continue
            seconds = statistics.median(one["seconds"] for one in found)
            shares = [
                one[name]["seconds"] / one["SyN"]["seconds"] for one in rounds if one["SyN"] is not None
            ]
            share = f"{statistics.median(shares):.2f}" if shares else ""
            dice = statistics.median(one["dice"] for one in found)
            folding = statistics.median(one["folding_share"] for one in found)
            lines.append(f"| {name} | {dice:.3f} | {seconds:.1f} | {share} | {folding:.3%} |")
    training = kept(arguments.work / "training.json")
    lines += [
        "",
        f"Goal for the first pair: the Dice that SyN had when the goal was set ({GOAL_DICE}) in at most "
        f"{GOAL_SHARE:.1f} of its time, folding below {GOAL_FOLDING:.1%}. "
        f"The network was trained for {arguments.epochs} epochs on the "
        f"atlas {ATLAS} and {', '.join(training['cases'])}: {training['seconds'] / 60:.0f} minutes, which "
        "the times above do not hold.",
        "",
        f"## The whole chain: {ATLAS} propagated to every other volume",
        "",
        "Registered: refined from the affine alignment, the defaults. Segmenter: the attention U-Net of "
        "aortic-arch/demo-seg on 64 voxels a side, trained on the propagated labels of the five volumes that "
        "are neither test nor the atlas (one of them for validation), which never sees a true label: "
        + " ".join(f"`{change}`" for change in SEGMENTER)
        + ".",
        "",
        "| case | part | no registration | affine | registered | segmenter | folding voxels |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in chain:
        numbers = [f"{float(row[key]):.3f}" for key in ("dice_unregistered", "dice_affine", "dice")]
        lines.append(
            f"| {row['case_id']} | {row['part']} | "
            + " | ".join(numbers)
            + f" | {row.get('segmenter', '')} | {float(row['folding_share']):.3%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = Path(os.environ.get("THREEFOLD_SHARED", ROOT.parent / "shared")) / "data" / "fetal_brain"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--work", type=Path, default=Path("out/propagation-quality"))
    parser.add_argument("--ants", type=Path, help="folder that antspyx was installed into")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--set", action="append", default=[], help="KEY=VALUE of the propagation")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/propagation.md")
    parser.add_argument("--syn", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.syn:
        run_syn(*arguments.syn)
        return
    if not arguments.data.is_dir():
        print(f"skipped: the fetal brains are not at {arguments.data}; name their folder with --data")
        return
    from threefold.allocation import tune_allocation

    tune_allocation()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    weights = train(arguments)
    results = compare(arguments, weights)
    table = as_markdown(results, whole_chain(arguments), arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    # What people wrote below the tables stays.
    before = arguments.out.read_text() if arguments.out.exists() else ""
    arguments.out.write_text(table + "".join(before.partition(f"\n{REMARKS}")[1:]))
    print(f"\n{table}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
