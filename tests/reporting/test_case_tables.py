"""The best and the worst cases, and the diagnoses that were most wrong, are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from threefold.evaluation.predictions import Predictions, validate
from threefold.reporting.examples import extreme_tables

from .conftest import make_predictions


def test_best_and_worst_by_dice_and_most_wrong_diagnoses(predictions: Predictions) -> None:
    by_dice, wrong = extreme_tables(predictions, None)
    test = predictions.part("test").set_index("case_id")
    dice = 2 * test["mask_overlap_voxels"] / (test["mask_truth_voxels"] + test["mask_predicted_voxels"])
    assert by_dice.title == "Best and worst cases by Dice"
    assert len(by_dice.rows) == 10
    assert [row[4] for row in by_dice.rows] == [f"{k} of 48" for k in (*range(1, 6), *range(44, 49))]
    shown = [float(row[3]) for row in by_dice.rows]
    assert (
        shown
        == sorted((round(value, 3) for value in dice), reverse=True)[:5]
        + sorted((round(value, 3) for value in dice), reverse=True)[-5:]
    )
    truth = test["probability_bleed"].where(test["label"] == "bleed", test["probability_clear"])
    assert [row[0] for row in wrong.rows] == list(truth.sort_values(kind="stable").index[:5])
    assert [row[3] for row in wrong.rows] == [f"{value:.3f}" for value in sorted(truth)[:5]]


def test_what_nobody_knows_has_no_table() -> None:
    (only,) = extreme_tables(make_predictions(masks=False), 0.5)
    assert only.title == "Most confident wrong diagnoses"
    unlabelled = make_predictions().table.assign(label="")
    (only,) = extreme_tables(validate(unlabelled), None)
    assert only.title == "Best and worst cases by Dice"
    few = make_predictions().table.head(4)
    assert len(extreme_tables(validate(few), None)[0].rows) == 4


def test_the_most_wrong_lie_furthest_beyond_the_run_s_threshold(predictions: Predictions) -> None:
    """At a threshold of 0.05 it is false positives that are most wrong, whatever is most probable."""
    table = predictions.table.copy()
    positive = predictions.positive
    other = next(name for name in predictions.classes if name != positive)
    tested = table.index[table["part"] == "test"]
    chances = np.where(table.loc[tested, "label"] == positive, 0.2, 0.01)
    chances[np.flatnonzero(table.loc[tested, "label"] == other)[:6]] = 0.3
    table.loc[tested, f"probability_{positive}"] = chances
    table.loc[tested, f"probability_{other}"] = 1 - chances
    changed = replace(predictions, table=table)
    wrong = extreme_tables(changed, 0.05)[1]
    assert [(row[2], row[3], row[4]) for row in wrong.rows] == [(other, "0.700", positive)] * 5
    assert f"p({positive}) >= 0.05" in wrong.notes[0]
    assert {row[2] for row in extreme_tables(changed, 0.5)[1].rows} == {positive}
    for extreme in (0.0, 1.0):
        assert len(extreme_tables(changed, extreme)[1].rows) == 5
