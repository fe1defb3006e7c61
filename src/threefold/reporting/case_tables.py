"""Which test cases went best and worst, so that the worst are looked at as well."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threefold.evaluation.predictions import Predictions, probability_column
from threefold.evaluation.structures import tells_structures
from threefold.reporting.table import Table
from threefold.reporting.volume_examples import case_dice

_SHOWN = 5
_COLUMNS = ("case", "site", "diagnosis")


def extreme_tables(predictions: Predictions) -> tuple[Table, ...]:
    """Return the best and the worst test cases by Dice, and those whose diagnosis was most wrong.

    The Dice is the mean over structures where there are any, else the mask's. Tables without a case are left
    out.
    """
    return tuple(table for table in (_by_dice(predictions), _by_diagnosis(predictions)) if table is not None)


def _by_dice(predictions: Predictions) -> Table | None:
    test = predictions.part("test")
    test = test.assign(quality=case_dice(test, predictions))
    ranked = test[test["quality"].notna()].sort_values("quality", kind="stable", ascending=False)
    if ranked.empty:
        return None
    word = "mean Dice" if tells_structures(predictions) else "Dice"
    shown = ranked
    if len(ranked) > 2 * _SHOWN:
        shown = pd.concat([ranked.head(_SHOWN), ranked.tail(_SHOWN)])
    places = {case: place for place, case in enumerate(ranked["case_id"], start=1)}
    return Table(
        title=f"Best and worst cases by {word}",
        columns=(*_COLUMNS, word, "place"),
        rows=tuple(
            (*_who(row), f"{row['quality']:.3f}", f"{places[row['case_id']]} of {len(ranked)}")
            for _, row in shown.iterrows()
        ),
        notes=(f"Over the test cases that have a {word}; the worst come last.",),
    )


def _by_diagnosis(predictions: Predictions) -> Table | None:
    test = predictions.part("test")
    test = test[test["label"] != ""]
    if test.empty or not predictions.classes:
        return None
    chances = test[[probability_column(name) for name in predictions.classes]].to_numpy(float)
    true = np.array([predictions.classes.index(name) for name in test["label"]])
    of_truth = chances[np.arange(len(test)), true]
    worst = np.argsort(of_truth, kind="stable")[:_SHOWN]
    return Table(
        title="Diagnoses that were most wrong",
        columns=(*_COLUMNS, "its probability", "most probable"),
        rows=tuple(
            (
                *_who(test.iloc[place]),
                f"{of_truth[place]:.3f}",
                predictions.classes[int(chances[place].argmax())],
            )
            for place in worst.tolist()
        ),
        notes=(f"Of {len(test)} labelled test cases those whose true class got the lowest probability.",),
    )


def _who(row: pd.Series) -> tuple[str, str, str]:
    return str(row["case_id"]), str(row["site"]) or "not known", str(row["label"]) or "not known"
