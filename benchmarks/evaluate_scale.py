"""How the evaluation of a table of predictions grows with its rows, its sites and its further columns.

    python benchmarks/evaluate_scale.py [--quick]

Each table is written, read and evaluated with its report in a process of its own, on one thread: CPU seconds
and peak memory. The largest ones are 200,000 rows, 5,000 sites and 20,000 columns.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "rows": ((20_000, 4, 0), (60_000, 4, 0), (200_000, 4, 0)),
    "sites": ((20_000, 50, 0), (20_000, 500, 0), (20_000, 5_000, 0)),
    "columns": ((500, 4, 200), (500, 4, 2_000), (500, 4, 20_000)),
}
"""By what grows: rows, sites and further columns of each table."""


def measure(rows: int, sites: int, columns: int) -> None:
    """Print the CPU seconds and the peak memory of one table's report."""
    import numpy as np
    import pandas as pd

    from threefold.evaluation.predictions import write_predictions
    from threefold.experiment import EvaluationSpec
    from threefold.runs.evaluate import evaluate_table

    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, rows)
    chance = np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0, 1)
    truth = np.where(label == 1, rng.integers(1, 500, rows), 0)
    predicted = rng.integers(0, 500, rows)
    site = np.arange(rows) // 2 % sites
    table = pd.DataFrame(
        {
            "case_id": [f"c{number}" for number in range(rows)],
            "patient_id": [f"p{number // 2}" for number in range(rows)],
            "site": [f"site {number}" for number in site],
            "site_group": np.where(site < sites // 2, "internal", "external"),
            "part": np.where(np.arange(rows) // 2 % 10 == 0, "validation", "test"),
            "label": np.array(["no", "yes"])[label],
            "probability_no": 1 - chance,
            "probability_yes": chance,
            "mask_truth_voxels": truth,
            "mask_predicted_voxels": predicted,
            "mask_overlap_voxels": np.minimum(truth, predicted) // 2,
        }
    )
    further = pd.DataFrame("text", table.index, [f"column {number}" for number in range(columns)])
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "predictions.csv"
        write_predictions(pd.concat([table, further], axis=1), path)
        start = time.process_time()
        evaluate_table(path, Path(name) / "out", EvaluationSpec())
        seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {rows:,} | {sites:,} | {columns:,} | {seconds:.1f} | {peak:.2f} |", flush=True)


def main() -> None:
    """Measure each table in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the largest of each")
    parser.add_argument("--one", nargs=3, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        measure(*given.one)
        return
    print(
        "| rows | sites | further columns | CPU s | peak GiB |\n| --- | --- | --- | --- | --- |", flush=True
    )
    for sizes in SIZES.values():
        for size in sizes[:-1] if given.quick else sizes:
            command = [sys.executable, __file__, "--one", *map(str, size)]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
