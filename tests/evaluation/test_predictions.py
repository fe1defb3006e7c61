"""Tables of predictions: what is accepted, and what every damage is told to be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from threefold.errors import PredictionsError
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.predictions import Predictions, read_predictions, validate, write_predictions
from threefold.experiment import EvaluationSpec

from .conftest import Make, make_table

QUICK = EvaluationSpec(replicates=5)


def test_a_table_comes_back_as_written(table: Make, tmp_path: Path) -> None:
    written = table().assign(scanner="GE, old", note="")
    written.loc[3, "label"] = ""
    path = tmp_path / "predictions.csv"
    write_predictions(written, path)
    read = read_predictions(path)
    columns = [*written.columns]
    pd.testing.assert_frame_equal(
        read.table[columns].astype(written.dtypes.to_dict()), written, check_exact=True
    )
    assert (read.classes, read.positive, read.leaks, read.notes) == (("no", "yes"), "yes", False, ())


def test_numbers_of_single_precision_are_written_so_that_they_come_back(tmp_path: Path) -> None:
    p = np.random.default_rng(0).random(50).astype(np.float32)
    path = tmp_path / "predictions.csv"
    frame = pd.DataFrame({"case_id": range(50), "label": "a", "probability_a": p, "probability_b": 1 - p})
    write_predictions(frame, path)
    np.testing.assert_array_equal(read_predictions(path).table["probability_a"], p.astype(np.float64))


def test_ids_and_class_names_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    header = "\ufeff case_id ,patient_id,label,probability_NA,probability_None\n"
    path.write_text(header + "007,0001,NA,0.5,0.5\n7,1,None,1,0\n")
    read = read_predictions(path)
    assert [*read.table["case_id"]] == ["007", "7"]
    assert [*read.table["patient_id"]] == ["0001", "1"]
    assert (read.classes, read.positive) == (("NA", "None"), "None")


def test_classes_come_in_the_order_asked_for(table: Make) -> None:
    predictions = validate(table(), classes=("yes", "no"), positive="yes")
    assert (predictions.classes, predictions.positive_index) == (("yes", "no"), 0)
    assert validate(table(classes=("a", "b", "c"))).positive is None


def test_what_is_absent_is_assumed_and_said() -> None:
    predictions = validate(pd.DataFrame({"case_id": ["a", "b"], "psnr": [30.0, 31.0]}))
    assert [*predictions.table["patient_id"]] == ["case a", "case b"]
    assert [*predictions.table["part"]] == ["test", "test"]
    assert predictions.notes == (
        "2 of 2 cases name no patient: each counts as a patient of its own, so intervals are too narrow if "
        "some share one.",
        "The table names no part: every case counts as a test case.",
    )


def test_a_patient_at_several_sites_is_noted(table: Make) -> None:
    numbered = table(patients=22, sites=2)
    numbered["patient_id"] = [str(i // 6) for i in range(len(numbered))]
    notes = validate(numbered).notes
    assert notes == (
        "11 patients (for example 0) are at several sites: each counts as one patient. Where they are "
        "different people, put the site into patient_id.",
    )


def test_a_predicted_mask_needs_no_truth(table: Make) -> None:
    frame = table().drop(columns=["mask_truth_voxels", "mask_overlap_voxels"])
    assert validate(frame).table["mask_truth_voxels"].isna().all()


@pytest.mark.parametrize("positive", ["maybe", ""])
def test_the_positive_class_must_be_one(table: Make, positive: str) -> None:
    with pytest.raises(
        PredictionsError, match=f"the positive class is '{positive}', which is not one of no, yes"
    ):
        validate(table(), positive=positive)


Change = Callable[[pd.DataFrame], pd.DataFrame]


def put(column: str, value: object, row: int = 1) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        cells = table[column].astype(object)
        cells.iloc[row] = value
        return table.assign(**{column: cells})

    return change


DAMAGES: dict[str, tuple[Change, str]] = {
    "sum": (
        put("probability_yes", 0.0, 0),
        r"case 'test-0', column probability_no \+ probability_yes: expected a sum of 1 \(within 0.005\), "
        r"found 0\.\d+\.",
    ),
    "above one": (
        put("probability_yes", 1.2),
        "column probability_yes: expected a probability from 0 to 1, found 1.2",
    ),
    "no probability": (put("probability_no", ""), "expected a probability from 0 to 1, found an empty cell"),
    "NaN as text": (put("probability_no", "nan"), "expected a number or an empty cell, found 'nan'"),
    "infinite": (put("probability_no", "inf"), "expected a probability from 0 to 1, found inf"),
    "a word": (
        put("psnr", "good"),
        "case 'test-1', column psnr: expected a number or an empty cell, found 'good'",
    ),
    "comma for a point": (put("ssim", "0,5"), "column ssim: expected a number or an empty cell, found '0,5'"),
    "ssim above one": (put("ssim", 1.5), "column ssim: expected a number from -1 to 1, found 1.5"),
    "psnr below all": (put("psnr", "-inf"), "column psnr: expected a number of dB, found -inf"),
    "label": (put("label", "yess"), "column label: expected one of no, yes, found 'yess'.*[Dd]id you mean"),
    "part": (put("part", "tset"), "column part: expected one of train, validation, test, found 'tset'"),
    "no part": (put("part", ""), "column part: expected one of train, validation, test, found ''"),
    "twice": (
        put("case_id", "test-0"),
        "case 'test-0', column case_id: expected each case once, found 2 rows",
    ),
    "no id": (put("case_id", " "), "row 2, column case_id: expected a name, found none"),
    "half a voxel": (put("mask_predicted_voxels", 0.5), "expected a whole number of voxels, found 0.5"),
    "negative voxels": (put("mask_predicted_voxels", -3), "expected a whole number of voxels, found -3"),
    "too much overlap": (
        put("mask_overlap_voxels", 9999, 0),
        r"column mask_overlap_voxels: expected at most \d+",
    ),
    "truth without prediction": (
        put("mask_predicted_voxels", "", 0),
        "predicted_voxels: expected a number, since the case has a true mask, found an empty cell",
    ),
    "overlap without truth": (
        lambda t: put("mask_truth_voxels", "", 0)(put("mask_overlap_voxels", 2, 0)(t)),
        "column mask_overlap_voxels: expected an empty cell, since the case has no true mask, found 2",
    ),
    "no case_id": (lambda t: t.drop(columns="case_id"), "column case_id is missing; found patient_id, site"),
    "no label": (lambda t: t.drop(columns="label"), "column label is missing"),
    "one probability": (
        lambda t: t.drop(columns="probability_no"),
        r"only one column of probabilities \(probability_yes\).*1 - p",
    ),
    "nameless class": (
        lambda t: t.rename(columns={"probability_no": "probability_"}),
        "column probability_: expected the name of a class after it, found none",
    ),
    "part of the masks": (
        lambda t: t.drop(columns="mask_overlap_voxels"),
        "column mask_overlap_voxels is missing",
    ),
    "nothing": (
        lambda t: t[["case_id", "label", "site"]],
        "nothing to evaluate; expected probability_<class>",
    ),
    "no row": (lambda t: t.iloc[:0], "the table has a header and no case"),
    "doubled": (lambda t: pd.concat([t, t[["label"]]], axis=1), "column label is there twice"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_names_where_it_is_in_memory_and_in_a_file(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    damaged = change(make_table(patients=6, sites=2, seed=3))
    with pytest.raises(PredictionsError, match=message):
        validate(damaged)
    path = tmp_path / "table.csv"
    damaged.to_csv(path, index=False)
    with pytest.raises(PredictionsError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_predictions(path)


@pytest.mark.parametrize("classes", [("no", "perhaps"), ("no", "yes", "perhaps")])
def test_other_classes_than_the_runs_are_refused(table: Make, classes: tuple[str, ...]) -> None:
    with pytest.raises(PredictionsError, match=r"expected the columns probability_no, .*perhaps, found"):
        validate(table(), classes=classes)


def test_absent_classes_are_refused_where_some_are_expected(table: Make) -> None:
    without = table().drop(columns=["probability_no", "probability_yes"])
    with pytest.raises(
        PredictionsError, match="expected the columns probability_no, probability_yes, found none"
    ):
        validate(without, classes=("no", "yes"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable CSV"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "not a readable CSV"),
        (b"case_id,psnr\na,30,7\nb,31,7\n", "not a readable CSV table.*row 2 has 3 cells, the header 2"),
        (b"case_id,psnr,psnr\na,30,7\n", "column psnr is there twice"),
        (b"case_id;psnr\na;30\n", "column case_id is missing; found case_id;psnr"),
        (b'case_id,psnr\n"a,30\n', "not a readable CSV"),
        (b"case_id,psnr\n", "the table has a header and no case"),
    ],
)
def test_what_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PredictionsError, match="no such file"):
        read_predictions(tmp_path / "none.csv")
    with pytest.raises(PredictionsError, match="not a readable CSV"):
        read_predictions(tmp_path)


def test_patients_in_two_parts_are_a_leak_but_validation_and_training_may_share(table: Make) -> None:
    test, train, validation = (table(part=part) for part in ("test", "train", "validation"))
    shared = validation.assign(patient_id=train["patient_id"])
    assert not validate(pd.concat([test, train, shared])).leaks
    leaking = train.assign(patient_id=test["patient_id"])
    predictions = validate(pd.concat([test, leaking]))
    assert predictions.leaks
    assert (
        "44 patients (for example test-p0) are in the test part and in another part" in predictions.notes[0]
    )


def fine_or_refused(make: Callable[[], Predictions]) -> None:
    """Damage is refused as such, or does no harm: the numbers come out."""
    try:
        evaluate(make(), QUICK)
    except PredictionsError:
        return


CELLS = st.one_of(
    st.sampled_from(
        ["", " ", "nan", "inf", "-1", "1e400", "0x10", "1_0", "0.5", "yes", "no", "test", "\x00", '"']
    ),
    st.text(max_size=6),
    st.floats().map(str),
    st.integers().map(str),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    damages=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 12), CELLS), min_size=1, max_size=4),
    dropped=st.sets(st.integers(0, 12), max_size=3),
    doubled=st.sets(st.integers(0, 12), max_size=1),
)
def test_damaged_cells_and_columns_are_refused_or_fine(
    tmp_path: Path, damages: list[tuple[int, int, str]], dropped: set[int], doubled: set[int]
) -> None:
    frame = make_table(patients=6, cases=2, sites=2).astype(object)
    for row, column, cell in damages:
        frame.iloc[row, column] = cell
    kept = [k for k in range(frame.shape[1]) if k not in dropped] + [*doubled]
    frame = frame.iloc[:, kept]
    fine_or_refused(lambda: validate(frame))
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False)
    fine_or_refused(lambda: read_predictions(path))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), place=st.floats(0, 1), noise=st.binary(max_size=8))
@example(cut=1.0, place=0.0, noise=b"\xef\xbb\xbf")
@example(cut=1.0, place=1.0, noise=b",,")
def test_damaged_bytes_are_refused_or_fine(tmp_path: Path, cut: float, place: float, noise: bytes) -> None:
    text = make_table(patients=4, cases=2, sites=2).round(4).to_csv(index=False).encode()
    text = text[: int(cut * len(text))]
    at = int(place * len(text))
    path = tmp_path / "table.csv"
    path.write_bytes(text[:at] + noise + text[at:])
    fine_or_refused(lambda: read_predictions(path))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.none(), st.booleans(), st.complex_numbers(), st.dates(), st.lists(st.integers()), st.binary()
        ),
        min_size=3,
        max_size=3,
    ),
    st.sampled_from(["case_id", "label", "part", "site", "probability_a", "psnr", "mask_truth_voxels"]),
)
def test_objects_that_are_no_cells_are_refused_or_fine(values: list[object], column: str) -> None:
    frame = pd.DataFrame(
        {
            "case_id": ["1", "2", "3"],
            "label": ["a", "b", "a"],
            "part": "test",
            "site": "s",
            "probability_a": [0.2, 0.3, 0.4],
            "probability_b": [0.8, 0.7, 0.6],
            "psnr": 30.0,
            "mask_truth_voxels": 3,
            "mask_predicted_voxels": 3,
            "mask_overlap_voxels": 3,
        }
    )
    frame[column] = pd.Series(values, dtype=object)
    fine_or_refused(lambda: validate(frame))
