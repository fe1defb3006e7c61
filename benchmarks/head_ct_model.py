"""Make the model threefold/head-ct: varied phantoms, a training, and what of it the package ships.

    python benchmarks/head_ct_model.py --work FOLDER [--epochs 3] [--out src/threefold/models/head-ct]

The cohort and the run are kept in --work, and a stopped training goes on. `--out` gets what prediction needs
of the run, with weights in bfloat16; card.md, which is written by hand, stays. No real scan is read.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import safetensors.torch
import torch

import threefold as tf
from threefold.checksums import seal_tensors
from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.splits import make_split
from threefold.phantoms.varied_head import PRESETS, make_varied_head_cohort
from threefold.run import RunFolder
from threefold.runs.finished import finish_status
from threefold.training.plan import unchecked_plan

SEED = 0
OUT = Path(__file__).parents[1] / "src" / "threefold" / "models" / "head-ct"
SETTINGS = {
    "data.split.validation": 0.03,
    "data.split.test": 0.03,
    "training.optimiser.warmup_epochs": 0.3,
    "training.seed": SEED,
    "evaluation.replicates": 200,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="what is kept")
    parser.add_argument("--cases", type=int, default=PRESETS["study"].cases)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    folder = asked.work / "cohort"
    if not (folder / "cases.csv").is_file():
        spec = PRESETS["study"].model_copy(update={"cases": asked.cases})
        make_varied_head_cohort(folder, spec, SEED)
    cohort = read_cohort(folder)
    experiment = tf.recipe("hematoma/head-ct", {**SETTINGS, "training.epochs": asked.epochs})
    # Phantoms need no audit, which would read all of them once more.
    made = unchecked_plan(experiment, cohort, make_split(cohort, experiment.data.split))
    run = tf.train(made, cohort, asked.work / "run", resume=True)
    print(run.evaluate().table.to_string())
    ship(RunFolder(run.path), RunFolder(asked.out))


def ship(run: RunFolder, out: RunFolder) -> None:
    """Write what prediction needs of a run."""
    out.path.mkdir(parents=True, exist_ok=True)
    for file in (run.experiment, run.trained_on, run.weights.with_suffix(".json")):
        shutil.copy(file, out.path)
    cohort = {**run.read_cohort(), "folder": "threefold phantom varied-head"}
    out.cohort.write_text(json.dumps(cohort, indent=2) + "\n", encoding="utf-8", newline="\n")
    weights = safetensors.torch.load_file(run.weights)
    small = {
        name: value.to(torch.bfloat16) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    content = safetensors.torch.save(small, {"threefold": tf.__version__})
    out.weights.write_bytes(seal_tensors(content))
    status = run.read_status()
    finish_status(out, **{key: value for key, value in status.items() if key != "state"})
    print(f"{out.path}: {sum(value.numel() for value in small.values())} weights, {len(content)} bytes")


if __name__ == "__main__":
    main()
