"""Numbers by group and level: who counts, how many, and what can't be said."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from threefold.errors import PredictionsError
from threefold.evaluation.classification import choose_threshold
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.groups import WORST_SITE_PATIENTS, GroupKind, Level, natural_order
from threefold.evaluation.metrics import METRICS
from threefold.evaluation.predictions import validate
from threefold.experiment import EvaluationSpec

from .conftest import Make

QUICK = EvaluationSpec(replicates=60)


def find(
    evaluation: Evaluation,
    metric: str,
    group_kind: GroupKind = "all",
    group: str = "all",
    level: Level = "case",
    class_name: str = "",
) -> Estimate:
    row = evaluation.find(metric, level=level, group_kind=group_kind, group=group, class_name=class_name)
    assert row is not None
    return row


def _labelled(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    return table["label"] == "yes", table["probability_yes"]


def test_each_group_has_its_own_cases_patients_and_positives(table: Make) -> None:
    test = table()
    evaluation = evaluate(validate(test), QUICK)
    groups = {("all", "all"): test}
    groups |= {("site", str(name)): rows for name, rows in test.groupby("site")}
    groups |= {("site group", str(name)): rows for name, rows in test.groupby("site_group")}
    assert {(r.group_kind, r.group) for r in evaluation.rows if r.group_kind != "worst site"} == {*groups}
    for (kind, name), rows in groups.items():
        row = find(evaluation, "auc", kind, name)  # type: ignore[arg-type]
        truth, p = _labelled(rows)
        assert (row.n, row.patients, row.positives) == (len(rows), rows["patient_id"].nunique(), truth.sum())
        if 0 < truth.sum() < len(truth):
            assert row.value == pytest.approx(sk.roc_auc_score(truth, p))
        else:
            assert np.isnan(row.value)
        psnr = find(evaluation, "psnr", kind, name)  # type: ignore[arg-type]
        assert psnr.value == pytest.approx(rows["psnr"].mean())


def test_groups_come_in_reading_order(table: Make) -> None:
    evaluation = evaluate(validate(table()), QUICK)
    names = [*dict.fromkeys((r.group_kind, r.group) for r in evaluation.rows if r.group_kind != "worst site")]
    assert names[:3] == [("all", "all"), ("site group", "internal"), ("site group", "external")]
    assert [name for kind, name in names if kind == "site"] == [f"site {k}" for k in range(1, 12)]
    assert natural_order({"b2", "b10", "a", "internal", "²"})[0] == "internal"


def test_intervals_hold_the_value_and_stay_in_the_bounds(table: Make) -> None:
    rows = evaluate(validate(table()), QUICK).rows
    with_interval = [row for row in rows if np.isfinite(row.low)]
    assert len(with_interval) > 100
    for row in with_interval:
        lowest, highest = METRICS[row.metric].bounds
        assert lowest <= row.low < row.high <= highest, row
    central = [row for row in with_interval if row.group_kind == "all" and row.metric != "calibration_error"]
    assert all(row.low <= row.value <= row.high for row in central)


def test_other_parts_are_in_no_number(table: Make) -> None:
    test = table()
    others = [table(seed=5, part=part) for part in ("train", "validation")]
    alone = evaluate(validate(test), EvaluationSpec(replicates=60, threshold="0.5"))
    among = evaluate(validate(pd.concat([*others, test])), EvaluationSpec(replicates=60, threshold="0.5"))
    pd.testing.assert_frame_equal(alone.table, among.table)


@pytest.mark.parametrize("rule", ["youden", "f1"])
def test_the_threshold_is_chosen_on_validation_cases_only(table: Make, rule: str) -> None:
    validation, test = table(seed=1, part="validation"), table(seed=2)
    validation.loc[::7, "label"] = ""
    spec = EvaluationSpec.model_validate({"replicates": 20, "threshold": rule})
    evaluation = evaluate(validate(pd.concat([validation, test])), spec)
    labelled = validation[validation["label"] != ""]
    expected = choose_threshold(*_labelled(labelled), rule)  # type: ignore[arg-type]
    assert evaluation.threshold == expected != 0.5
    assert evaluation.threshold_source == "validation"
    truth, p = _labelled(test)
    assert find(evaluation, "f1").value == pytest.approx(sk.f1_score(truth, p >= expected))
    # Whatever the test cases are, they don't move it.
    turned = test.assign(label=np.where(truth, "no", "yes"))
    assert evaluate(validate(pd.concat([validation, turned])), spec).threshold == expected


def test_a_given_threshold_wins_and_must_be_a_probability(table: Make) -> None:
    predictions = validate(pd.concat([table(part="validation"), table(seed=2)]))
    evaluation = evaluate(predictions, QUICK, threshold=0.9)
    assert (evaluation.threshold, evaluation.threshold_source) == (0.9, "given")
    for wrong in (1.5, float("nan")):
        with pytest.raises(PredictionsError, match="probability from 0 to 1"):
            evaluate(predictions, QUICK, threshold=wrong)


def test_where_validation_says_nothing_the_threshold_is_a_half_and_a_note_says_so(table: Make) -> None:
    evaluation = evaluate(validate(table()), QUICK)
    assert (evaluation.threshold, evaluation.threshold_source) == (0.5, "default")
    assert any("no labelled case: the decision threshold is 0.5" in note for note in evaluation.notes)
    one_class = pd.concat([table(part="validation").assign(label="no"), table()])
    assert any("one class only" in note for note in evaluate(validate(one_class), QUICK).notes)


def test_one_class_at_a_site_is_not_estimable_with_its_reason(table: Make) -> None:
    test = table()
    test.loc[test["site"] == "site 3", "label"] = "no"
    test.loc[test["site"] == "site 4", "label"] = ""
    evaluation = evaluate(validate(test), QUICK)
    reasons = {
        ("site 3", "auc"): "not estimable (one class)",
        ("site 3", "balanced_accuracy"): "not estimable (one class)",
        ("site 3", "f1"): "not estimable (no positive case)",
        ("site 3", "sensitivity"): "not estimable (no positive case)",
        ("site 3", "average_precision"): "not estimable (no positive case)",
        ("site 4", "auc"): "not estimable (no labelled case)",
        ("site 4", "brier"): "not estimable (no labelled case)",
    }
    for (site, metric), reason in reasons.items():
        row = find(evaluation, metric, "site", site)
        assert np.isnan([row.value, row.low, row.high]).all()
        assert row.note == reason
    assert find(evaluation, "auc", "site", "site 3").n == 12
    assert find(evaluation, "auc", "site", "site 4").n == 0
    assert np.isfinite(find(evaluation, "specificity", "site", "site 3").value)
    every = Counter((row.level, row.group_kind, row.group) for row in evaluation.rows)
    assert len(set(every.values())) == 1, "a row was dropped"


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_patients_are_aggregated_by_the_rule(table: Make, rule: str) -> None:
    test = table()
    test.loc[::5, "label"] = ""
    labelled = test[test["label"] != ""]
    by_patient = labelled.assign(positive=labelled["label"] == "yes").groupby("patient_id")
    truth = by_patient["positive"].any()
    p = getattr(by_patient["probability_yes"], rule)()
    spec = EvaluationSpec.model_validate({"replicates": 20, "patient_rule": rule})
    evaluation = evaluate(validate(test), spec, threshold=0.6)
    row = find(evaluation, "auc", level="patient")
    assert row.value == pytest.approx(sk.roc_auc_score(truth, p))
    assert (row.n, row.patients, row.positives) == (len(truth), len(truth), truth.sum())
    expected = sk.f1_score(truth, p >= 0.6)
    assert find(evaluation, "f1", level="patient").value == pytest.approx(expected)
    assert find(evaluation, "brier", level="patient").value == pytest.approx(np.mean((p - truth) ** 2))
    assert find(evaluation, "ssim", level="patient").value == pytest.approx(
        test.groupby("patient_id")["ssim"].mean().mean()
    )


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_patients_of_more_than_two_classes(table: Make, rule: str) -> None:
    classes = ("CoA", "RAA", "DAA")
    test = table(classes=classes, cases=4)
    columns = [f"probability_{name}" for name in classes]
    p = getattr(test.groupby("patient_id")[columns], rule)()
    p = p.div(p.sum(axis=1), axis=0)
    votes = pd.crosstab(test["patient_id"], test["label"])[list(classes)]
    labels = votes.to_numpy().argmax(axis=1)
    spec = EvaluationSpec.model_validate({"replicates": 20, "patient_rule": rule})
    evaluation = evaluate(validate(test, classes=classes), spec)
    assert evaluation.threshold is None
    decided = p.to_numpy().argmax(axis=1)
    assert find(evaluation, "accuracy", level="patient").value == pytest.approx((decided == labels).mean())
    for k, name in enumerate(classes):
        row = find(evaluation, "auc", level="patient", class_name=name)
        assert row.value == pytest.approx(sk.roc_auc_score(labels == k, p[columns[k]]))
        assert row.positives == (labels == k).sum()
    mean = find(evaluation, "auc", level="patient")
    assert mean.positives is None
    assert mean.value == pytest.approx(
        np.mean([sk.roc_auc_score(labels == k, p[columns[k]]) for k in range(3)])
    )


def test_a_site_without_one_of_three_classes_says_which(table: Make) -> None:
    test = table(classes=("CoA", "RAA", "DAA"))
    test.loc[(test["site"] == "site 2") & (test["label"] == "RAA"), "label"] = "CoA"
    evaluation = evaluate(validate(test), QUICK)
    assert find(evaluation, "auc", "site", "site 2").note == "not estimable (no case of class RAA)"
    assert np.isfinite(find(evaluation, "auc", "site", "site 2", class_name="DAA").value)
    assert find(evaluation, "auc", "site", "site 2", class_name="RAA").note == "not estimable (one class)"


def test_the_worst_site_has_enough_patients(table: Make) -> None:
    test = table(patients=33, sites=3)
    few = test["site"] == "site 3"
    keep = test.loc[few, "patient_id"].unique()[: WORST_SITE_PATIENTS - 1]
    test = test[~few | test["patient_id"].isin(keep)]
    test.loc[test["site"] == "site 3", ["psnr", "probability_yes"]] = 0.0
    test["probability_no"] = 1 - test["probability_yes"]
    evaluation = evaluate(validate(test), QUICK)
    for metric, worst in (("psnr", min), ("auc", min), ("brier", max), ("missed_lesions", max)):
        sites = [find(evaluation, metric, "site", f"site {k}") for k in (1, 2)]
        expected = worst(sites, key=lambda row: row.value)
        found = find(evaluation, metric, "worst site", expected.group)
        assert (found.value, found.low, found.n) == (expected.value, expected.low, expected.n)
        assert found.note.startswith("worst of 2 sites with at least 5 patients")


def test_where_no_site_has_enough_patients_there_is_no_worst(table: Make) -> None:
    evaluation = evaluate(validate(table(patients=8, sites=2)), QUICK)
    row = find(evaluation, "auc", "worst site", "")
    assert np.isnan(row.value)
    assert (row.n, row.note) == (0, "not estimable (no site with at least 5 patients where it exists)")
    single = evaluate(validate(table(patients=8, sites=1)), QUICK)
    assert all(row.group_kind != "worst site" for row in single.rows)


def test_a_leak_is_on_every_row(table: Make) -> None:
    test = table()
    assert not any(row.leaks for row in evaluate(validate(test), QUICK).rows)
    assert all(row.leaks for row in evaluate(validate(test, leaks=True), QUICK).rows)
    shared = table(part="validation").assign(patient_id=test["patient_id"])
    evaluation = evaluate(validate(pd.concat([shared, test])), QUICK)
    assert evaluation.leaks
    assert all(row.leaks for row in evaluation.rows)
    assert any("44 patients (for example test-p0)" in note for note in evaluation.notes)


def test_without_patients_each_case_is_its_own_and_it_is_said(table: Make) -> None:
    evaluation = evaluate(validate(table().drop(columns="patient_id")), QUICK)
    row = find(evaluation, "auc")
    assert row.n == row.patients == 132
    assert any(note.startswith("132 of 132 cases name no patient") for note in evaluation.notes)
    some = table()
    some.loc[:9, "patient_id"] = ""
    assert find(evaluate(validate(some), QUICK), "auc").patients == 44 - 3 + 10


def test_an_infinite_psnr_is_not_estimable(table: Make) -> None:
    test = table()
    test.loc[0, "psnr"] = np.inf
    evaluation = evaluate(validate(test), QUICK)
    row = find(evaluation, "psnr")
    assert np.isnan(row.value)
    assert row.note == "not estimable (infinite in 1 of 132)"
    assert np.isfinite(find(evaluation, "psnr", "site", "site 2").value)


def test_nothing_to_evaluate_is_refused(table: Make) -> None:
    with pytest.raises(PredictionsError, match=r"expected cases of part test, found \{'validation': 132\}"):
        evaluate(validate(table(part="validation")), QUICK)
    bare = table()[["case_id", "label", "probability_no", "probability_yes"]].assign(label="")
    with pytest.raises(PredictionsError, match="132 test cases, and none has a label"):
        evaluate(validate(bare), QUICK)


def test_same_table_same_numbers(table: Make) -> None:
    predictions = validate(table())
    pd.testing.assert_frame_equal(evaluate(predictions, QUICK).table, evaluate(predictions, QUICK).table)


def test_time_grows_with_the_cases(table: Make) -> None:
    seconds = []
    for patients in (125, 500):
        predictions = validate(table(patients=patients, cases=4))
        start = time.process_time()
        evaluate(predictions, EvaluationSpec(replicates=200))
        seconds.append(time.process_time() - start)
    assert seconds[1] < 8 * seconds[0]  # of four times as many; pairs would take sixteen times
