"""How well a propagation knows that it has failed: the score of `threefold propagate`, fitted and tested.

    python benchmarks/registration_failure.py --data FOLDER --work FOLDER

FOLDER of data: the shared real scans (fetal_brain, aortic_arch_ct, head_ct_dicom). Every cohort's result is
kept in --work, so that a run that was stopped goes on where it was. It writes the page of results, and the
fitted table into the package.

Failed is: the true Dice, mean over the structures, is below 0.6, or the volume is foreign and has no truth.
The cases are

- averages of real fetal brains (at 1.6 mm), each registered to each other one: as they are, and in two of
  six ways changed: turned at random, turned by quarters, tilted by 25 to 60 degrees, upside down (mirrored),
  each within an unchanged header; cropped to about half; with noise;
- fetal-heart phantoms of the study's preset: as they are, in four of the six ways changed, and as they are
  with the atlas of another diagnosis;
- half of the moved ones again without restarts of the affine alignment;
- foreign volumes: a mask, a texture in the shape of a brain, a head CT, a heart among brains, brains among
  hearts.

Fitted on four brains (registered to each other), one phantom patient of each diagnosis, the mask and the
textures; tested on the other four brains, other phantoms of another seed with their own atlases, the head CT
and the heart. No file is in both. The registration is a quick one: size=[48,48,48] refinement_steps=10
epochs=0.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage, optimize, stats

from _machine import machine
from propagation_quality import ROOT, STRUCTURES, keep, kept

FIT = ("GA22_notoperated", "GA25_notoperated", "GA26_operated", "GA28_operated")
TEST = ("GA24_notoperated", "GA25_operated", "GA30_operated", "GA32_operated")
CHANGES = ("plain", "turned", "quarter", "tilted", "mirrored", "cropped", "noisy")
MOVED = ("turned", "quarter", "tilted", "mirrored")
SETTINGS: dict[str, Any] = {"size": (48, 48, 48), "refinement_steps": 10, "epochs": 0}
BAD = 0.6
SIGNS = {
    "tissue_correlation": -1,
    "structure_correlation": -1,
    "overall_correlation": -1,
    "profile": -1,
    "explained": -1,
    "jacobian_sd": 1,
    "volume_change": 1,
    "stretch": 1,
    "inverse_error": 1,
    "outside": 1,
}
"""Which way each signal points to failure."""


# --- volumes -----------------------------------------------------------------------------------------------


@dataclass
class Scan:
    """An image (I, J, K), its label map on the same grid, and (4, 4) voxels to mm."""

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray


def load(image: Path, labels: Path | None = None, step: int = 1) -> Scan:
    from threefold.images.reading import read_image, read_label_map

    read = read_image(image)
    part = (slice(None, None, step),) * 3
    array = np.asarray(read.array, np.float32)[part]
    known = np.zeros(array.shape, np.uint8)
    if labels is not None:
        known = np.asarray(read_label_map(labels).array)[part].astype(np.uint8)
    return Scan(array, known, read.affine @ np.diag([step, step, step, 1.0]))


def changed(scan: Scan, how: str, rng: np.random.Generator) -> Scan:
    """Change a scan within its header."""
    image, labels = scan.image, scan.labels
    if how == "mirrored":
        return Scan(image[:, :, ::-1].copy(), labels[:, :, ::-1].copy(), scan.affine)
    if how == "quarter":
        first, second = rng.permutation(3)[:2]
        turns = int(rng.integers(1, 4))
        return Scan(*(np.rot90(a, turns, (first, second)).copy() for a in (image, labels)), scan.affine)
    if how == "cropped":
        axis = int(rng.integers(3))
        inside = np.flatnonzero((labels > 0).any(tuple(set(range(3)) - {axis})))
        cut = inside[0] + round(len(inside) * rng.uniform(0.4, 0.65))
        kept_part = (
            slice(None, int(cut)) if rng.random() < 0.5 else slice(int(inside[-1] + inside[0] - cut), None)
        )
        part = tuple(kept_part if number == axis else slice(None) for number in range(3))
        return Scan(image[part], labels[part], scan.affine)
    if how == "noisy":
        spread = float(np.ptp(np.percentile(image[labels > 0], (5, 95))))
        return Scan(
            image + rng.normal(0, rng.uniform(0.3, 1.2) * spread, image.shape).astype(np.float32),
            labels,
            scan.affine,
        )
    if how in ("turned", "tilted"):
        axis = rng.normal(size=3)
        axis /= np.linalg.norm(axis)
        angle = np.radians(rng.uniform(25, 60) if how == "tilted" else rng.uniform(90, 180))
        cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        side = max(image.shape)
        middle = np.array(ndimage.center_of_mass(labels > 0))
        offset = middle - turn @ ((side - 1) / 2 * np.ones(3))
        return Scan(
            ndimage.affine_transform(image, turn, offset, (side,) * 3, order=1, cval=float(image.min())),
            ndimage.affine_transform(labels, turn, offset, (side,) * 3, order=0),
            scan.affine,
        )
    return scan


def texture(scan: Scan, rng: np.random.Generator) -> Scan:
    """A smooth texture in the shape of a brain."""
    inside = scan.labels > 0
    noise = ndimage.gaussian_filter(rng.normal(size=inside.shape), 3).astype(np.float32)
    values = scan.image[inside].mean() + noise / noise.std() * scan.image[inside].std()
    return Scan(np.where(inside, values, scan.image.min()).astype(np.float32), scan.labels * 0, scan.affine)


def foreign(data: Path, hearts: Path, name: str, like: Scan, rng: np.random.Generator) -> Scan:
    from threefold.images.reading import read_image

    if name == "texture":
        return texture(like, rng)
    if name == "mask":
        return load(data / "aortic_arch_ct" / "aorta.nii.gz", step=2)
    if name == "head-ct":
        read = read_image(data / "head_ct_dicom" / "series", uneven="resample")
        array = np.asarray(read.array, np.float32)[::8, ::8]
        return Scan(array, np.zeros(array.shape, np.uint8), read.affine @ np.diag([8, 8, 1, 1.0]))
    if name == "heart":
        return load(next(iter(sorted((hearts / "images").glob("*.nii.gz")))))
    raise ValueError(name)


# --- cohorts -----------------------------------------------------------------------------------------------


def write(folder: Path, name: str, scan: Scan) -> dict[str, str]:
    from threefold.images.writing import write_nifti

    paths = {}
    for column, array in (("image", scan.image.astype(np.float32)), ("reference", scan.labels)):
        (folder / column).mkdir(parents=True, exist_ok=True)
        path = folder / column / f"{name}.nii.gz"
        write_nifti(path, np.ascontiguousarray(array), scan.affine)
        paths[column] = f"{column}/{name}.nii.gz"
    return paths


def run_cohort(
    work: Path, name: str, structures: tuple[str, ...], atlas: Scan, scans: dict[str, Scan], **changes: Any
) -> list[dict[str, Any]]:
    """Propagate an atlas to changed scans; return rows of quality.csv as numbers."""
    from threefold.atlases.propagation import propagate
    from threefold.atlases.spec import load_propagation
    from threefold.cohorts.cohort import AtlasSpec, CohortSpec, write_cohort

    path = work / f"{name}.json"
    known = kept(path)
    if known is not None or not scans:
        return known or []
    folder, out = work / name, work / f"{name}-out"
    files = write(folder / "atlases", "atlas", atlas)
    spec = CohortSpec(
        name=name,
        modality="mri",
        dimensions=3,
        structures=structures,
        atlases=(
            AtlasSpec(
                name="atlas", image=f"atlases/{files['image']}", structures=f"atlases/{files['reference']}"
            ),
        ),
    )
    rows = [
        {"case_id": case, "patient_id": case, "site": "s", **write(folder, case, scan)}
        for case, scan in scans.items()
    ]
    cohort = write_cohort(folder, spec, rows)
    propagate(cohort, out, load_propagation({**SETTINGS, **changes}), copy=False)
    with (out / "quality.csv").open(newline="") as stream:
        found = [{"cohort": name, **row} for row in csv.DictReader(stream)]
    keep(path, found)
    print(name, len(found), datetime.datetime.now().time(), flush=True)
    return found


def brains(arguments: argparse.Namespace, part: str, hearts: Path) -> list[dict[str, Any]]:
    names = FIT if part == "fit" else TEST
    scans = {
        one: load(
            *(arguments.data / "fetal_brain" / one / f"{file}.nii.gz" for file in ("srr", "parcellation")), 2
        )
        for one in names
    }
    rows = []
    for number, atlas in enumerate(names):
        rng = np.random.default_rng([number, part == "fit"])
        cases, moved = {}, {}
        for case in names:
            if case == atlas:
                continue
            for how in ("plain", *rng.choice(CHANGES[1:], 2, replace=False)):
                cases[f"{case}--{how}"] = changed(scans[case], how, rng)
                if how in MOVED and rng.random() < 0.5:
                    moved[f"{case}--{how}"] = cases[f"{case}--{how}"]
        for name in ("mask", "texture") if part == "fit" else ("head-ct", "heart"):
            cases[f"foreign--{name}"] = foreign(arguments.data, hearts, name, scans[names[number - 1]], rng)
        rows += run_cohort(arguments.work, f"{part}-brain-{atlas}", STRUCTURES, scans[atlas], cases)
        rows += run_cohort(
            arguments.work,
            f"{part}-brain-{atlas}-without",
            STRUCTURES,
            scans[atlas],
            moved,
            affine_restarts=False,
        )
    return rows


def make_hearts(work: Path, part: str) -> Path:
    from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort

    folder = work / f"hearts-{part}"
    if not folder.exists():
        seed = 11 if part == "fit" else 12
        make_fetal_heart_cohort(
            folder, PRESETS["study"].model_copy(update={"patients": (1, 1, 1)}), seed=seed
        )
    return folder


def heart_rows(arguments: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    from threefold.cohorts.cohort import read_cohort

    folder = make_hearts(arguments.work, part)
    cohort = read_cohort(folder)
    rows = []
    for number, atlas in enumerate(cohort.spec.atlases):
        rng = np.random.default_rng([number, 7, part == "fit"])
        cases, moved = {}, {}
        for case in cohort.cases:
            scan = load(case.image, case.reference)
            own = cohort.spec.classes[case.label] == atlas.label
            for how in ("plain", *(rng.choice(CHANGES[1:], 4, replace=False) if own else ())):
                cases[f"{case.case_id}--{how}"] = changed(scan, how, rng)
                if how in MOVED and rng.random() < 0.6:
                    moved[f"{case.case_id}--{how}"] = cases[f"{case.case_id}--{how}"]
        brain = (FIT if part == "fit" else TEST)[number]
        cases["foreign--brain"] = load(arguments.data / "fetal_brain" / brain / "srr.nii.gz", step=2)
        scan = load(folder / atlas.image, folder / atlas.structures)
        names = cohort.spec.structures
        rows += run_cohort(arguments.work, f"{part}-heart-{atlas.name}", names, scan, cases)
        rows += run_cohort(
            arguments.work, f"{part}-heart-{atlas.name}-without", names, scan, moved, affine_restarts=False
        )
    return rows


def collect(arguments: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    hearts = make_hearts(arguments.work, part)
    return brains(arguments, part, hearts) + heart_rows(arguments, part)


# --- the table ---------------------------------------------------------------------------------------------


def bad(row: dict[str, Any]) -> bool:
    """Whether a registration failed: true Dice below 0.6, or a foreign volume, which has no truth."""
    return float(row["dice"] or 0) < BAD


def values_of(rows: list[dict[str, Any]], names: list[str]) -> np.ndarray:
    """(rows, names), NaN where a signal is not defined."""
    return np.array([[float(row[name] or np.nan) for name in names] for row in rows])


def fit(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit a logistic regression on standardised signals, each pushing the way that its meaning says only.

    A ridge of 1 on the standardised weights; failed and sound registrations weigh the same in total, and so
    do brains and hearts.
    """
    names = list(SIGNS)
    values = values_of(rows, names)
    truth = np.array([bad(row) for row in rows])
    hearts = np.array(["heart" in row["cohort"] for row in rows])
    weights = np.zeros(len(rows))
    for group in (hearts & truth, hearts & ~truth, ~hearts & truth, ~hearts & ~truth):
        weights[group] = 1 / max(group.sum(), 1)
    weights *= len(rows) / weights.sum()
    low, high = np.nanpercentile(values, (1, 99), axis=0)
    centre = np.nanmean(values, axis=0)
    spread = np.maximum(np.nanstd(values, axis=0), 1e-6)
    standard = np.nan_to_num((np.clip(values, low, high) - centre) / spread)
    signs = np.array([SIGNS[name] for name in names])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        odds = parameters[0] + standard @ (signs * parameters[1:])
        cost = np.logaddexp(0, np.where(truth, -odds, odds))
        error = weights * (1 / (1 + np.exp(-odds)) - truth)
        gradient = np.concatenate(([error.sum()], signs * (standard.T @ error) + parameters[1:]))
        return float(weights @ cost + 0.5 * np.square(parameters[1:]).sum()), gradient

    bounds = [(None, None), *[(0, None)] * len(names)]
    found = optimize.minimize(loss, np.zeros(len(names) + 1), jac=True, bounds=bounds, method="L-BFGS-B").x
    slopes = signs * found[1:] / spread
    return {
        "intercept": round(float(found[0]), 4),
        "signals": {
            name: {
                "low": round(float(low[k]), 4),
                "high": round(float(high[k]), 4),
                "centre": round(float(centre[k]), 4),
                "weight": round(float(slopes[k]), 4),
            }
            for k, name in enumerate(names)
            if found[1 + k] > 1e-3
        },
    }


def scores(rows: list[dict[str, Any]], table: dict[str, Any]) -> np.ndarray:
    from threefold.atlases.failure_score import FailureTable, SignalWeight

    known = FailureTable(
        table["intercept"], {name: SignalWeight(**one) for name, one in table["signals"].items()}
    )
    return np.array(
        [known.score({name: float(row[name] or np.nan) for name in known.signals}) for row in rows]
    )


def auroc(score: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of pairs of a failed and a sound registration whose failed one scores higher."""
    ranks = stats.rankdata(score)
    positive = int(truth.sum())
    negative = len(truth) - positive
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def interval(score: np.ndarray, truth: np.ndarray, cases: list[str]) -> tuple[float, float]:
    """95 % of bootstraps of the volumes that the cases were made of."""
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(np.array(cases) == name) for name in sorted(set(cases))]
    found = []
    for _ in range(1000):
        drawn = np.concatenate([groups[k] for k in rng.integers(len(groups), size=len(groups))])
        if truth[drawn].any() and not truth[drawn].all():
            found.append(auroc(score[drawn], truth[drawn]))
    low, high = np.percentile(found, (2.5, 97.5))
    return float(low), float(high)


KINDS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "brains": lambda row: "brain-" in row["cohort"] and not row["case_id"].startswith("foreign"),
    "hearts": lambda row: "heart-" in row["cohort"] and not row["case_id"].startswith("foreign"),
    "foreign": lambda row: row["case_id"].startswith("foreign"),
}
CHECK, FAILED = 0.5, 0.9
"""The package's limits: `failure.check_score` and `failure.max_score`."""
REMARKS = "What this says, and what not:"


def as_markdown(
    table: dict[str, Any], parts: dict[str, list[dict[str, Any]]], known: str, arguments: argparse.Namespace
) -> str:
    """Return the page; its remarks, written by hand, are kept from the known one."""
    lines = [
        "# Registrations that failed, and whether the program knows",
        "",
        *(__doc__ or "").split("\n\n", 3)[3].strip().splitlines(),
        "",
        f"`python benchmarks/registration_failure.py --data DATA --work WORK`, "
        f"{datetime.date.today().isoformat()}, {machine()}, PyTorch {torch.__version__}.",
        "",
        "| part | registrations | failed | AUROC of the score | AUROC of the local correlation | of the "
        "failed marked check, failed | of the sound marked check, failed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for part, all_rows in parts.items():
        groups = {"all": all_rows, **{n: [r for r in all_rows if k(r)] for n, k in KINDS.items()}}
        for name, rows in groups.items():
            lines.append(f"| {part}, {name} | {_line(rows, table, ranged=name == 'all')} |")
    lines += ["", "## By change, in the test part", "", "| change | n | failed | mean Dice | mean score |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for how in (*CHANGES, "foreign"):
        for without in (False, True):
            rows = [
                row
                for row in parts["test"]
                if (
                    row["case_id"].startswith("foreign") if how == "foreign" else row["case_id"].endswith(how)
                )
                and row["cohort"].endswith("-without") == without
            ]
            if rows:
                dice = np.mean([float(row["dice"] or 0) for row in rows])
                score = scores(rows, table).mean()
                name = f"{how}, without restarts" if without else how
                lines.append(f"| {name} | {len(rows)} | {sum(map(bad, rows))} | {dice:.3f} | {score:.2f} |")
    lines += ["", "## The table", "", "| signal | weight (log odds per unit) | centre | from | to |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for name, one in table["signals"].items():
        lines.append(f"| {name} | {one['weight']} | {one['centre']} | {one['low']} | {one['high']} |")
    lines += ["", f"Intercept {table['intercept']}. Signals that the fit gave no weight are left out.", ""]
    remarks = known[known.index(REMARKS) :] if REMARKS in known else ""
    return "\n".join(lines) + ("\n" + remarks if remarks else "")


def _line(rows: list[dict[str, Any]], table: dict[str, Any], *, ranged: bool) -> str:
    score, truth = scores(rows, table), np.array([bad(row) for row in rows])
    alone = np.array([1 - float(row["correlation"] or 0) for row in rows])
    if truth.any() and not truth.all():
        found = f"{auroc(score, truth):.3f}"
        if ranged:
            low, high = interval(score, truth, [row["case_id"].split("--")[0] for row in rows])
            found += f" [{low:.3f}, {high:.3f}]"
        other = f"{auroc(alone, truth):.3f}"
    else:
        found = other = "one kind only"
    marked = [
        f"{int(((score > CHECK) & (score <= FAILED) & kind).sum())}, {int(((score > FAILED) & kind).sum())}"
        for kind in (truth, ~truth)
    ]
    return " | ".join((str(len(rows)), str(int(truth.sum())), found, other, *marked))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("out/registration-failure"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/registration-failure.md")
    parser.add_argument("--table", type=Path, default=ROOT / "src/threefold/atlases/failure_score.json")
    arguments = parser.parse_args()
    from threefold.allocation import tune_allocation

    tune_allocation()
    arguments.work.mkdir(parents=True, exist_ok=True)
    parts = {part: collect(arguments, part) for part in ("fit", "test")}
    table = fit(parts["fit"])
    arguments.table.write_text(json.dumps(table, indent=2) + "\n")
    known = arguments.out.read_text() if arguments.out.exists() else ""
    arguments.out.write_text(as_markdown(table, parts, known, arguments))
    print(f"written to {arguments.out} and {arguments.table}")


if __name__ == "__main__":
    main()
