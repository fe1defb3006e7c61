"""The calibration table, with a temperature and without one."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threefold.evaluation.calibration import calibration_changes, temperature_of
from threefold.evaluation.predictions import Predictions, validate
from threefold.experiment import EvaluationSpec
from threefold.reporting.probe_tables import temperature_table
from threefold.reporting.table import Table, cell

QUICK = EvaluationSpec(replicates=50)


def predicted(*, sure_of_the_right: bool) -> Predictions:
    """80 patients of two sites, half of them for validation."""
    rng = np.random.default_rng(3)
    number = np.arange(80)
    label = np.where(rng.random(80) < 0.5, "a", "b")
    agrees = np.ones(80, bool) if sure_of_the_right else rng.random(80) < 0.8
    p = np.where((label == "b") == agrees, 0.9, 0.1)
    return validate(
        pd.DataFrame(
            {
                "case_id": [f"c{k}" for k in number],
                "patient_id": [f"p{k}" for k in number],
                "site": np.where(number % 4 < 2, "north", "south"),
                "label": label,
                "part": np.where(number % 2, "validation", "test"),
                "probability_a": 1 - p,
                "probability_b": p,
            }
        )
    )


def told(predictions: Predictions) -> Table:
    temperature = temperature_of(predictions, QUICK)
    changes = list(calibration_changes(predictions, temperature.value, QUICK))
    return temperature_table(temperature, changes, QUICK)


def test_a_temperature_stands_with_what_it_changes() -> None:
    table = told(predicted(sure_of_the_right=False))
    assert table.columns == ("test cases, measure", "before", "after", "change")
    assert "Temperature 1." in table.notes[0]  # right in 0.8 of the cases, said with 0.9: too sure


def test_without_a_temperature_what_it_would_change_is_left_out() -> None:
    predictions = predicted(sure_of_the_right=True)
    table = told(predictions)
    assert table.columns == ("test cases, measure", "as predicted")
    assert "not estimable (the validation cases are told right" in table.notes[0]
    assert not any("not estimable" in shown for row in table.rows for shown in row)
    first = next(iter(calibration_changes(predictions, np.nan, QUICK)))
    assert table.rows[0][1] == cell(first.first)
