"""How many phantoms one core makes in a second, writing included: head-CT slices, fetal-heart volumes.

Run: python benchmarks/phantom_rate.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path

REPEATS = 5
GOAL = 20.0
VOLUMES_GOAL = 2.0


def main() -> None:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"  # read when numpy is imported
    head_ct()
    fetal_heart()


def fetal_heart() -> None:
    from threefold.phantoms.fetal_heart import FetalHeartSpec, make_fetal_heart_cohort

    spec = FetalHeartSpec(patients=(5, 4, 3))
    count = sum(spec.patients) + 3  # an atlas for each diagnosis
    rates = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            make_fetal_heart_cohort(Path(folder) / "cohort", spec, 0)
            rates.append(count / (time.process_time() - start))
    median = statistics.median(rates)
    print(f"{count} volumes of {spec.size}^3 (cases and atlases) with truth, median of {REPEATS}, one thread")
    print(f"rendered and written {median:6.2f} volumes/s of CPU time")
    print(f"ratio to the goal of {VOLUMES_GOAL:.0f} volumes/s: {median / VOLUMES_GOAL:.2f}")


def head_ct() -> None:
    from threefold.phantoms.head_ct import HeadCtSpec, case_parameters, make_head_ct_cohort, render_case

    spec = HeadCtSpec(patients_per_site=4, external_patients_per_site=4)
    cases = case_parameters(spec, 0)
    for case in cases[:3]:
        render_case(case)
    rendered, written, clock = [], [], []
    for _ in range(REPEATS):
        start = time.process_time()
        for case in cases:
            render_case(case)
        rendered.append(len(cases) / (time.process_time() - start))
        with tempfile.TemporaryDirectory() as folder:
            start, wall = time.process_time(), time.perf_counter()
            make_head_ct_cohort(Path(folder) / "cohort", spec, 0)
            written.append(len(cases) / (time.process_time() - start))
            clock.append(len(cases) / (time.perf_counter() - wall))
    print(f"{len(cases)} slices of {spec.size} x {spec.size} from 11 sites, median of {REPEATS}, one thread")
    print(f"rendered             {statistics.median(rendered):6.1f} slices/s of CPU time")
    print(f"rendered and written {statistics.median(written):6.1f} slices/s of CPU time")
    print(f"rendered and written {statistics.median(clock):6.1f} slices/s by the clock")
    print(f"ratio to the goal of {GOAL:.0f} slices/s: {statistics.median(written) / GOAL:.2f}")


if __name__ == "__main__":
    main()
