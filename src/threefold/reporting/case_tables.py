"""Which test cases went best and worst, so that the worst are looked at as well."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.predictions import Predictions, probability_column
from threefold.evaluation.structures import tells_structures
from threefold.reporting.table import Table
from threefold.reporting.volume_examples import case_dice

Floats = NDArray[np.float64]
_SHOWN = 5
_COLUMNS = ("case", "site", "diagnosis")


def extreme_tables(predictions: Predictions, threshold: float | None) -> tuple[Table, ...]:
    """Return the best and the worst test cases by Dice, and those whose diagnosis was most wrong.

    The Dice is the mean over structures where there are any, else the mask's. Tables without a case are left
    out.

    Args:
        predictions: the table.
        threshold: of the positive class of two; None: the most probable class is decided.
    """
    tables = (_by_dice(predictions), _by_diagnosis(predictions, threshold))
    return tuple(table for table in tables if table is not None)


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
        name="cases.dice",
    )


def _by_diagnosis(predictions: Predictions, threshold: float | None) -> Table | None:
    test = predictions.part("test")
    test = test[test["label"] != ""]
    if test.empty or not predictions.classes:
        return None
    chances = test[[probability_column(name) for name in predictions.classes]].to_numpy(np.float64)
    true = np.array([predictions.classes.index(name) for name in test["label"]])
    positive = predictions.positive_index
    if positive is None or threshold is None:
        decided, support = chances.argmax(axis=1), chances
        said = "Those whose true class got the lowest probability"
    else:
        is_positive = chances[:, positive] >= threshold
        decided = np.where(is_positive, positive, 1 - positive)
        support = _from_the_cut(chances[:, positive], threshold, positive)
        said = (
            f"Those furthest on the wrong side of the decision, p({predictions.positive}) >= {threshold:.3g}"
        )
    worst = np.argsort(support[np.arange(len(test)), true], kind="stable")[:_SHOWN]
    return Table(
        title="Diagnoses that were most wrong",
        columns=(*_COLUMNS, "its probability", "decided"),
        rows=tuple(
            (
                *_who(test.iloc[place]),
                f"{chances[place, true[place]]:.3f}",
                predictions.classes[int(decided[place])],
            )
            for place in worst.tolist()
        ),
        notes=(f"{said}, of {len(test)} labelled test cases.",),
        name="cases.diagnosis",
    )


def _from_the_cut(chance: Floats, threshold: float, positive: int) -> Floats:
    """Return how much p (n,) speaks for each of two classes, (n, 2): 0.5 at the threshold, 1 when certain."""
    below = chance / max(2 * threshold, np.finfo(np.float64).tiny)
    above = 1 - (1 - chance) / max(2 * (1 - threshold), np.finfo(np.float64).tiny)
    of_positive = np.where(chance < threshold, below, above)
    both = (of_positive, 1 - of_positive) if positive == 0 else (1 - of_positive, of_positive)
    return np.stack(both, axis=1)


def _who(row: pd.Series) -> tuple[str, str, str]:
    return str(row["case_id"]), str(row["site"]) or "not known", str(row["label"]) or "not known"
