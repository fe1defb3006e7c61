"""What metrics are called in the tables of a study, and that one object is all that a new one needs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.measures import Tables, measured
from threefold.evaluation.metrics import METRICS, Metric, title
from threefold.evaluation.predictions import validate
from threefold.experiment import EvaluationSpec
from threefold.reporting.tables import evaluation_tables

from .conftest import Make


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("auc", "AUC"),
        ("dice", "Dice"),
        ("structure_dice", "Dice (mean over structures)"),
        ("structure_dice:DAO", "Dice (DAO)"),
        ("graph_edits", "Graph edits"),
        ("not_known", "not known"),
    ],
)
def test_a_title_says_what_is_measured(metric: str, said: str) -> None:
    assert title(metric) == said


def test_no_two_metrics_have_one_title() -> None:
    titles = [title(name) for name in METRICS]
    assert len(titles) == len({*titles})


def test_a_metric_of_a_diagnosis_from_outside_is_a_row_and_a_column(
    monkeypatch: pytest.MonkeyPatch, table: Make
) -> None:
    jaccard = Metric(
        name="jaccard",
        title="Jaccard index",
        of="diagnosis",
        needs="positives",
        of_class=lambda one: one.counts.true_positive / (one.weights.sum(axis=1) - one.counts.true_negative),
        views=frozenset({"sites"}),
    )
    monkeypatch.setattr("threefold.evaluation.metrics.METRICS", {**METRICS, "jaccard": jaccard})
    predictions = validate(table())
    evaluation = evaluate(predictions, EvaluationSpec(replicates=20), threshold=0.5)
    found, score = evaluation.find("jaccard"), evaluation.find("f1")
    assert found is not None
    assert score is not None
    assert found.value == pytest.approx(score.value / (2 - score.value))
    assert found.low < found.value < found.high
    by_site = next(each for each in evaluation_tables(evaluation) if "by site" in each.title)
    assert "Jaccard index" in by_site.columns
    alone = measured(Tables(predictions, threshold=0.5), "jaccard", "all")
    assert float(alone.metric(np.ones((1, len(alone.cases))))[0]) == found.value


def test_a_metric_of_cases_from_outside_is_a_mean_over_those_that_have_it(
    monkeypatch: pytest.MonkeyPatch, table: Make
) -> None:
    def error(rows: pd.DataFrame) -> pd.Series[float]:
        return (rows["mask_predicted_voxels"] - rows["mask_truth_voxels"]).abs()

    volume = Metric(
        name="volume_error",
        title="Volume error (voxels)",
        of="mask",
        higher_is_better=False,
        bounds=(0.0, np.inf),
        of_cases=lambda rows: np.abs(rows["mask_predicted_voxels"] - rows["mask_truth_voxels"]).to_numpy(
            float
        ),
        columns=("mask_truth_voxels",),
        without="no true mask",
    )
    monkeypatch.setattr("threefold.evaluation.metrics.METRICS", {**METRICS, "volume_error": volume})
    predictions = validate(table())
    errors = error(predictions.part("test")).dropna()
    found = evaluate(predictions, EvaluationSpec(replicates=20)).find("volume_error")
    assert found is not None
    assert (found.n, found.value) == (len(errors), pytest.approx(errors.mean()))
