"""Tables of evidence say what they are of."""

from __future__ import annotations

import pandas as pd

from threefold.evaluation.evidence import COUNTERFACTUALS
from threefold.evaluation.predictions import Predictions
from threefold.reporting.evidence_tables import evidence_tables
from threefold.reporting.table import plain

from .conftest import SPEC


def evidence_of(predictions: Predictions, **columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(predictions.table["case_id"], name="case_id"))


def test_counterfactuals_name_what_was_switched(predictions: Predictions) -> None:
    evidence = evidence_of(predictions, **dict.fromkeys(COUNTERFACTUALS, 0.25))
    things = {"shortcut": "the striped background", "marker": "the five-lobed outline"}
    (found,) = evidence_tables(evidence, predictions, SPEC, things=things)
    text = plain(found.table)
    assert "the shortcut (the striped background) or the marker (the five-lobed outline)" in text
    assert "clip" not in text
