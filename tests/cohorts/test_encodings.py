"""cases.csv, cohort.yaml and predictions.csv of any system: read right, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.csv_tables import MOST_COLUMNS
from threefold.errors import CohortError, PredictionsError
from threefold.evaluation.predictions import read_predictions

Make = Callable[..., Cohort]

REFUSED = {
    "latin-1": "UTF-8",
    "utf-16": "UTF-8",
    "utf-16-le": "UTF-8",
    "cp1252": "UTF-8",
}


@pytest.fixture
def cohort(make_cohort: Make) -> Cohort:
    made = make_cohort(site_groups={"caf\u00e9": ("a",)})
    table = made.folder / "cases.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([f"{lines[0]},note", *(f"{line},caf\u00e9" for line in lines[1:])]) + "\n")
    return read_cohort(made.folder)


@pytest.mark.parametrize("name", ["cases.csv", "cohort.yaml"])
def test_encodings_of_a_cohort(cohort: Cohort, name: str) -> None:
    path = cohort.folder / name
    text = path.read_text(encoding="utf-8")
    assert "caf" in text
    text = text.replace("\\xE9", "\u00e9")
    for mark, end in (("", "\r\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n")):
        path.write_bytes((mark + text.replace("\n", end)).encode())
        again = read_cohort(cohort.folder)
        assert again.spec == cohort.spec
        assert again.cases == cohort.cases
    for encoding, remedy in REFUSED.items():
        path.write_bytes(text.encode(encoding))
        with pytest.raises(CohortError, match=f"{name}: .*{remedy}") as caught:
            read_cohort(cohort.folder)
        assert len(str(caught.value)) < 400
    path.write_bytes(text.encode().replace(b"a", b"\0", 1))
    with pytest.raises(CohortError, match=name) as caught:
        read_cohort(cohort.folder)
    assert len(str(caught.value)) < 600


def test_a_table_with_a_column_a_voxel_is_refused_at_once(cohort: Cohort) -> None:
    path = cohort.folder / "cases.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    names = ",".join(f"v{number}" for number in range(MOST_COLUMNS))
    path.write_text(f"{lines[0]},{names}\n")
    with pytest.raises(CohortError, match=r"cases\.csv: .*columns; expected at most .*transposed"):
        read_cohort(cohort.folder)
    names = ",".join(f"v{number}" for number in range(2000))
    path.write_text("\n".join([f"{lines[0]},{names}", *(line + "," * 2000 for line in lines[1:3])]) + "\n")
    assert len(read_cohort(cohort.folder).cases[0].extra) == 2001


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_encodings_of_predictions(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "predictions.csv"
    text = "case_id,label,probability_no,probability_yes\r\ncaf\u00e9,no,0.5,0.5\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_predictions(path).table["case_id"].tolist() == ["caf\u00e9"]
    path.write_bytes(text.encode(encoding))
    with pytest.raises(PredictionsError, match=r"predictions\.csv: .*CSV UTF-8"):
        read_predictions(path)
