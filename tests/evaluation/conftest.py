"""Tables of predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

Make = Callable[..., pd.DataFrame]


def make_table(
    patients: int = 44,
    cases: int = 3,
    sites: int = 11,
    classes: tuple[str, ...] = ("no", "yes"),
    seed: int = 0,
    part: str = "test",
) -> pd.DataFrame:
    """Return a table with every column; sites 1 to 4 are internal, and a patient belongs to one site."""
    rng = np.random.default_rng(seed)
    n = patients * cases
    patient = np.repeat(np.arange(patients), cases)
    site = patient % sites + 1
    label = rng.integers(0, len(classes), n)
    probabilities = rng.dirichlet(np.ones(len(classes)), n)
    probabilities[np.arange(n), label] += 0.5
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth = np.where(rng.random(n) < 0.7, rng.integers(1, 200, n), 0).astype(np.float64)
    predicted = np.where(rng.random(n) < 0.8, rng.integers(1, 200, n), 0).astype(np.float64)
    overlap = np.floor(rng.random(n) * (np.minimum(truth, predicted) + 1))
    unmarked = rng.random(n) < 0.1
    truth[unmarked] = overlap[unmarked] = np.nan
    return pd.DataFrame(
        {
            "case_id": [f"{part}-{i}" for i in range(n)],
            "patient_id": [f"{part}-p{p}" for p in patient],
            "site": [f"site {s}" for s in site],
            "site_group": np.where(site <= 4, "internal", "external"),
            "part": part,
            "label": np.array(classes)[label],
            **{f"probability_{name}": probabilities[:, k] for k, name in enumerate(classes)},
            "mask_truth_voxels": truth,
            "mask_predicted_voxels": predicted,
            "mask_overlap_voxels": overlap,
            "psnr": rng.normal(30, 2, n),
            "ssim": rng.random(n),
        }
    )


@pytest.fixture
def table() -> Make:
    """Return the maker of tables of predictions."""
    return make_table
