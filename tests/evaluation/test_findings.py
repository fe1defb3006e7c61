"""The mean over findings against scikit-learn, finding by finding."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from threefold.evaluation.estimate import Estimate
from threefold.evaluation.findings import mean_over_findings
from threefold.evaluation.task_tables import of_task
from threefold.experiment import EvaluationSpec

from .several import FINDINGS, resampled, several_tasks

SPEC = EvaluationSpec(replicates=60, confidence=0.9, seed=3)
SCORES = {"auc": roc_auc_score, "average_precision": average_precision_score}


def reference(rows: pd.DataFrame, metric: str, findings: tuple[str, ...] = FINDINGS) -> float:
    values = []
    for finding in findings:
        known = rows[rows[f"truth_{finding}"] != ""]
        truth = known[f"truth_{finding}"].astype(int)
        values.append(SCORES[metric](truth, known[f"probability_{finding}"]))
    return float(np.mean(values))


def means(table: pd.DataFrame) -> dict[tuple[str, str], Estimate]:
    return {(row.group, row.metric): row for row in mean_over_findings(table, SPEC)}


@pytest.fixture(scope="module")
def findings() -> pd.DataFrame:
    return of_task(several_tasks(), "findings")


def test_the_mean_is_that_of_each_finding_over_its_known_cases(findings: pd.DataFrame) -> None:
    found, test = means(findings), findings[findings["part"] == "test"]
    groups = {"all": test}
    for column in ("site_group", "site"):
        groups |= {str(name): rows for name, rows in test.groupby(column)}
    assert {*found} == {(group, metric) for group in groups for metric in SCORES}
    for (group, metric), row in found.items():
        assert row.value == pytest.approx(reference(groups[group], metric), rel=1e-12)
        assert row.class_name == "mean of 3 of 3 findings"


def test_the_intervals_are_of_patients_the_same_for_all_findings(findings: pd.DataFrame) -> None:
    test = findings[findings["part"] == "test"].reset_index(drop=True)
    resamples = resampled(test["patient_id"], SPEC.replicates, SPEC.seed)
    for metric in SCORES:
        values = [reference(test.iloc[places], metric) for places in resamples]
        ends = tuple(np.quantile(values, [0.05, 0.95]))
        assert means(findings)["all", metric].interval == pytest.approx(ends, rel=1e-9)


def test_a_finding_that_a_group_does_not_have_is_left_out_of_its_mean(findings: pd.DataFrame) -> None:
    outer = findings["site_group"] == "outer"
    changed = findings.assign(
        truth_line=findings["truth_line"].mask(outer, 0), truth_rim=findings["truth_rim"].mask(outer, "")
    )
    found = means(changed)
    row = found["outer", "auc"]
    assert row.class_name == "mean of 1 of 3 findings"
    there = changed[outer & (changed["part"] == "test")]
    assert row.value == pytest.approx(reference(there, "auc", ("spot",)))
    assert found["inner", "auc"].class_name == "mean of 3 of 3 findings"


def test_without_any_finding_it_says_why(findings: pd.DataFrame) -> None:
    none = findings.assign(**{f"truth_{name}": 1 for name in FINDINGS})
    for row in mean_over_findings(none, SPEC):
        assert math.isnan(row.value)
        assert row.interval is None
        assert row.note == "not estimable (no finding is there in some cases and absent in others)"


def test_a_case_of_which_no_finding_is_known_does_not_count(findings: pd.DataFrame) -> None:
    unknown = findings["patient_id"] == "test-p03"
    changed = findings.assign(
        **{f"truth_{name}": findings[f"truth_{name}"].mask(unknown, "") for name in FINDINGS}
    )
    known = (changed[[f"truth_{name}" for name in FINDINGS]] != "").any(axis=1) & (changed["part"] == "test")
    row = means(changed)["all", "auc"]
    assert (row.n, row.patients) == (known.sum(), 17)
    assert vars(row) == vars(means(changed[known])["all", "auc"])
