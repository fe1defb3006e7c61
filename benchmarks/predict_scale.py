"""How the time and the memory of `threefold predict` grow with the number of images.

    python benchmarks/predict_scale.py [--counts 100 1000 10000]

Each count is predicted by a process of its own from a folder of small NIfTI slices, with a tiny network, so
that what is measured is everything around it: listing, reading, comparing, journal, tables, JSON. Then the
same command is repeated, which finds everything done. Peak memory is the process's (ru_maxrss).

Writes docs/results/speed/predict-scale.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from _usage import usage_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "speed" / "predict-scale.md"
SIDE = 56


def make_run(folder: Path) -> None:
    """Write a run of a tiny network."""
    import json

    import safetensors.torch
    import torch

    from threefold.cohorts.cohort import Case, CohortSpec
    from threefold.cohorts.trained_on import describe_training
    from threefold.experiment import Experiment
    from threefold.experiments import experiment_yaml
    from threefold.run import RunFolder
    from threefold.tasks.build import build_network

    experiment = Experiment.model_validate(
        {
            "name": "tiny",
            "data": {"preprocessing": {"size": [SIDE, SIDE]}},
            "network": {"kind": "swin-unet", "encoder": {"embed_dim": 6, "depths": [1, 1], "heads": [1, 2]}},
            "tasks": {"classification": {}, "segmentation": {}},
        }
    )
    spec = CohortSpec.model_validate(
        {
            "name": "slices",
            "modality": "ct",
            "dimensions": 2,
            "classes": ["no", "yes"],
            "mask": {},
            "intensity": {"unit": "HU", "window": [0, 80]},
        }
    )
    run = RunFolder(folder)
    folder.mkdir()
    run.experiment.write_text(experiment_yaml(experiment))
    described = {"name": spec.name, "fingerprint": "0", "folder": "?", "spec": spec.model_dump(mode="json")}
    run.cohort.write_text(json.dumps(described))
    run.write_status(state="finished", threshold=0.5)
    torch.manual_seed(0)
    safetensors.torch.save_file(build_network(experiment, spec).state_dict(), run.weights)
    images = folder.parent / "seen"
    make_images(images, 4)
    cases = [Case(path.name, path.name, "a", path) for path in sorted(images.iterdir())]
    run.trained_on.write_text(describe_training(cases, spec).model_dump_json())


def make_images(folder: Path, count: int) -> None:
    """Write slices with a rectangle each."""
    from threefold.images.writing import write_nifti

    folder.mkdir()
    for number in range(count):
        array = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.int16)
        array[5 : 10 + number % 40, 8:20] = 80
        array[0] = -1000
        write_nifti(folder / f"{number:06d}.nii", array, np.diag([-1.0, -1.0, 5.0, 1.0]))


def main() -> None:
    """Measure, print and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    counts = parser.parse_args().counts
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder / "run")
        for count in counts:
            images, out = folder / f"images-{count}", folder / f"out-{count}"
            make_images(images, count)
            started = time.monotonic()
            command = ("predict", str(folder / "run"), str(images), "--out", str(out), "--json")
            first, again = usage_of(*command), usage_of(*command)
            line = f"| {count:,} | {first[0]:.1f} | {first[1]:.0f} | {again[0]:.1f} | {again[1]:.0f} |"
            print(line, f"({time.monotonic() - started:.0f} s)", flush=True)
            lines.append(line)
    text = f"""\
# Predicting many images

`python benchmarks/predict_scale.py`, {datetime.date.today()}, {platform.processor() or platform.machine()},
one thread: `threefold predict RUN FOLDER --out OUT --json` over NIfTI slices of {SIDE} x {SIDE} with a tiny
network, in a process of its own, then the same command again, which finds everything done. CPU seconds, and
the process's peak memory.

| images | s | MiB | again: s | MiB |
| ---: | ---: | ---: | ---: | ---: |
"""
    PAGE.write_text(text + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
