"""Tables of predictions with numbers at two groups of sites."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.predictions import Predictions, validate
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=40)


def make_predictions(*, leaks: bool = False, groups: bool = True, masks: bool = True) -> Predictions:
    """Return 24 patients of two cases at four sites; site d has one class only."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(24), 2)
    site = np.array(["a", "b", "c", "d"])[patient % 4]
    positive = (patient // 4 % 2 == 0) & (site != "d")
    chance = np.clip(0.5 * positive + 0.5 * rng.random(48), 0, 1)
    table = pd.DataFrame(
        {
            "case_id": [f"case {i}" for i in range(48)],
            "patient_id": [f"patient {p}" for p in patient],
            "site": site,
            "site_group": np.where(np.isin(site, ["a", "b"]), "internal", "external") if groups else "",
            "part": "test",
            "label": np.where(positive, "bleed", "clear"),
            "probability_clear": 1 - chance,
            "probability_bleed": chance,
        }
    )
    if masks:
        table["mask_truth_voxels"] = 10.0
        table["mask_predicted_voxels"] = rng.integers(5, 10, 48)
        table["mask_overlap_voxels"] = 5.0
    return validate(table, leaks=leaks)


@pytest.fixture(scope="session")
def predictions() -> Predictions:
    return make_predictions()


@pytest.fixture(scope="session")
def evaluation(predictions: Predictions) -> Evaluation:
    return evaluate(predictions, SPEC, threshold=0.5)


@pytest.fixture(scope="session")
def leaking() -> Evaluation:
    return evaluate(make_predictions(leaks=True), SPEC, threshold=0.5)
