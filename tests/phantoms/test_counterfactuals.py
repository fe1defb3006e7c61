"""A case with one thing switched is the same case in all else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threefold.errors import CohortError
from threefold.images.reading import read_image, read_label_map
from threefold.phantoms.counterfactuals import PhantomCase, lesion_files, phantom_cases
from threefold.phantoms.head_ct import HEAD_CT, HeadCtSpec, case_parameters, make_head_ct_cohort, render_case
from threefold.phantoms.object_background import ObjectBackgroundSpec, make_object_background_cohort

SPEC = HeadCtSpec(patients_per_site=2, external_patients_per_site=1, slices=(1, 1), sites=5, size=96)


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    assert HEAD_CT.counterfactuals is not None
    return [PhantomCase(case.case_id, case, HEAD_CT.counterfactuals) for case in case_parameters(SPEC, 0)]


def _twice(case: PhantomCase, name: str) -> object:
    switch = case.of.switches[name]
    return switch.switched(switch.switched(case.parameters))


def test_the_clip_changes_its_corner_alone(cases: list[PhantomCase]) -> None:
    case = cases[0]
    original = render_case(case.parameters)
    switched = case.render_switched("shortcut")
    changed = original.hu != switched
    assert 0 < changed.sum() < 0.02 * changed.size
    rows, columns = np.nonzero(changed)
    assert rows.max() < 26  # the patient's right
    assert columns.max() < 26  # in front
    assert _twice(case, "shortcut") == case.parameters


def test_the_marker_changes_the_hematoma_alone(cases: list[PhantomCase]) -> None:
    for case in cases[:4]:
        original = render_case(case.parameters)
        switched = case.render_switched("marker").astype(int)
        changed = switched != original.hu
        assert changed.sum() > 0
        grown = np.pad(original.hematoma.astype(bool), 6)
        near = np.any([np.roll(grown, (i, j), (0, 1)) for i in range(-4, 5) for j in range(-4, 5)], axis=0)
        assert not (changed & ~near[6:-6, 6:-6]).any()  # as far as the scanner's blur reaches
        darker = (switched - original.hu)[changed].mean()
        assert (darker < 0) == (not case.has("marker"))
        assert case.has("marker") == bool(case.parameters.label)
        assert _twice(case, "marker") == case.parameters


def test_a_cohort_made_otherwise_is_refused(cases: list[PhantomCase]) -> None:
    original = render_case(cases[0].parameters).hu
    cases[0].verify(original)
    with pytest.raises(CohortError, match=r"site-01-p0001-s01: its image is not the one"):
        cases[0].verify(original + 1)
    with pytest.raises(CohortError, match="Make the cohort again"):
        cases[0].verify(original[:50])


def test_truth_of_all_sites_is_found(tmp_path: Path) -> None:
    assert phantom_cases(tmp_path) == {}
    assert lesion_files(tmp_path) == {}
    cohort = make_head_ct_cohort(tmp_path / "c", SPEC, 0)
    names = {case.case_id for case in cohort.cases}
    assert {*phantom_cases(cohort.folder)} == names == {*lesion_files(cohort.folder)}
    assert all(path.is_file() for path in lesion_files(cohort.folder).values())
    for content in ('{"cases": [1]}', '{"cases": 3}', "[]", "no json"):
        (cohort.folder / "parameters.json").write_text(content)
        with pytest.raises(CohortError, match=r"parameters\.json: (can't be read|expected)"):
            phantom_cases(cohort.folder)


def test_an_object_gets_the_other_background_or_outline(tmp_path: Path) -> None:
    spec = ObjectBackgroundSpec(patients_per_site=1, external_patients_per_site=1, size=48)
    cohort = make_object_background_cohort(tmp_path / "c", spec, 0)
    known = phantom_cases(cohort.folder)
    assert {*known} == {case.case_id for case in cohort.cases} == {*lesion_files(cohort.folder)}
    for case in cohort.cases[:3]:
        image = read_image(case.image, spacing=(1.0, 1.0)).array
        known[case.case_id].verify(image)
        truth = read_label_map(lesion_files(cohort.folder)[case.case_id], spacing=(1.0, 1.0)).array > 0
        background = known[case.case_id].render_switched("shortcut")
        assert np.mean(background[~truth] != image[~truth]) > 0.9
        assert known[case.case_id].of.switches["shortcut"].what == "the striped background"
        outline = known[case.case_id].render_switched("marker")
        assert 0 < np.mean(outline != image) < 0.2
        with pytest.raises(CohortError, match="its image is not the one"):
            known[case.case_id].verify(image[::-1])
