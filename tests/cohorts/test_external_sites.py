"""The site group `external` is held out unless an experiment says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from threefold.cohorts.cohort import CohortSpec, write_cohort
from threefold.cohorts.splits import make_split
from threefold.experiment import SplitSpec


@pytest.mark.parametrize(
    ("kind", "held"), [("patient", True), ("site", True), ("slice", True), ("column", False)]
)
def test_external_is_held_out_by_default(tmp_path: Path, kind: Any, held: bool) -> None:
    parts = ("train", "validation", "test")
    rows = [
        {
            "case_id": f"{n}",
            "patient_id": f"{n}",
            "site": "ab"[n % 2],
            "image": "x.png",
            "split": parts[n % 3],
        }
        for n in range(24)
    ]
    groups = {"internal": ("a",), "external": ("b",)}
    spec = CohortSpec(name="c", modality="ct", dimensions=2, site_groups=groups)
    cohort = write_cohort(tmp_path / "cohort", spec, rows)
    split = make_split(cohort, SplitSpec(kind=kind))
    assert ({split.parts[case.case_id] for case in cohort.cases if case.site == "b"} == {"test"}) == held
    if kind == "patient":
        asked = make_split(cohort, SplitSpec(hold_out=()))
        assert {asked.parts[case.case_id] for case in cohort.cases if case.site == "b"} != {"test"}
