"""How the time and the memory of `threefold check` grow with the number of files.

    python benchmarks/check_scale.py [--counts 1000 3000 10000]

Each count is a cohort of tiny NIfTI slices with masks, checked in a process of its own. What is measured is
everything around the voxels: the table, opening files, headers, hashes, findings. Peak memory is the
process's (ru_maxrss).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from _usage import usage_of

SIDE = 8


def make_cohort(folder: Path, count: int) -> None:
    """Write a cohort of slices with masks, two classes and ten sites."""
    from threefold.cohorts.cohort import CohortSpec, write_cohort
    from threefold.core.targets import MaskSpec
    from threefold.images.writing import encode_nifti

    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        values = generator.normal(size=(SIDE, SIDE)).astype(np.float32)
        for name, array in (("image", values), ("mask", (values > 0).astype(np.uint8))):
            path = folder / f"{number}-{name}.nii.gz"
            path.write_bytes(encode_nifti(array, np.eye(4)))
        rows.append(
            {
                "case_id": f"c{number}",
                "patient_id": f"p{number // 2}",
                "site": f"s{number % 10}",
                "image": f"{number}-image.nii.gz",
                "mask": f"{number}-mask.nii.gz",
                "label": "ab"[number % 4 // 2],
            }
        )
    spec = CohortSpec(name="tiny", modality="mri", dimensions=2, classes=("a", "b"), mask=MaskSpec())
    write_cohort(folder, spec, rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10_000])
    print("| cases | CPU s | ms a case | peak MiB |\n| ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as name:
        for count in parser.parse_args().counts:
            folder = Path(name) / str(count)
            make_cohort(folder, count)
            seconds, memory = usage_of("check", str(folder), "--json")
            print(f"| {count:,} | {seconds:.1f} | {1000 * seconds / count:.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
