"""By value: a decider by shortcut is found out, groups are counted, and no association is said."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from threefold.errors import PredictionsError
from threefold.evaluation.by_value import ALIGNED, CONFLICTING, by_value
from threefold.evaluation.predictions import Predictions, validate
from threefold.experiment import EvaluationSpec

SPEC = EvaluationSpec(replicates=200)


def table(strength: float, reliance: float, seed: int = 0, n: int = 400, **more: object) -> Predictions:
    """Cases whose clip goes with the label in validation, and a network that looks at the clip."""
    rng = np.random.default_rng(seed)
    part = np.where(np.arange(n) < n // 2, "validation", "test")
    positive = rng.random(n) < 0.5
    goes_along = np.where(part == "validation", rng.random(n) < (1 + strength) / 2, rng.random(n) < 0.5)
    clip = np.where(goes_along, positive, ~positive)
    score = (1 - reliance) * (positive - 0.5) + reliance * (clip - 0.5) + 0.3 * rng.normal(size=n)
    chance = 1 / (1 + np.exp(-3 * score))
    frame = pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(n)],
            "patient_id": [f"p{i // 2}" for i in range(n)],
            "part": part,
            "label": np.where(positive, "yes", "no"),
            "probability_no": 1 - chance,
            "probability_yes": chance,
            "clip": clip.astype(int).astype(str),
            **more,
        }
    )
    return validate(frame)


def test_a_network_that_decides_by_the_clip_fails_where_it_misleads() -> None:
    predictions = table(strength=0.9, reliance=0.9)
    found = by_value(predictions, "clip", SPEC, threshold=0.5)
    at = {(each.label, each.value, each.row.metric): each.row for each in found.rows}
    assert at["", ALIGNED, "auc"].value > 0.9
    assert at["", CONFLICTING, "auc"].value < 0.3
    (worst,) = found.worst
    assert (worst.label, worst.value) in {("yes", "0"), ("no", "1")}
    test = predictions.part("test")
    for value in "01":
        rows = test[test["clip"] == value]
        assert at["", value, "auc"].value == pytest.approx(
            roc_auc_score(rows["label"] == "yes", rows["probability_yes"])
        )
        for label, right in (("yes", rows["probability_yes"] >= 0.5), ("no", rows["probability_yes"] < 0.5)):
            of = rows["label"] == label
            row = at[label, value, "accuracy"]
            assert row.value == pytest.approx(right[of].mean())
            assert row.n == of.sum()
            assert (label, value, "auc") not in at
    assert "yes in 9" in found.notes[0]  # 9x % of the cases with a clip
    assert worst.row.value == min(row.value for (label, _, _), row in at.items() if label)


def test_without_an_association_nothing_is_called_aligned() -> None:
    found = by_value(table(strength=0.0, reliance=0.0), "clip", SPEC)
    assert not {each.value for each in found.rows} & {ALIGNED, CONFLICTING}
    assert "no association of clip" in found.notes[0]


def test_a_perfect_association_is_one() -> None:
    found = by_value(table(strength=1.0, reliance=0.5), "clip", SPEC)
    assert {ALIGNED, CONFLICTING} < {each.value for each in found.rows}


def test_site_groups_have_their_own_and_an_empty_group_is_said() -> None:
    predictions = table(strength=0.9, reliance=0.5)
    rows = predictions.table
    outside = rows["patient_id"].str[1:].astype(int) % 3 == 0
    rows = rows.assign(site_group=np.where(outside, "external", "internal"))
    rows.loc[outside, "clip"] = "0"
    found = by_value(validate(rows), "clip", SPEC)
    absent = [each for each in found.rows if each.within == "external" and each.value == "1"]
    assert absent
    assert all(np.isnan(each.row.value) and "not estimable" in each.row.note for each in absent)
    assert {each.within for each in found.worst} == {"all", "internal", "external"}
    one_label = [e for e in found.rows if (e.within, e.value, e.row.metric) == ("external", ALIGNED, "auc")]
    assert "one class" in one_label[0].row.note


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("clib", "no column 'clib'.*clip"),
        ("case_id", "expected 1 to 20 values among the labelled test cases, found 200"),
        ("site", "found 0"),
    ],
)
def test_what_is_no_category_is_refused(column: str, message: str) -> None:
    with pytest.raises(PredictionsError, match=message):
        by_value(table(strength=0.5, reliance=0.5), column, SPEC)


def test_cases_without_a_value_are_left_out() -> None:
    predictions = table(strength=0.5, reliance=0.5)
    rows = predictions.table.copy()
    rows.loc[rows.index % 10 == 5, "clip"] = ""
    found = by_value(validate(rows), "clip", SPEC)
    counted = sum(e.row.n for e in found.rows if e.label and e.within == "all")
    assert counted == (predictions.part("test").index % 10 != 5).sum()
