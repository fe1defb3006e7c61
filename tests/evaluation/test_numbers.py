"""Errors of predicted numbers against scikit-learn and plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.numbers import evaluate_numbers
from threefold.evaluation.task_tables import of_task
from threefold.experiment import EvaluationSpec

from .several import resampled, several_tasks

SPEC = EvaluationSpec(replicates=60, confidence=0.9, seed=3)


def reference(rows: pd.DataFrame) -> dict[str, float]:
    truth, found = rows["truth"].to_numpy(float), rows["predicted"].to_numpy(float)
    bias, spread = np.mean(found - truth), np.std(found - truth, ddof=1)
    return {
        "mae": mean_absolute_error(truth, found),
        "rmse": root_mean_squared_error(truth, found),
        "r2": r2_score(truth, found),
        "bias": bias,
        "lower_limit": bias - 1.96 * spread,
        "upper_limit": bias + 1.96 * spread,
    }


def numbers(table: pd.DataFrame, spec: EvaluationSpec = SPEC) -> dict[tuple[str, str], Estimate]:
    return {(row.group, row.metric): row for row in evaluate_numbers(table, spec)}


@pytest.fixture(scope="module")
def ages() -> pd.DataFrame:
    return of_task(several_tasks(), "age")


def test_the_numbers_are_those_of_scikit_learn_by_group_and_site(ages: pd.DataFrame) -> None:
    found = numbers(ages)
    known = ages[(ages["part"] == "test") & ages["truth"].notna()]
    groups = {"all": known}
    for column in ("site_group", "site"):
        groups |= {str(name): rows for name, rows in known.groupby(column)}
    assert {*found} == {(group, metric) for group in groups for metric in reference(known)}
    for group, rows in groups.items():
        for metric, value in reference(rows).items():
            row = found[group, metric]
            assert row.value == pytest.approx(value, rel=1e-9), (group, metric)
            assert (row.n, row.patients) == (len(rows), rows["patient_id"].nunique())
            assert row.why == ("" if row.patients >= 5 else "fewer than 5 patients")
    assert found["inner", "mae"].group_kind == "site group"
    assert found["d", "mae"].group_kind == "site"


def test_the_intervals_are_of_resampled_patients(ages: pd.DataFrame) -> None:
    known = ages[(ages["part"] == "test") & ages["truth"].notna()].reset_index(drop=True)
    each = [
        reference(known.iloc[places]) for places in resampled(known["patient_id"], SPEC.replicates, SPEC.seed)
    ]
    found = numbers(ages)
    for metric in each[0]:
        ends = np.quantile([values[metric] for values in each], [0.05, 0.95])
        assert found["all", metric].interval == pytest.approx(tuple(ends), rel=1e-9)


def test_cells_that_hold_no_number_are_not_known(ages: pd.DataFrame) -> None:
    text = ages.astype({"truth": object, "predicted": object})
    text["truth"] = [f"{value}" if value == value else "" for value in ages["truth"]]
    assert [vars(row) for row in evaluate_numbers(text, SPEC)] == [
        vars(row) for row in evaluate_numbers(ages, SPEC)
    ]


def test_a_split_that_leaks_is_said_of_every_number(ages: pd.DataFrame) -> None:
    assert all(row.leaks for row in evaluate_numbers(ages, SPEC, leaks=True))
    assert not any(row.leaks for row in evaluate_numbers(ages, SPEC))


def test_what_is_not_estimable_says_why(ages: pd.DataFrame) -> None:
    same = numbers(ages.assign(truth=30.1))
    assert math.isnan(same["all", "r2"].value)
    assert same["all", "r2"].note == "not estimable (the true numbers are all the same)"
    assert same["all", "mae"].interval is not None
    test = ages[(ages["part"] == "test") & ages["truth"].notna()]
    alone = numbers(test.iloc[:1])
    assert alone["all", "lower_limit"].note == "not estimable (one case has no spread)"
    assert alone["all", "upper_limit"].note == "not estimable (one case has no spread)"
    assert alone["all", "r2"].note == "not estimable (the true numbers are all the same)"
    assert alone["all", "mae"].value == abs(alone["all", "bias"].value)
    assert alone["all", "mae"].note == "no interval: fewer than 5 patients"
    none = evaluate_numbers(ages.assign(truth=np.nan), SPEC)
    assert {row.group for row in none} == {"all"}
    assert all(math.isnan(row.value) and row.n == 0 for row in none)
    assert {row.note for row in none} == {"not estimable (no case with a known number)"}


@pytest.mark.parametrize("change", [(1e-9, 0.0), (0.01, 1e7)])
def test_r2_does_not_depend_on_the_unit(ages: pd.DataFrame, change: tuple[float, float]) -> None:
    scale, offset = change
    moved = numbers(ages.assign(**{name: scale * ages[name] + offset for name in ("truth", "predicted")}))
    expected = numbers(ages)
    for group in ("all", "inner", "d"):
        assert moved[group, "r2"].value == pytest.approx(expected[group, "r2"].value, rel=1e-5)
    assert moved["all", "r2"].interval == pytest.approx(expected["all", "r2"].interval, rel=1e-5)
