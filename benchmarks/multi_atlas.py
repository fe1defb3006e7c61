"""Several atlases on real fetal brains: the single best against those that vote, and against all pairs.

    python benchmarks/multi_atlas.py --data FOLDER --work FOLDER

FOLDER of data: `fetal_brain` of the shared real scans. Of the eight averages (at 1.6 mm) the
youngest, the oldest and one between are cases, and the other seven are atlases of each; every pair is
registered once, without restarts of the alignment, since all lie upright, and kept in --work. Compared are
the mean Dice of

- the pairs themselves, and those of them that are hard: at least four weeks apart;
- the single best atlas, by the correlation of the images after the registration;
- votes of the atlases most alike after the affine alignment, and of those nearest in age;
- the same from hard atlases alone, as if the cohort had no nearer ones.
"""

from __future__ import annotations

import argparse
import datetime
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _machine import machine
from propagation_quality import ROOT, STRUCTURES, mean_dice, names_of
from registration_failure import SETTINGS, load

CASES = ("GA22_notoperated", "GA28_operated", "GA32_operated")
FAR = 4
"""Weeks from which on a pair is hard."""


def age(name: str) -> int:
    """Return the weeks in a volume's name."""
    return int(re.findall(r"\d+", name)[0])


def register(scans: dict[str, Any], case: str, atlas: str, work: Path) -> dict[str, np.ndarray]:
    """Register one atlas as `threefold propagate` does; return labels, weights, similarity, fit and Dice."""
    from threefold.atlases.affine import align
    from threefold.atlases.fusion import weight
    from threefold.atlases.quality import correlation_of
    from threefold.atlases.refinement import Pair, refine
    from threefold.atlases.spec import load_propagation
    from threefold.atlases.volumes import carry_labels, prepare, resample
    from threefold.cohorts.cohort import CohortSpec
    from threefold.images.geometry import Image
    from threefold.networks.warping import warp

    path = work / f"{case}-{atlas}.npz"
    if not path.exists():
        spec = load_propagation(SETTINGS)
        meaning = CohortSpec(name="brains", modality="mri", dimensions=3, structures=STRUCTURES)
        fixed, moving = (
            prepare(Image(scans[name].image, scans[name].affine, Path(name)), spec.size, None, meaning)
            for name in (case, atlas)
        )
        found = align(fixed, moving, spec.affine_steps, restarts=False)
        target = found.matrix @ fixed.affine
        affine = resample(moving.values, moving.affine, fixed.size, target, outside="border")
        field = refine(Pair(fixed.values, affine), None, spec)
        warped = warp(affine, field, outside="border")
        scan = scans[case]
        labels = carry_labels(
            scans[atlas].labels,
            scans[atlas].affine,
            field,
            fixed.affine,
            found.matrix,
            scan.labels.shape,
            scan.affine,
        )
        part = path.with_suffix(".partial.npz")
        np.savez_compressed(
            part,
            labels=labels,
            weights=weight(warped, fixed.values).numpy(),
            grid=fixed.affine,
            similarity=found.correlation,
            fit=correlation_of(warped, fixed.values, spec.window),
            dice=mean_dice(labels, scan.labels),
        )
        part.replace(path)
        print(case, atlas, flush=True)
    with np.load(path) as content:
        return dict(content)


def voted(scan: Any, chosen: list[dict[str, np.ndarray]]) -> float:
    """Return the Dice of a vote of registered atlases, best first."""
    from threefold.atlases.fusion import vote

    chosen = sorted(chosen, key=lambda one: -one["fit"])
    maps = [one["labels"] for one in chosen]
    weights = [torch.from_numpy(one["weights"]) for one in chosen]
    return mean_dice(vote(maps, weights, chosen[0]["grid"], scan.affine), scan.labels)


def compare(scans: dict[str, Any], pairs: dict[tuple[str, str], Any]) -> dict[str, dict[str, list[float]]]:
    """Return the Dice of each way, a value a case, of all atlases and of the hard ones alone."""
    results: dict[str, dict[str, list[float]]] = {}
    for title, least in (("all atlases", 0), (f"atlases at least {FAR} weeks away", FAR)):
        ways: dict[str, list[float]] = {}
        for case in CASES:
            scan = scans[case]
            atlases = [name for name in scans if name != case and abs(age(name) - age(case)) >= least]
            if len(atlases) < 2:
                continue
            known = {name: pairs[case, name] for name in atlases}
            alike = sorted(atlases, key=lambda name: -known[name]["similarity"])
            near = sorted(atlases, key=lambda name: abs(age(name) - age(case)))
            best = max(atlases, key=lambda name: known[name]["fit"])
            found = {
                "mean of the pairs": float(np.mean([known[name]["dice"] for name in atlases])),
                "best by images": float(known[best]["dice"]),
                "best by truth": float(max(known[name]["dice"] for name in atlases)),
            }
            for count in (3, 5, 7):
                found[f"vote of the {count} most alike"] = voted(scan, [known[n] for n in alike[:count]])
            found["vote of the 3 nearest in age"] = voted(scan, [known[n] for n in near[:3]])
            for name, value in found.items():
                ways.setdefault(name, []).append(value)
        results[title] = ways
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/multi-atlas"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/multi-atlas.md")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scans = {
        name: load(*(arguments.data / name / f"{file}.nii.gz" for file in ("srr", "parcellation")), 2)
        for name in names_of(arguments.data)
    }
    pairs = {
        (case, atlas): register(scans, case, atlas, arguments.work)
        for case in CASES
        for atlas in scans
        if case != atlas
    }
    lines = [
        "# Several atlases on real fetal brains",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
        "",
        f"`python benchmarks/multi_atlas.py --data DATA --work WORK`, {datetime.date.today().isoformat()}, "
        f"{machine()}, PyTorch {torch.__version__}. Settings: {SETTINGS}.",
    ]
    for title, ways in compare(scans, pairs).items():
        count = len(next(iter(ways.values())))
        lines += ["", f"## {title}: {count} cases", "", "| | mean Dice | lowest | highest |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        lines += [
            f"| {name} | {np.mean(values):.3f} | {min(values):.3f} | {max(values):.3f} |"
            for name, values in ways.items()
        ]
    arguments.out.write_text("\n".join(lines) + "\n")
    print(arguments.out.read_text())


if __name__ == "__main__":
    main()
