"""Large tables: work grows with the rows, and what is shown is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from threefold.evaluation import diagnosis as of_diagnosis
from threefold.evaluation import evaluate as room
from threefold.evaluation import intervals
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.groups import MOST_GROUPS
from threefold.evaluation.intervals import patient_weights, replicates_for
from threefold.evaluation.predictions import validate
from threefold.experiment import EvaluationSpec
from threefold.reporting.tables import evaluation_tables

from .conftest import make_table

QUICK = EvaluationSpec(replicates=3)


def counted(function: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def count(*given: Any, **settings: Any) -> Any:
        calls.append(1)
        return function(*given, **settings)

    return count


def test_the_resamples_of_a_group_are_those_asked_for_or_bounded_by_its_cases() -> None:
    assert [replicates_for(n, 1000) for n in (0, 5, 10_000)] == [1000] * 3
    assert [replicates_for(n, 1000) for n in (20_000, 50_000, 200_000)] == [500, 200, 100]
    assert replicates_for(5_000_000, 50) == 50


def test_few_resamples_are_the_first_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    patients = np.arange(30)
    many = np.concatenate(list(patient_weights(patients, 1000, 0)))
    monkeypatch.setattr(intervals, "MOST_DRAWN", 30 * 300)
    few = np.concatenate(list(patient_weights(patients, 1000, 0)))
    np.testing.assert_array_equal(few, many[:300])


def test_thousands_of_sites_are_bounded_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(of_diagnosis, "diagnosis", counted(of_diagnosis.diagnosis, calls))
    work = []
    for sites in (MOST_GROUPS + 10, 5 * MOST_GROUPS):
        table = make_table(patients=2 * sites, cases=1, sites=sites)
        # Site 1 has twice as many patients as any other.
        table.loc[table["site"] == f"site {sites}", "site"] = "site 1"
        calls.clear()
        evaluation = evaluate(validate(table), QUICK)
        work.append(len(calls))
        shown = {row.group for row in evaluation.rows if row.group_kind == "site"}
        assert len(shown) == MOST_GROUPS
        assert "site 1" in shown
        assert f"{sites - 1} sites: those {MOST_GROUPS} with the most patients" in " ".join(evaluation.notes)
        everyone = evaluation.find("accuracy")
        assert everyone is not None
        assert everyone.n == len(table)
        assert max(len(one.rows) for one in evaluation_tables(evaluation)) <= 2 * MOST_GROUPS
    assert work[1] == work[0]


def test_sites_of_few_patients_cost_no_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(intervals, "patient_weights", counted(intervals.patient_weights, calls))
    evaluate(validate(make_table(patients=40, cases=1, sites=20)), EvaluationSpec(replicates=50))
    few = len(calls)
    calls.clear()
    evaluate(validate(make_table(patients=40, cases=1, sites=2)), EvaluationSpec(replicates=50))
    assert few <= len(calls)


def test_further_columns_are_copied_with_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(patients=10, cases=1, sites=4)
    wide = pd.concat([table, pd.DataFrame("x", table.index, [f"column {k}" for k in range(3000)])], axis=1)
    predictions = validate(wide)
    seen: list[int] = []
    monkeypatch.setattr(
        room,
        "case_units",
        lambda rows, *more, of=room.case_units: (seen.append(rows.shape[1]), of(rows, *more))[1],
    )
    pd.testing.assert_frame_equal(evaluate(predictions, QUICK).table, evaluate(validate(table), QUICK).table)
    assert max(seen) < 20
    assert "column 2999" in predictions.table
