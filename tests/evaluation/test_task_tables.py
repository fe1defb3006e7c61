"""A table of several tasks, seen as tables of one each."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threefold.evaluation.predictions import validate
from threefold.evaluation.task_tables import findings_in, of_finding, of_task, tasks_in

from .several import CLASSES, FINDINGS, several_tasks


def test_tasks_are_told_by_their_columns() -> None:
    assert list(tasks_in(several_tasks().columns).items()) == [
        ("density", "class"),
        ("side", "class"),
        ("findings", "findings"),
        ("age", "number"),
        ("lesion", "labels"),
    ]
    assert tasks_in(["case_id", "restored.psnr", "restored.ssim"]) == {"restored": "image"}
    assert tasks_in(["case_id", "label", "probability_a.label", "probability_b", "psnr", "age.years"]) == {}


def test_a_column_of_ones_own_with_a_dot_is_no_task() -> None:
    table = several_tasks().assign(**{"reader.label": "low", "reader.truth": 3, "scan.truth_time": "noon"})
    assert tasks_in(table.columns) == tasks_in(several_tasks().columns)
    assert "reader.label" in of_task(table, "density")


def test_one_task_has_its_own_columns_without_their_prefix_and_those_of_all() -> None:
    table = several_tasks().assign(label="of another", scanner="x")
    shared = ["case_id", "patient_id", "site", "site_group", "part"]
    own = {
        "density": ["label", "probability_low", "probability_high"],
        "age": ["truth", "predicted"],
        "lesion": ["mask_truth_voxels", "mask_predicted_voxels", "mask_overlap_voxels"],
    }
    for task, names in own.items():
        found = of_task(table, task)
        rest = ["scanner"] if "label" in names else ["label", "scanner"]
        assert sorted(found.columns) == sorted([*shared, *rest, *names])
        for name in names:
            pd.testing.assert_series_equal(found[name], table[f"{task}.{name}"], check_names=False)
    assert validate(of_task(table, "side")).classes == CLASSES["side"]


def test_a_finding_is_a_diagnosis_of_two_classes() -> None:
    table = of_task(several_tasks().assign(label="of another"), "findings")
    assert findings_in(table) == FINDINGS
    found = of_finding(table, "spot")
    assert {*found.columns} == {
        *("case_id", "patient_id", "site", "site_group", "part", "label"),
        *("probability_absent", "probability_present"),
    }
    told = {1: "present", 0: "absent", "": ""}
    assert found["label"].tolist() == [told[one] for one in table["truth_spot"]]
    np.testing.assert_array_equal(found["probability_present"], table["probability_spot"])
    checked = validate(found, positive="present")
    assert (checked.classes, checked.positive_index) == (("absent", "present"), 1)


def test_a_finding_read_as_text_is_the_same() -> None:
    table = of_task(several_tasks(), "findings")
    read, made = (of_finding(one, "rim")["label"] for one in (table.astype(str), table))
    assert read.tolist() == made.tolist()
