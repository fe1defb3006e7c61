"""The table of structures, and the numbers made from it: against loops over its rows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from threefold.errors import PredictionsError
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.evaluate import Evaluation, confusion_name, evaluate
from threefold.evaluation.groups import GroupKind, Level
from threefold.evaluation.intervals import patient_weights
from threefold.evaluation.metrics import title
from threefold.evaluation.predictions import Predictions, validate, write_predictions
from threefold.evaluation.structures import (
    NUMBERS,
    read_structures_table,
    structure_names,
    structure_values,
    tells_structures,
    validate_structures,
    with_structures,
)
from threefold.experiment import EvaluationSpec

from .conftest import make_table

CLASSES = ("CoA", "RAA", "DAA")
STRUCTURES = ("AO", "DAO", "AD")
QUICK = EvaluationSpec(replicates=80)


def make_structures(
    case_ids: Sequence[str], names: Sequence[str] = STRUCTURES, seed: int = 0
) -> pd.DataFrame:
    """Return random rows: a fifth of the structures is truly absent, a quarter is not predicted."""
    rng = np.random.default_rng(seed)
    rows = []
    for case_id in case_ids:
        for name in (*names, "union"):
            truth = 0 if rng.random() < 0.2 else int(rng.integers(1, 90))
            predicted = 0 if rng.random() < 0.25 else int(rng.integers(1, 90))
            missed = truth > 0 and predicted == 0
            row: dict[str, Any] = {
                "case_id": case_id,
                "structure": name,
                "truth_voxels": truth,
                "predicted_voxels": predicted,
                "overlap_voxels": int(rng.integers(0, min(truth, predicted) + 1)),
                "asd_mm": (100.0 if missed else rng.random() * 4) if truth else np.nan,
                "hd95_mm": (100.0 if missed else rng.random() * 9) if truth else np.nan,
                "cl_dice": (0.0 if missed else rng.random()) if truth else np.nan,
                "truth_source": "reference",
            }
            row |= {f"{side}_b{k}": rng.integers(0, 4) for side in ("truth", "predicted") for k in range(3)}
            rows.append(row)
    return pd.DataFrame(rows)


def make_predictions(seed: int = 0, **table: Any) -> Predictions:
    """Return 30 patients of two cases at five sites, with structures and what their topology says."""
    rows = make_table(**{"patients": 30, "cases": 2, "sites": 5, "classes": CLASSES, **table}, seed=seed)
    rng = np.random.default_rng(seed)
    rows["graph_edits"] = rng.integers(0, 3, len(rows)).astype(float)
    rows.loc[::7, "graph_edits"] = np.nan
    rows["topology_class"] = rng.choice(["", *CLASSES], len(rows))
    decided = rows[[f"probability_{name}" for name in CLASSES]].to_numpy().argmax(axis=1)
    agree = rows["topology_class"].to_numpy(str) == np.array(CLASSES)[decided]
    rows["agrees"] = np.where(rows["topology_class"] == "", "", np.where(agree, "yes", "no"))
    structures = validate_structures(make_structures(rows["case_id"].tolist(), seed=seed))
    return with_structures(validate(rows, classes=CLASSES), structures)


@pytest.fixture(scope="module")
def predictions() -> Predictions:
    return make_predictions()


@pytest.fixture(scope="module")
def evaluation(predictions: Predictions) -> Evaluation:
    return evaluate(predictions, QUICK)


def find(
    evaluation: Evaluation,
    metric: str,
    structure: str = "",
    group_kind: GroupKind = "all",
    group: str = "all",
    level: Level = "case",
) -> Estimate:
    row = evaluation.find(metric, level=level, group_kind=group_kind, group=group, class_name=structure)
    assert row is not None
    return row


# The table


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    written = make_structures(["007", "NA"], names=("None", "AO"))
    written.loc[0, ["truth_voxels", "overlap_voxels", "truth_b0", "truth_b1", "truth_b2"]] = np.nan
    write_predictions(written, tmp_path / "structures.csv")
    read = read_structures_table(tmp_path / "structures.csv")
    expected = written.astype(dict.fromkeys(NUMBERS, np.float64))
    pd.testing.assert_frame_equal(read[list(expected)], expected, check_dtype=False)
    assert structure_names(read) == ("None", "AO", "union")


def _cell(column: str, value: Any, row: int = 4) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.loc[row, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="cl_dice"),
            "column cl_dice is missing; expected case_id, structure, truth",
        ),
        (lambda t: pd.concat([t, t[4:5]]), "case 'b' has AO twice"),
        (_cell("structure", ""), "row 5, column structure: expected a name"),
        (_cell("case_id", None), "row 5, column case_id: expected a name"),
        (_cell("hd95_mm", "far"), "case 'b', AO, column hd95_mm: expected a number from 0; found 'far'"),
        (_cell("hd95_mm", math.inf), "column hd95_mm: expected a number from 0; found 'inf'"),
        (_cell("asd_mm", -1), "column asd_mm: expected a number from 0; found '-1'"),
        (_cell("cl_dice", 1.5), "column cl_dice: expected a number from 0 to 1; found '1.5'"),
        (_cell("predicted_b0", 1.5), "column predicted_b0: expected a whole number from 0; found '1.5'"),
        (_cell("overlap_voxels", 10**6), "column overlap_voxels: expected at most "),
        (_cell("overlap_voxels", None), "overlap_voxels: expected a number, since the truth is known"),
        (_cell("predicted_voxels", ""), "predicted_voxels: expected a number, since the truth is known"),
        (_cell("truth_voxels", None), "overlap_voxels: expected an empty cell, since the truth is not known"),
    ],
)
def test_what_is_wrong_is_said(
    change: Callable[[pd.DataFrame], pd.DataFrame], message: str, tmp_path: Path
) -> None:
    table = change(make_structures(["a", "b"]))
    with pytest.raises(PredictionsError, match=message.replace("(", r"\(")):
        validate_structures(table)
    path = tmp_path / "theirs.csv"
    table.to_csv(path, index=False)
    with pytest.raises(PredictionsError, match=r"theirs\.csv: "):
        read_structures_table(path)


def test_files_that_are_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match=r"gone\.csv: no such file"):
        read_structures_table(tmp_path / "gone.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(PredictionsError, match=r"empty\.csv: not a readable CSV table"):
        read_structures_table(tmp_path / "empty.csv")


def test_structures_of_other_cases_are_refused() -> None:
    table = make_table(patients=2)
    strange = validate_structures(make_structures([*table["case_id"], "zz"]))
    with pytest.raises(PredictionsError, match=r"case 'zz' \(1 such cases\) is not in the table of predict"):
        with_structures(validate(table), strange)


def test_it_is_said_where_the_truth_is_not_a_reference() -> None:
    table = make_table(patients=4, cases=1)
    structures = make_structures(table["case_id"].tolist())
    assert with_structures(validate(table), validate_structures(structures)).notes == ()
    structures.loc[structures["case_id"] == "test-1", "truth_source"] = "structures"
    joined = with_structures(validate(table), validate_structures(structures))
    assert joined.notes[0].startswith("1 of 4 test cases have no reference")
    assert evaluate(joined, QUICK).notes[0] == joined.notes[0]
    elsewhere = pd.concat([table, table.assign(case_id="v" + table["case_id"], part="validation")])
    elsewhere["patient_id"] = elsewhere["case_id"]
    structures["case_id"] = structures["case_id"].where(structures["case_id"] != "test-1", "vtest-1")
    assert with_structures(validate(elsewhere), validate_structures(structures)).notes == ()


def test_a_mask_is_no_structure(predictions: Predictions) -> None:
    assert tells_structures(predictions)
    table = predictions.structures
    assert table is not None
    union = table[table["structure"] == "union"]
    assert not tells_structures(replace(predictions, structures=union))
    assert not tells_structures(replace(predictions, structures=None))
    values = structure_values(union, ["test-0"])
    assert {structure for _, structure in values} == {"union"}


# The numbers


def values_of(rows: pd.DataFrame, metric: str) -> list[float]:
    """Return a metric of each row that has it: the definitions, one row after the other."""
    found = []
    for row in rows.to_dict("records"):
        there = row["truth_voxels"] > 0
        if metric == "extra_structures":
            if not there:
                found.append(float(row["predicted_voxels"] > 0))
        elif not there:
            continue
        elif metric == "structure_dice":
            sizes = row["truth_voxels"] + row["predicted_voxels"]
            found.append(2 * row["overlap_voxels"] / sizes)
        elif metric == "missed_structures":
            found.append(float(row["predicted_voxels"] == 0))
        elif metric.endswith("_error"):
            degree = metric[:2]
            found.append(abs(row[f"predicted_{degree}"] - row[f"truth_{degree}"]))
        else:
            found.append(row[metric])
    return found


METRICS = ("structure_dice", "asd_mm", "hd95_mm", "cl_dice", "b0_error", "b1_error", "b2_error")
COUNTS = ("missed_structures", "extra_structures")


@pytest.mark.parametrize("metric", [*METRICS, *COUNTS])
def test_each_structure_of_each_group(metric: str, predictions: Predictions, evaluation: Evaluation) -> None:
    cases = predictions.table.set_index("case_id")
    structures = predictions.structures
    assert structures is not None
    groups: list[tuple[GroupKind, str, pd.Series]] = [("all", "all", cases["site"] != "")]
    groups += [("site", name, cases["site"] == name) for name in cases["site"].unique()]
    groups += [("class", name, cases["label"] == name) for name in CLASSES]
    for kind, name, chosen in groups:
        of_group = structures[structures["case_id"].isin(cases.index[chosen])]
        for structure in (*STRUCTURES, "union"):
            rows = of_group[of_group["structure"] == structure]
            expected = values_of(rows, metric)
            row = find(evaluation, metric, structure, kind, name)
            assert row.n == len(expected)
            if expected:
                assert row.value == pytest.approx(np.mean(expected))
            else:
                assert math.isnan(row.value)
            has = (rows["truth_voxels"] == 0) if metric == "extra_structures" else rows["truth_voxels"] > 0
            assert row.patients == cases.loc[rows.loc[has, "case_id"], "patient_id"].nunique()
            assert row.positives == (sum(expected) if metric in COUNTS else None)


@pytest.mark.parametrize("metric", [*METRICS, *COUNTS])
def test_the_mean_over_structures_is_taken_in_each_case_first(
    metric: str, predictions: Predictions, evaluation: Evaluation
) -> None:
    structures = predictions.structures
    assert structures is not None
    single = structures[structures["structure"] != "union"]
    by_case = {name: values_of(rows, metric) for name, rows in single.groupby("case_id")}
    combine: Any = np.sum if metric in COUNTS else np.mean
    expected = {name: combine(values) for name, values in by_case.items() if values}
    row = find(evaluation, metric)
    assert row.n == len(expected)
    assert row.value == pytest.approx(np.mean([*expected.values()]))
    patients = predictions.table.set_index("case_id")["patient_id"]
    means = pd.Series(expected).groupby(patients).mean()
    by_patient = find(evaluation, metric, level="patient")
    assert by_patient.n == len(means)
    assert by_patient.value == pytest.approx(means.mean())


def test_topology_and_its_agreement(predictions: Predictions, evaluation: Evaluation) -> None:
    for kind, name, rows in [
        ("all", "all", predictions.table),
        *(("class", name, predictions.table[predictions.table["label"] == name]) for name in CLASSES),
    ]:
        known = rows[rows["graph_edits"].notna()]
        spoken = rows[rows["topology_class"] != ""]
        expected = {
            "graph_edits": (known["graph_edits"].mean(), len(known)),
            "topology_match": ((known["graph_edits"] == 0).mean(), len(known)),
            # An arch that says nothing is wrong.
            "topology_right": ((rows["topology_class"] == rows["label"]).mean(), len(rows)),
            "topology_agrees": ((spoken["agrees"] == "yes").mean(), len(spoken)),
        }
        for metric, (value, n) in expected.items():
            row = find(evaluation, metric, "", kind, name)  # type: ignore[arg-type]
            assert row.value == pytest.approx(value)
            assert row.n == n


def loop_interval(
    values: pd.DataFrame, column: str, spec: EvaluationSpec, keep: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple[float, float]:
    """Resample patients one replicate after the other, by the draws that the interval is made of."""
    values = keep(values)
    patients = np.unique(values["patient_id"], return_inverse=True)[1]
    means = []
    for weights in patient_weights(patients, spec.replicates, spec.seed):
        for replicate in weights:
            taken = np.repeat(values[column].to_numpy(), replicate.astype(int))
            if len(taken):
                means.append(taken.mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def test_intervals_are_those_of_resampled_patients(predictions: Predictions, evaluation: Evaluation) -> None:
    structures = predictions.structures
    assert structures is not None
    joined = structures.merge(predictions.table[["case_id", "patient_id"]], on="case_id")
    joined["error"] = (joined["predicted_b1"] - joined["truth_b1"]).abs()
    joined["extra"] = (joined["predicted_voxels"] > 0).astype(float)
    for metric, column, there in (
        ("asd_mm", "asd_mm", True),
        ("b1_error", "error", True),
        ("extra_structures", "extra", False),
    ):
        rows = joined[(joined["structure"] == "DAO") & ((joined["truth_voxels"] > 0) == there)]
        found = find(evaluation, metric, "DAO")
        assert (found.low, found.high) == pytest.approx(loop_interval(rows, column, QUICK, lambda t: t))
    edits = predictions.table.assign(edits=predictions.table["graph_edits"])
    found = find(evaluation, "graph_edits")
    expected = loop_interval(edits, "edits", QUICK, lambda t: t[t["edits"].notna()])
    assert (found.low, found.high) == pytest.approx(expected)


def test_a_metric_that_a_foreign_table_lacks_is_over_the_cases_that_have_it() -> None:
    table = make_table(patients=20, cases=1)
    structures = make_structures(table["case_id"].tolist())
    structures.loc[structures["case_id"].isin(["test-1", "test-2"]), "hd95_mm"] = np.nan
    structures["cl_dice"] = np.nan
    evaluation = evaluate(with_structures(validate(table), validate_structures(structures)), QUICK)
    rows = structures[(structures["structure"] == "AO") & (structures["truth_voxels"] > 0)]
    assert find(evaluation, "structure_dice", "AO").n == len(rows)
    distance = find(evaluation, "hd95_mm", "AO")
    assert distance.n == rows["hd95_mm"].notna().sum() < len(rows)
    assert distance.value == pytest.approx(rows["hd95_mm"].mean())
    assert find(evaluation, "cl_dice", "AO").note == "not estimable (no case with it)"


def test_what_no_case_has_says_why() -> None:
    table = make_table(patients=8, cases=1)
    structures = make_structures(table["case_id"].tolist())
    structures.loc[structures["structure"] == "AD", ["truth_voxels", "overlap_voxels"]] = 0
    structures.loc[structures["structure"] == "AO", "truth_voxels"] = 90
    evaluation = evaluate(with_structures(validate(table), validate_structures(structures)), QUICK)
    for metric, structure, note in (
        ("structure_dice", "AD", "not estimable (no case with it)"),
        ("extra_structures", "AO", "not estimable (no case lacks it)"),
    ):
        row = find(evaluation, metric, structure)
        assert math.isnan(row.value)
        assert (row.n, row.note) == (0, note)


def test_no_miss_in_any_case_has_an_exact_interval() -> None:
    table = make_table(patients=12, cases=1)
    structures = make_structures(table["case_id"].tolist())
    structures[["truth_voxels", "predicted_voxels", "overlap_voxels"]] = [10, 8, 5]
    evaluation = evaluate(with_structures(validate(table), validate_structures(structures)), QUICK)
    row = find(evaluation, "missed_structures", "AO")
    assert (row.value, row.low, row.positives) == (0, 0, 0)
    assert row.high == pytest.approx(1 - 0.025 ** (1 / 12))
    # Their number in a case is no share.
    assert math.isnan(find(evaluation, "missed_structures").high)


def test_the_worst_site_is_the_farthest_or_the_least_overlapping(evaluation: Evaluation) -> None:
    for metric, worst in (("hd95_mm", max), ("structure_dice", min), ("topology_right", min)):
        structure = "" if metric == "topology_right" else "union"
        sites = [
            row
            for row in evaluation.rows
            if (row.level, row.group_kind, row.metric, row.class_name) == ("case", "site", metric, structure)
        ]
        assert len(sites) == 5
        expected = worst(sites, key=lambda row: row.value)
        assert find(evaluation, metric, structure, "worst site", expected.group).value == expected.value


# The confusion of several classes


def test_confusion_is_that_of_scikit_learn(predictions: Predictions, evaluation: Evaluation) -> None:
    table = predictions.table
    for kind, name, rows in (
        ("all", "all", table),
        ("site", "site 2", table[table["site"] == "site 2"]),
    ):
        decided = rows[[f"probability_{c}" for c in CLASSES]].to_numpy().argmax(axis=1)
        decided_names = np.array(CLASSES)[decided]
        counts = confusion_matrix(rows["label"], decided_names, labels=list(CLASSES))
        for i, true in enumerate(CLASSES):
            for k, other in enumerate(CLASSES):
                row = find(evaluation, "confusion", confusion_name(true, other), kind, name)  # type: ignore[arg-type]
                assert (row.positives, row.n) == (counts[i, k], counts[i].sum())
                assert row.value == pytest.approx(counts[i, k] / counts[i].sum())
        diagonal = [find(evaluation, "confusion", confusion_name(c, c), kind, name).value for c in CLASSES]  # type: ignore[arg-type]
        balanced = find(evaluation, "balanced_accuracy", "", kind, name).value  # type: ignore[arg-type]
        assert np.mean(diagonal) == pytest.approx(balanced)


def test_a_class_taken_for_itself_has_the_interval_of_its_sensitivity(evaluation: Evaluation) -> None:
    for name in CLASSES:
        own = find(evaluation, "confusion", confusion_name(name, name))
        sensitivity = find(evaluation, "sensitivity", name)
        assert (own.value, own.low, own.high) == pytest.approx(
            (sensitivity.value, sensitivity.low, sensitivity.high)
        )


def test_confusion_has_no_worst_site_and_two_classes_have_none(evaluation: Evaluation) -> None:
    assert not [r for r in evaluation.rows if r.metric == "confusion" and r.group_kind == "worst site"]
    two = evaluate(validate(make_table(patients=6)), QUICK)
    assert not [row for row in two.rows if row.metric == "confusion"]


def test_a_class_without_cases_is_not_confused() -> None:
    table = make_table(patients=9, cases=1, classes=CLASSES)
    table = table[table["label"] != "DAA"]
    evaluation = evaluate(validate(table, classes=CLASSES), QUICK)
    row = find(evaluation, "confusion", "DAA as CoA")
    assert math.isnan(row.value)
    assert (row.n, row.note) == (0, "not estimable (no case of class DAA)")


def test_time_grows_with_the_structures() -> None:
    table = make_table(patients=60, cases=1, sites=6, classes=CLASSES)
    seconds = []
    for number in (3, 12):
        structures = make_structures(table["case_id"].tolist(), names=[f"s{k}" for k in range(number)])
        joined = with_structures(validate(table, classes=CLASSES), validate_structures(structures))
        start = time.process_time()
        evaluation = evaluate(joined, EvaluationSpec(replicates=200))
        seconds.append(time.process_time() - start)
        assert len([row for row in evaluation.rows if row.metric == "hd95_mm"]) > 2 * (number + 2) * 9
    assert seconds[1] < 8 * seconds[0]  # of four times as many; pairs would take sixteen times


# Distances in pixels


def test_distances_in_pixels_are_never_averaged_with_those_in_mm(tmp_path: Path) -> None:
    rows = make_table(patients=12, cases=2, sites=2, classes=CLASSES)
    structures = make_structures(rows["case_id"].tolist())
    pixels = structures["case_id"].isin(rows["case_id"][::2])
    for name in ("asd", "hd95"):
        structures[f"{name}_px"] = structures[f"{name}_mm"].where(pixels)
        structures[f"{name}_mm"] = structures[f"{name}_mm"].mask(pixels)
    write_predictions(structures, tmp_path / "structures.csv")
    mixed = with_structures(validate(rows), read_structures_table(tmp_path / "structures.csv"))
    evaluation = evaluate(mixed, QUICK)
    for unit, chosen in (("px", pixels), ("mm", ~pixels)):
        of_unit = structures[chosen & (structures["structure"] == "AO") & (structures["truth_voxels"] > 0)]
        row = find(evaluation, f"asd_{unit}", "AO")
        assert (row.n, row.value) == (len(of_unit), pytest.approx(of_unit[f"asd_{unit}"].mean()))
    said = " ".join(mixed.notes)
    assert (
        "12 cases state no spacing: their distances are in pixels, apart from those of the other 12" in said
    )


def test_where_no_case_states_a_spacing_nothing_is_in_mm() -> None:
    rows = make_table(patients=6, cases=1, sites=1)
    structures = make_structures(rows["case_id"].tolist(), names=())
    for name in ("asd", "hd95"):
        structures[f"{name}_px"] = structures[f"{name}_mm"]
        structures[f"{name}_mm"] = np.nan
    mine = with_structures(validate(rows), validate_structures(structures))
    metrics = {row.metric for row in evaluate(mine, QUICK).rows}
    assert {"asd_px", "hd95_px"} < metrics
    assert not {"asd_mm", "hd95_mm"} & metrics
    assert title("hd95_px:AO") == "HD95 (pixels) (AO)"
