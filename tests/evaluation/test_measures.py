"""Metrics of two runs, paired by case: each is the number that the tables of evaluation give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from threefold.errors import PredictionsError
from threefold.evaluation.comparison import Measured, difference_of
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.measures import (
    OF_ALL,
    Tables,
    has_group,
    measured,
    measured_pair,
    scores,
)
from threefold.evaluation.metrics import diagnosis_metrics
from threefold.evaluation.predictions import validate
from threefold.evaluation.structures import NUMBERS, validate_structures, with_structures
from threefold.evaluation.task_tables import of_task
from threefold.experiment import EvaluationSpec

from .conftest import Make
from .several import several_tasks

QUICK = EvaluationSpec(replicates=20)
OF_MASKS = ("dice", "missed_lesions", "false_alarms", "psnr", "ssim")


def plain(measure: Measured) -> float:
    return float(measure.metric(np.ones((1, len(measure.patients))))[0])


@pytest.mark.parametrize("classes", [("no", "yes"), ("CoA", "RAA", "DAA")])
@pytest.mark.parametrize("group", ["all", "internal", "external", "site 3"])
def test_each_metric_is_the_one_of_the_tables(table: Make, classes: tuple[str, ...], group: str) -> None:
    predictions = validate(table(classes=classes))
    evaluation = evaluate(predictions, QUICK, threshold=0.4)
    kind = "all" if group == "all" else "site" if group.startswith("site") else "site group"
    for metric in (*diagnosis_metrics(), *OF_MASKS):
        row = evaluation.find(metric, level="case", group_kind=kind, group=group)
        assert row is not None
        found = measured(Tables(predictions, threshold=0.4), metric, group)
        np.testing.assert_array_equal(found.numbered, replace(found, numbers=None).numbered)
        assert plain(found) == pytest.approx(row.value, nan_ok=True), metric
        if metric not in ("missed_lesions", "false_alarms"):  # whose table counts what they need
            assert len(found.cases) == row.n, metric
            assert len(np.unique(found.patients)) == row.patients


def test_few_positive_patients_prove_little_however_many_are_tested(table: Make) -> None:
    """Four patients with positive cases change sides: a sign test of four has p = 0.125."""
    rows = table()
    patients = list(dict.fromkeys(rows["patient_id"]))
    rows["label"] = np.where(rows["patient_id"].isin(patients[:4]), "yes", "no")
    wrong, right = rows.copy(), rows.copy()
    for each, chance in ((wrong, 0.0), (right, 1.0)):
        each["probability_yes"] = np.where(each["label"] == "yes", chance, 0.1)
        each["probability_no"] = 1 - each["probability_yes"]
    both = (Tables(validate(wrong)), Tables(validate(right)))
    for metric, few in (("sensitivity", 4), ("auc", 4), ("f1", 4), ("specificity", len(patients) - 4)):
        pair = measured_pair(*both, metric, OF_ALL)
        assert [each.fewest_patients for each in pair] == [few, few], metric
        found = difference_of([pair], replicates=500, confidence=0.95)
        assert found.p >= 0.125, metric
        assert (found.estimate.patients, found.fewest_patients) == (len(patients), few)
    three = validate(table(classes=("CoA", "RAA", "DAA")))
    of_class = three.table.groupby("label")["patient_id"].nunique()
    assert measured(Tables(three), "balanced_accuracy", OF_ALL).fewest_patients == of_class.min()


def test_weights_are_those_of_the_cases(table: Make) -> None:
    rows = table()
    found = measured(Tables(validate(rows), threshold=0.3), "auc", OF_ALL)
    weights = np.random.default_rng(0).integers(0, 4, (3, len(rows))).astype(float)
    truth, p = rows["label"] == "yes", rows["probability_yes"]
    assert found.metric(weights) == pytest.approx(
        [sk.roc_auc_score(truth, p, sample_weight=w) for w in weights]
    )
    decided = measured(Tables(validate(rows), threshold=0.3), "f1", OF_ALL)
    assert decided.metric(weights) == pytest.approx(
        [sk.f1_score(truth, p >= 0.3, sample_weight=w) for w in weights]
    )


def test_a_class_is_a_group_too(table: Make) -> None:
    rows = table()
    found = measured(Tables(validate(rows)), "dice", "yes")
    dice = 2 * rows["mask_overlap_voxels"] / (rows["mask_truth_voxels"] + rows["mask_predicted_voxels"])
    chosen = (rows["label"] == "yes") & rows["mask_truth_voxels"].fillna(0).gt(0)
    assert plain(found) == pytest.approx(dice[chosen].mean())
    assert {*found.cases} == {*rows["case_id"][chosen]}


def test_a_further_column_makes_groups(table: Make) -> None:
    rows = table().assign(hard=lambda all_: (all_.index % 3 == 0).astype(int).astype(str))
    tables = Tables(validate(rows))
    found = measured(tables, "accuracy", "hard=1")
    assert {*found.cases} == {*rows["case_id"][rows["hard"] == "1"]}
    assert has_group(tables, "hard=0")
    assert not has_group(tables, "hard=2")
    assert not has_group(tables, "soft=1")


def test_only_test_cases_count(table: Make) -> None:
    both = pd.concat([table(), table(patients=5, part="validation", seed=3)])
    found = measured(Tables(validate(both)), "accuracy", OF_ALL)
    assert all(name.startswith("test-") for name in found.cases)
    assert not has_group(Tables(validate(both.assign(site=both["part"]))), "validation")


def test_a_pair_is_of_the_cases_that_both_have_in_the_order_of_the_first(table: Make) -> None:
    rows, other = table(), table(seed=1).sample(frac=0.8, random_state=2)
    other = other.merge(rows[["case_id", "label"]], on="case_id", suffixes=("_old", ""))[[*rows.columns]]
    rows.loc[::7, "label"] = ""  # without a label no diagnosis
    first, second = Tables(validate(rows)), Tables(validate(other))
    pair = measured_pair(first, second, "auc", "external")
    shared = [
        case
        for case, label, group in zip(rows["case_id"], rows["label"], rows["site_group"], strict=True)
        if case in {*other["case_id"]} and label and group == "external"
    ]
    for measure, source in zip(pair, (rows, other), strict=True):
        assert measure.cases.tolist() == shared
        mine = source.set_index("case_id").loc[shared]
        assert plain(measure) == pytest.approx(
            sk.roc_auc_score(mine["label"] == "yes", mine["probability_yes"])
        )


def test_a_pair_of_a_value_needs_it_in_both(table: Make) -> None:
    rows, other = table(), table(seed=5)
    other["label"] = rows["label"]
    first, second = measured_pair(Tables(validate(rows)), Tables(validate(other)), "dice", OF_ALL)
    assert first.cases.tolist() == second.cases.tolist()
    with_mask = [frame["mask_truth_voxels"].gt(0).to_numpy() for frame in (rows, other)]
    assert first.cases.tolist() == rows["case_id"][with_mask[0] & with_mask[1]].tolist()


def test_a_case_of_another_patient_is_refused_by_name(table: Make) -> None:
    rows, other = table(), table()
    other.loc[4, "patient_id"] = "someone"
    with pytest.raises(
        PredictionsError, match=r"case 'test-4': of patient 'test-p1' in one run and of patient 'someone'"
    ):
        measured_pair(Tables(validate(rows)), Tables(validate(other)), "auc", OF_ALL)


def test_a_case_of_another_label_is_refused_and_a_missing_label_is_not(table: Make) -> None:
    rows, other = table(), table()
    labels = [["", "yes", "no"], ["yes", "", "yes"]]
    for frame, three in zip((rows, other), labels, strict=True):
        frame.loc[[3, 4], "label"] = three[:2]
    measured_pair(Tables(validate(rows)), Tables(validate(other)), "auc", OF_ALL)
    for frame, three in zip((rows, other), labels, strict=True):
        frame.loc[5, "label"] = three[2]
    with pytest.raises(
        PredictionsError, match=r"case '.*': with label 'no' in one run and with label 'yes' in"
    ):
        measured_pair(Tables(validate(rows)), Tables(validate(other)), "auc", OF_ALL)


def test_unknown_names_are_told_with_the_nearest(table: Make) -> None:
    tables = Tables(validate(table()))
    with pytest.raises(PredictionsError, match=r"no metric 'aucc'. Did you mean 'auc'\?"):
        measured(tables, "aucc", OF_ALL)
    with pytest.raises(
        PredictionsError, match=r"no group 'externl' of test cases. Did you mean 'external'\?"
    ):
        measured(tables, "auc", "externl")


def test_what_a_run_does_not_do_it_has_no_cases_for(table: Make) -> None:
    rows = table()
    masks = rows.drop(columns=[name for name in rows if name.startswith(("probability", "label"))])
    without = Tables(validate(masks))
    for metric in ("auc", "f1", "structure_dice", "structure_dice:aorta"):
        assert not len(measured(without, metric, OF_ALL).cases)
    pair = measured_pair(Tables(validate(rows)), without, "auc", OF_ALL)
    assert [len(each.cases) for each in pair] == [0, 0]
    with pytest.raises(PredictionsError, match="no metric 'aucc'"):
        measured(without, "aucc", OF_ALL)


def test_evidence_is_a_value_a_case(table: Make) -> None:
    rows = table(patients=4)
    values = pd.DataFrame({"share_inside": [0.5, np.nan, 0.25]}, index=["test-3", "test-0", "test-7"])
    found = measured(Tables(validate(rows), evidence=values), "share_inside", OF_ALL)
    assert found.cases.tolist() == ["test-3", "test-7"]
    assert plain(found) == pytest.approx(0.375)


def test_structures_are_measured_one_by_one_and_on_average(table: Make) -> None:
    rows = table(patients=4, cases=1, sites=2)
    overlaps = {"aorta": (80, 60, 30, 0), "arch": (80, 70, 60, 50)}
    structures = pd.DataFrame(
        [
            {"case_id": case, "structure": name, **dict.fromkeys(NUMBERS), "truth_voxels": 100}
            | {"predicted_voxels": 80, "overlap_voxels": overlap}
            for name, of_cases in overlaps.items()
            for case, overlap in zip(rows["case_id"], of_cases, strict=True)
        ]
    )
    predictions = with_structures(validate(rows), validate_structures(structures))
    aorta = measured(Tables(predictions), "structure_dice:aorta", OF_ALL)
    arch = measured(Tables(predictions), "structure_dice:arch", OF_ALL)
    every = measured(Tables(predictions), "structure_dice", OF_ALL)
    assert plain(every) == pytest.approx((plain(aorta) + plain(arch)) / 2)
    assert plain(arch) == pytest.approx(np.mean([2 * b / 180 for b in (80, 70, 60, 50)]))
    with pytest.raises(PredictionsError, match=r"Did you mean 'structure_dice:arch'\?"):
        measured(Tables(predictions), "structure_dice:arh", OF_ALL)


def test_scores_are_those_of_labelled_cases(table: Make) -> None:
    rows = table()
    rows.loc[3, "label"] = ""
    found = scores(Tables(validate(rows)), "internal")
    mine = rows[(rows["site_group"] == "internal") & (rows["label"] != "")].set_index("case_id")
    assert found.index.tolist() == mine.index.tolist()
    assert (found["positive"] == (mine["label"] == "yes")).all()
    assert (found["score"] == mine["probability_yes"]).all()


def test_groups_that_are_there(table: Make) -> None:
    tables = Tables(validate(table()))
    assert all(has_group(tables, name) for name in ("all", "internal", "site 11", "yes"))
    assert not has_group(tables, "site 12")
    assert has_group(tables, "site=site 3")
    assert not has_group(tables, "site=site 12")
    assert plain(measured(tables, "accuracy", "site=site 3")) == plain(measured(tables, "accuracy", "site 3"))


def test_a_metric_of_a_task_is_that_of_its_own_table() -> None:
    table = several_tasks()
    tables = Tables(validate(table), thresholds={"density": 0.3})
    of_density = Tables(validate(of_task(table, "density")), 0.3)
    for metric in ("auc", "sensitivity", "brier"):
        found, expected = measured(tables, f"density.{metric}", "all"), measured(of_density, metric, "all")
        assert found.cases.tolist() == expected.cases.tolist()
        assert plain(found) == plain(expected)
    test = table[(table["part"] == "test") & table["age.truth"].notna()]
    outer = test[test["site_group"] == "outer"]
    errors = (outer["age.predicted"] - outer["age.truth"]).abs()
    assert plain(measured(tables, "age.mae", "outer")) == pytest.approx(errors.mean())
    known = table[(table["part"] == "test") & (table["findings.truth_rim"] != "")]
    auc = sk.roc_auc_score(known["findings.truth_rim"].astype(int), known["findings.probability_rim"])
    assert plain(measured(tables, "findings.rim.auc", "all")) == pytest.approx(auc)
    with pytest.raises(PredictionsError, match="has no finding 'rm'"):
        measured(tables, "findings.rm.auc", "all")
