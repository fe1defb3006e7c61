"""Tables of predictions of several tasks, as a network of two diagnoses, findings, a number and a mask
writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FINDINGS = ("rim", "spot", "line")
CLASSES = {"density": ("low", "high"), "side": ("left", "middle", "right")}


def several_tasks(patients: int = 18, cases: int = 3, seed: int = 0) -> pd.DataFrame:
    """Return test and validation cases at sites a and b (inner), c and d (outer); each task has a gap."""
    rng = np.random.default_rng(seed)
    parts = [_cases(part, patients, cases, rng) for part in ("validation", "test")]
    return pd.concat(parts, ignore_index=True)


def _cases(part: str, patients: int, cases: int, rng: np.random.Generator) -> pd.DataFrame:
    n = patients * cases
    patient = np.repeat(np.arange(patients), cases)
    site = np.array(["a", "b", "c", "d"])[patient % 4]
    found: dict[str, object] = {
        "case_id": [f"{part}-{i}" for i in range(n)],
        "patient_id": [f"{part}-p{p:02d}" for p in patient],
        "site": site,
        "site_group": np.where(np.isin(site, ["a", "b"]), "inner", "outer"),
        "part": part,
    }
    for task, classes in CLASSES.items():
        label = rng.integers(0, len(classes), n)
        chances = rng.dirichlet(np.ones(len(classes)), n)
        chances[np.arange(n), label] += 0.4
        chances /= chances.sum(axis=1, keepdims=True)
        found[f"{task}.label"] = _unknown(rng, np.array(classes)[label].astype(object), "")
        found |= {f"{task}.probability_{name}": chances[:, k] for k, name in enumerate(classes)}
    for finding in FINDINGS:
        there = rng.integers(0, 2, n)
        found[f"findings.truth_{finding}"] = _unknown(rng, there.astype(object), "")
        found[f"findings.probability_{finding}"] = np.clip(0.3 * there + 0.7 * rng.random(n), 0, 1)
    age = 30 + 4 * rng.normal(size=n)
    found["age.truth"] = _unknown(rng, age, np.nan)
    found["age.predicted"] = age + 1 + 2 * rng.normal(size=n)
    overlap = rng.integers(0, 20, n)
    truth = _unknown(rng, (overlap + rng.integers(1, 20, n)).astype(float), np.nan)
    found["lesion.mask_truth_voxels"] = truth
    found["lesion.mask_predicted_voxels"] = overlap + rng.integers(0, 20, n)
    found["lesion.mask_overlap_voxels"] = np.where(np.isnan(truth), np.nan, overlap)
    return pd.DataFrame(found)


def _unknown(rng: np.random.Generator, values: NDArray[Any], absent: object) -> NDArray[Any]:
    """Return values of which about a tenth is not known."""
    return np.where(rng.random(len(values)) < 0.1, absent, values)


def resampled(patients: pd.Series, replicates: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the places of the cases in each resample: as many patients as there are, with replacement, each
    with all its cases."""
    names = np.unique(patients)
    drawn = np.random.default_rng(seed).integers(0, len(names), (replicates, len(names)))
    of = [np.flatnonzero((patients == name).to_numpy()) for name in names]
    return [np.concatenate([of[patient] for patient in row]) for row in drawn]
