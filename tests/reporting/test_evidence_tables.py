"""Tables of evidence say what they are of."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threefold.evaluation.metrics import shown_in
from threefold.evaluation.predictions import Predictions
from threefold.reporting.evidence_tables import evidence_tables
from threefold.reporting.table import plain

from .conftest import SPEC


def evidence_of(predictions: Predictions, **columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(predictions.table["case_id"], name="case_id"))


def test_counterfactuals_name_what_was_switched(predictions: Predictions) -> None:
    evidence = evidence_of(predictions, **dict.fromkeys(shown_in("counterfactuals"), 0.25))
    things = {"shortcut": "the striped background", "marker": "the five-lobed outline"}
    (found,) = evidence_tables(evidence, predictions, SPEC, things=things)
    text = plain(found.table)
    assert "the shortcut (the striped background) or the marker (the five-lobed outline)" in text
    assert "clip" not in text


def test_zero_maps_are_counted_by_group(predictions: Predictions) -> None:
    """The 48 cases lie at sites a, b, c, d in turns of two; every map of site d is zero."""
    sites = predictions.table["site"].to_numpy()
    zero = sites == "d"
    zero[0] = True  # of site a
    evidence = evidence_of(
        predictions, **dict.fromkeys(shown_in("attention"), 0.25), zero_map=zero.astype(float)
    )
    evidence.loc[zero, [*shown_in("attention")]] = np.nan
    (found,) = evidence_tables(evidence, predictions, SPEC, things={})
    text = plain(found.table)
    assert "all 13 of 48, internal 1 of 24, external 12 of 24, a 1 of 12, d 12 of 12." in text
    cells = {row.group: row for row in found.rows if row.metric == "share_inside_random"}
    assert (cells["all"].n, cells["a"].n, cells["d"].n) == (35, 11, 0)
    evidence["zero_map"] = 1.0
    evidence[[*shown_in("attention")]] = np.nan
    (found,) = evidence_tables(evidence, predictions, SPEC, things={})
    assert "all 48 of 48" in plain(found.table)
