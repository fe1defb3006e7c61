"""Where the time of a training epoch goes: waiting for data, augmentation, forward, backward, step.

Trains hematoma/mtl-cls-seg-rec (the tiny size, 224 x 224, the recipe's augmentation) on a head-CT phantom,
once for each way of keeping prepared cases, and prints each phase's share of the training part of an epoch.
Goal: no more than 10 % of it is spent waiting for data.

Run: python benchmarks/epoch_time.py
"""

from __future__ import annotations

import csv
import os
import tempfile
from pathlib import Path

PHASES = ("data", "augmentation", "forward", "backward", "step")
EPOCHS = 2
GOAL = 0.10


def main() -> None:
    from threefold.experiments import load_experiment
    from threefold.phantoms.head_ct import make_head_ct_cohort
    from threefold.phantoms.head_protocol import HeadCtSpec
    from threefold.training.run import train

    with tempfile.TemporaryDirectory() as folder:
        os.environ["THREEFOLD_CACHE"] = str(Path(folder) / "cache")
        spec = HeadCtSpec(sites=4, patients_per_site=3, slices=(3, 3))
        cohort = make_head_ct_cohort(Path(folder) / "cohort", spec, 0)
        print(
            f"{len(cohort.cases)} slices of {spec.size}^2, batch 8: seconds of training an epoch, and shares"
        )
        print(f"{'cache':<16}{'seconds':>9}" + "".join(f"{phase:>14}" for phase in PHASES))
        worst = 0.0
        for cache, workers in (("memory", 0), ("disk", 0), ("none", 0), ("none", 1)):
            experiment = load_experiment(
                "hematoma/mtl-cls-seg-rec",
                [
                    f"data.cache={cache}",
                    f"data.workers={workers}",
                    f"training.epochs={EPOCHS}",
                    "training.batch_size=8",
                    "training.selection.metric=loss",
                ],
            )
            run = train(experiment, cohort, Path(folder) / f"{cache}-{workers}")
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
