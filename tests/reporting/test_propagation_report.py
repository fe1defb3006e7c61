"""The report of a propagation: the worst first, with pictures, and words where a file can't be read."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from threefold.atlases.propagation import propagate
from threefold.atlases.spec import FailureSpec, PropagationSpec
from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError
from threefold.reporting.propagation_report import write_propagation_report

from ..balls import write_balls

QUICK = PropagationSpec(size=(12, 12, 12), epochs=0, affine_steps=3, refinement_steps=2)


def made(tmp_path: Path, **failure: float) -> Cohort:
    spec = QUICK.model_copy(update={"failure": FailureSpec(**failure)})
    return propagate(write_balls(tmp_path / "cohort", "ab", side=12), tmp_path / "out", spec)


def test_every_registration_is_listed_and_drawn(tmp_path: Path) -> None:
    cohort = made(tmp_path)
    page = write_propagation_report(cohort, "footer").read_text(encoding="utf-8")
    with (cohort.folder / "quality.csv").open(newline="") as stream:
        scores = {row["case_id"]: float(row["score"]) for row in csv.DictReader(stream)}
    worst = max(scores, key=lambda name: scores[name])
    assert page.count("data:image/png") == 2
    assert page.index(f"<h3>{worst}: ") == page.index("<h3>", page.index("<h2>Pictures"))
    assert "None of 2 registrations failed" in page


def test_failed_registrations_are_drawn_from_the_labels_that_are_not_used(tmp_path: Path) -> None:
    cohort = made(tmp_path, min_gain=1)
    assert sorted(path.name for path in (cohort.folder / "not-used").iterdir()) == ["a.nii.gz", "b.nii.gz"]
    page = write_propagation_report(cohort, "footer").read_text(encoding="utf-8")
    assert "Of 2 registrations 2 failed: their cases have no structures" in page
    assert page.count("data:image/png") == 2
    cohort.cases[0].image.unlink()
    assert "No picture: " in write_propagation_report(cohort, "footer").read_text(encoding="utf-8")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    cohort = made(tmp_path)
    (cohort.folder / "quality.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CohortError, match=r"quality.csv: not a table of registrations"):
        write_propagation_report(cohort, "footer")
