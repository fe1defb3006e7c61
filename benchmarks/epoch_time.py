"""Where the time of a training epoch goes: waiting for data, augmentation, forward, backward, step.

Trains hematoma/mtl-cls-seg-rec (the tiny size, 224 x 224, the recipe's augmentation) on a head-CT phantom,
and aortic-arch/demo-seg (48 x 48 x 48, with the published augmentations) on a fetal-heart phantom whose true
structures stand in for propagated ones; once for each way of keeping prepared cases. Prints each phase's
share of the training part of an epoch. Goal: no more than 10 % of it is spent waiting for data.

Run: python benchmarks/epoch_time.py [--system hematoma] [--system aortic-arch]
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from _machine import machine

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort
    from threefold.phantoms.fetal_protocol import FetalHeartSpec

PHASES = ("data", "augmentation", "forward", "backward", "step")
EPOCHS = 2
GOAL = 0.10


def hematoma(folder: Path) -> tuple[Cohort, str, list[str]]:
    """A cohort of slices, a recipe and its changes."""
    from threefold.phantoms.head_ct import make_head_ct_cohort
    from threefold.phantoms.head_protocol import HeadCtSpec

    spec = HeadCtSpec(sites=4, patients_per_site=3, slices=(3, 3))
    cohort = make_head_ct_cohort(folder, spec, 0)
    print(f"{len(cohort.cases)} slices of {spec.size}^2, batch 8")
    return cohort, "hematoma/mtl-cls-seg-rec", ["training.batch_size=8"]


def aortic_arch(folder: Path) -> tuple[Cohort, str, list[str]]:
    """A cohort of volumes with their true structures, a recipe and its changes."""
    from threefold.cohorts.cohort import write_cohort
    from threefold.cohorts.staging import row_of
    from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort

    made = make_fetal_heart_cohort(folder, replace_patients(PRESETS["demo"]), 0, None)
    rows = [{**row_of(case, made.spec), "structures": case.reference} for case in made.cases]
    cohort = write_cohort(folder, made.spec, rows, allow_outside=True)
    published = (
        "{probability: 0.3, rotation: 28.65, scale: 0.1, shear: 0.1, intensity_shift: 0.1, smooth: 1.5, "
    )
    published += "noise: 0.1, sharpen: 30, histogram_shift: 10, gamma: 4.5, bias_field: 0.1}"
    print(f"{len(cohort.cases)} volumes, brought to 48^3, batch 4, the published augmentations")
    return cohort, "aortic-arch/demo-seg", ["training.batch_size=4", f"data.augmentation={published}"]


def replace_patients(spec: FetalHeartSpec) -> FetalHeartSpec:
    """Return a specification of few patients."""
    return spec.model_copy(update={"patients": (8, 8, 8)})


SYSTEMS = {"hematoma": hematoma, "aortic-arch": aortic_arch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--system", choices=SYSTEMS, action="append", help="one of them; default both")
    systems = parser.parse_args().system or SYSTEMS
    print(machine())
    for system in systems:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["THREEFOLD_CACHE"] = str(Path(folder) / "cache")
            measure(Path(folder), *SYSTEMS[system](Path(folder) / "cohort"))


def measure(folder: Path, cohort: Cohort, recipe: str, changes: list[str]) -> None:
    """Train once for each way of keeping prepared cases, and print where the time went."""
    from threefold.experiments import load_experiment
    from threefold.training.run import train

    print(f"{recipe}: seconds of training an epoch, and shares")
    print(f"{'cache':<16}{'seconds':>9}" + "".join(f"{phase:>14}" for phase in PHASES))
    worst = 0.0
    for cache, workers in (("memory", 0), ("disk", 0), ("none", 0), ("none", 1)):
        settings = [f"data.cache={cache}", f"data.workers={workers}", f"training.epochs={EPOCHS}"]
        experiment = load_experiment(recipe, [*changes, *settings, "training.selection.metric=loss"])
        run = train(experiment, cohort, folder / f"{cache}-{workers}")
        with run.metrics.open(newline="") as stream:
            row = list(csv.DictReader(stream))[-1]  # the first epoch fills a cache on disk
        seconds = {phase: float(row[f"seconds_{phase}"]) for phase in PHASES}
        total = sum(seconds.values())
        label = cache if not workers else f"{cache}, {workers} worker"
        print(f"{label:<16}{total:>9.2f}" + "".join(f"{seconds[p] / total:>13.1%} " for p in PHASES))
        if (cache, workers) != ("none", 0):
            worst = max(worst, seconds["data"] / total)
    verdict = "reached" if worst <= GOAL else "MISSED"
    print(
        f"waiting for data, at worst (cached or by a worker): {worst:.1%}; goal at most {GOAL:.0%}: {verdict}"
    )


if __name__ == "__main__":
    main()
