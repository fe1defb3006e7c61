"""Where a Swin's class activation map is best taken from, on a trained run: docs/how-to/explain.md.

python benchmarks/cam_layers.py RUN... [--cohort FOLDER]

For each layer, over the run's test cases whose lesion is known: how often the map's peak lies in the lesion,
the share of the map inside it, and how many maps are zero everywhere. The declared layer is the first.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from threefold.cohorts.splits import read_split
from threefold.evaluation.evidence import attention_columns
from threefold.inference.evidence import Explainer
from threefold.inference.predictor import Predictor
from threefold.networks.cam import CamLayer
from threefold.run import RunFolder
from threefold.runs.evaluate import cohort_of_run

AT_ONCE = 16  # cases


def layers(explainer: Explainer) -> Iterator[tuple[str, CamLayer]]:
    """Yield layers of the encoder's last stage by what they are."""
    declared = explainer.predictor.network.cam_layer()
    block = declared.module.removesuffix(".norm1")
    stage, _, number = block.rpartition(".")
    yield "norm before the last attention", declared
    if int(number):
        before = CamLayer(f"{stage}.{int(number) - 1}", "channels last", declared.stride)
        yield "what the last block starts from", before
    yield "the last block", CamLayer(block, "channels last", declared.stride)
    yield "the encoder's last norm", CamLayer("encoder.norm", "channels last", declared.stride)


def measure(run: RunFolder, cohort_folder: Path | None) -> None:
    """Print a line for each layer."""
    from threefold.cohorts.cohort import read_cohort

    given = None if cohort_folder is None else read_cohort(cohort_folder, allow_outside=True)
    cohort = cohort_of_run(run, given)
    explainer = Explainer.of(Predictor.from_run(run.path, device="cpu"), cohort, run.masks)
    cases = read_split(run.split).cases(cohort, "test")
    prepared = [(case, explainer.prepare(case)) for case in cases]
    for name, layer in layers(explainer):
        explainer.predictor.network.cam_layer = lambda layer=layer: layer  # type: ignore[misc]
        found, empty = [], 0
        for start in range(0, len(cases), AT_ONCE):
            batch = prepared[start : start + AT_ONCE]
            for (case, one), seen in zip(batch, explainer.look([one.array for _, one in batch]), strict=True):
                lesion = explainer.lesion(case, one)
                empty += seen.is_empty
                if lesion is not None and lesion.any() and not seen.is_empty:
                    found.append(attention_columns(seen.map, seen.grid, lesion, seed=0))
        peak, share = (np.mean([each[key] for each in found]) for key in ("pointing", "share_inside"))
        print(f"| {name} | {peak:.3f} | {share:.3f} | {len(found)} | {empty} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--cohort", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.runs:
        print("no run was named: there is nothing to measure")
    for path in arguments.runs:
        print(f"{path}\n| layer | peak in the lesion | share inside | cases | maps of zeros |")
        print("| --- | ---: | ---: | ---: | ---: |")
        measure(RunFolder(path), arguments.cohort)
