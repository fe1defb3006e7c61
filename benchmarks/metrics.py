"""Segmentation metrics of a 12-class 128^3 pair: this program against MONAI, and the time of Betti numbers.

    python benchmarks/metrics.py [--rounds N]

Dice, ASD and HD95 (mm, anisotropic spacing) of 11 structures, in one process on one thread, the two taking
turns; medians. MONAI is given its one-hot tensors ready made. Both pairs are synthetic: 11 vessels (tubes 2
to 8 voxels wide) and 11 large organs that fill half the volume. A prediction is the truth, smoothly displaced
by up to 2 voxels, with ragged borders and islands of false positives all over the volume, which defeat
cropping.

Writes docs/results/speed/metrics.md.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from _machine import machine
from threefold.evaluation.centrelines import cl_dice
from threefold.evaluation.structure_measures import structure_rows
from threefold.evaluation.surfaces import surface_distances, voxel_counts
from threefold.topology import betti_numbers

ROOT = Path(__file__).parents[1]
SIZE, COUNT = 128, 11
SPACING = (0.75, 0.8, 1.0)
GOALS = {"vessels": 7.0, "organs": 4.5}
BETTI_GOAL_MS = 50.0
ISLANDS = 60
TOLERANCE = 1e-6

Labels = NDArray[np.uint8]
Floats = NDArray[np.float64]


# --- the pairs -------------------------------------------------------------------------------------------


def vessels(rng: np.random.Generator) -> Labels:
    """Tubes around smooth curves across the middle of the volume."""
    labels = np.zeros((SIZE,) * 3, np.uint8)
    voxels = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"), -1).reshape(-1, 3)  # (n, 3)
    along = np.linspace(0, 1, 200)[:, None]
    for label in range(1, COUNT + 1):
        ends = rng.uniform(20, 108, (4, 3))
        curve = sum(
            w * p
            for w, p in zip(
                ((1 - along) ** 3, 3 * along * (1 - along) ** 2, 3 * along**2 * (1 - along), along**3),
                ends,
                strict=True,
            )
        )
        distance, _ = cKDTree(curve).query(voxels, distance_upper_bound=4.5)
        labels[(distance < rng.uniform(1.2, 4)).reshape(labels.shape)] = label
    return labels


def organs(rng: np.random.Generator) -> Labels:
    """Large regions: the nearest of 11 smooth random fields, inside a body that fills half of the volume."""
    fields = np.stack([gaussian_filter(rng.standard_normal((SIZE,) * 3), 14) for _ in range(COUNT)])
    body = gaussian_filter(rng.standard_normal((SIZE,) * 3), 20)
    labels = (fields.argmax(0) + 1).astype(np.uint8)
    labels[body < np.median(body)] = 0
    return labels


def predicted(truth: Labels, rng: np.random.Generator) -> Labels:
    """The truth displaced, its borders ragged, with islands."""
    shifts = np.stack([gaussian_filter(rng.standard_normal(truth.shape), 8) for _ in range(3)])
    shifts *= 2 / np.abs(shifts).max()
    shifts += rng.normal(0, 0.3, shifts.shape)
    at = np.indices(truth.shape) + shifts
    found: Labels = map_coordinates(truth, at, order=0, mode="nearest")
    for centre in rng.integers(3, SIZE - 3, (ISLANDS, 3)):
        radius = rng.integers(1, 3)
        found[tuple(slice(c - radius, c + radius) for c in centre)] = rng.integers(1, COUNT + 1)
    return found


# --- the contestants -------------------------------------------------------------------------------------


def ours(truth: Labels, found: Labels) -> Floats:
    """Dice, ASD, HD95 of each structure: (11, 3)."""
    in_truth, in_found, in_both = voxel_counts(truth, found, COUNT)
    between = surface_distances(truth, found, COUNT, SPACING)
    dice = 2 * in_both / (in_truth + in_found)
    return np.array(
        [
            (d, s.average(), s.hausdorff()) if s else (d, np.nan, np.nan)
            for d, s in zip(dice, between, strict=True)
        ]
    )


def monai_metrics() -> Callable[[torch.Tensor, torch.Tensor], Floats]:
    """The same by MONAI's classes, on (1, 12, I, J, K) one-hot tensors."""
    from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDistanceMetric

    def measure(truth: torch.Tensor, found: torch.Tensor) -> Floats:
        dice = DiceMetric(include_background=False)(found, truth)
        asd = SurfaceDistanceMetric(symmetric=True)(found, truth, spacing=SPACING)
        hd95 = HausdorffDistanceMetric(percentile=95)(found, truth, spacing=SPACING)
        return torch.stack([m[0].double() for m in (dice, asd, hd95)], dim=1).numpy()  # type: ignore[union-attr]

    return measure


def one_hot(labels: Labels) -> torch.Tensor:
    return torch.stack([torch.from_numpy(labels == label) for label in range(COUNT + 1)])[None]


# --- measuring -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    kind: str
    seconds: dict[str, float]
    surface_voxels: int
    difference: float


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def compare(kind: str, make: Callable[[np.random.Generator], Labels], rounds: int) -> Result:
    rng = np.random.default_rng(7)
    truth = make(rng)
    found = predicted(truth, rng)
    monai, hot = monai_metrics(), (one_hot(truth), one_hot(found))
    a, b = ours(truth, found), monai(*hot)
    assert np.isfinite(a).all()
    difference = float((np.abs(a - b) / np.maximum(1, np.abs(b))).max())
    names = [str(label) for label in range(COUNT)]
    calls: dict[str, Callable[[], object]] = {
        "MONAI": lambda: monai(*hot),
        "ours": lambda: ours(truth, found),
        "Betti": lambda: betti_numbers(found, COUNT),
        "Betti, true": lambda: betti_numbers(truth, COUNT),
        "clDice": lambda: cl_dice(truth, found, COUNT),
        "all": lambda: structure_rows(truth, found, names, SPACING),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    surface = sum(
        len(s.to_truth) + len(s.to_predicted) for s in surface_distances(truth, found, COUNT, SPACING) if s
    )
    return Result(kind, {name: statistics.median(t) for name, t in times.items()}, surface, difference)


def report(results: list[Result], rounds: int) -> str:
    lines = [
        "# Speed of segmentation metrics",
        "",
        "Dice, ASD and HD95 of 11 structures of a 128^3 pair, by MONAI and by this program; Betti numbers of "
        "the 11 predicted and of the 11 true structures; clDice; and a case's whole table (all of it, with "
        f"the union). Synthetic pairs with {ISLANDS} islands of false positives, and borders as ragged as "
        "noise of 0.3 voxels makes them; MONAI's one-hot tensors are not timed. "
        "Medians, taking turns in one process on one thread. Difference: the largest one to MONAI's value, "
        "absolute or, for values above 1, relative (MONAI's are float32).",
        "",
        f"`python benchmarks/metrics.py --rounds {rounds}`, {datetime.date.today()}, {machine()}.",
        "",
        "| pair | surface voxels | MONAI (ms) | ours (ms) | ratio | goal | difference "
        "| Betti, predicted (ms) | Betti, true (ms) | goal | clDice (ms) | whole table (ms) |",
        "| --- " + "| ---: " * 11 + "|",
    ]
    for r in results:
        s = r.seconds
        cells = (
            r.kind,
            r.surface_voxels,
            f"{s['MONAI']:.0f}",
            f"{s['ours']:.1f}",
            f"{s['MONAI'] / s['ours']:.1f}",
            GOALS[r.kind],
            f"{r.difference:.1e}",
            f"{s['Betti']:.1f}",
            f"{s['Betti, true']:.1f}",
            f"{BETTI_GOAL_MS:.0f}",
            f"{s['clDice']:.0f}",
            f"{s['all']:.0f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "The limit is memory: our time goes to passes over the volume, to gathers around surface voxels and, "
        "for surface farther than about 2.5 voxels from the other one (islands), to queries of a KD-tree. "
        "MONAI asks its tree for every surface voxel, one structure and one metric after the other.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/speed/metrics.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # MONAI's of deprecated arguments
    results = [
        compare(kind, make, arguments.rounds) for kind, make in (("vessels", vessels), ("organs", organs))
    ]
    text = report(results, arguments.rounds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    print(text)
    for r in results:
        ratio = r.seconds["MONAI"] / r.seconds["ours"]
        met = ratio >= GOALS[r.kind] and r.difference <= TOLERANCE and r.seconds["Betti"] < BETTI_GOAL_MS
        print(f"{r.kind}: {'goals met' if met else 'GOALS MISSED'}")


if __name__ == "__main__":
    main()
