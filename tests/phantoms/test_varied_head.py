"""Heads of wide variety: what is drawn, what the mask holds of it, and that parameters alone decide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from threefold.errors import UsageError
from threefold.images.reading import read_image, read_label_map
from threefold.phantoms.parameters_file import read_parameters
from threefold.phantoms.varied_head import (
    PRESETS,
    VARIED_HEAD,
    VariedCase,
    VariedHeadSpec,
    make_varied_head_cohort,
    render_varied,
    varied_cases,
)

CLEAN = VariedHeadSpec(
    cases=24, size=64, bleeding=1, mimics=0, noise=0, artefacts=0, windowed=0, contrast=(30, 40)
)


def test_the_files_are_what_the_parameters_render(tmp_path: Path) -> None:
    spec = PRESETS["demo"].model_copy(update={"cases": 8, "size": 64})
    cohort = make_varied_head_cohort(tmp_path / "cohort", spec, seed=3)
    cases = read_parameters(cohort.folder, VariedCase)
    assert [case.case_id for case in cases] == [case.case_id for case in cohort.cases]
    for parameters, case in zip(cases, cohort.cases, strict=True):
        rendering = render_varied(parameters)
        assert case.mask is not None
        np.testing.assert_array_equal(read_image(case.image).array, rendering.hu)
        np.testing.assert_array_equal(read_label_map(case.mask).array, rendering.blood)
        assert case.label == rendering.bleeds
    assert {case.label for case in cohort.cases} == {0, 1}
    assert (cohort.folder / "previews" / "varied.png").is_file()


def test_a_slice_does_not_change_with_their_number() -> None:
    few = [*varied_cases(CLEAN.model_copy(update={"cases": 2}), 1)]
    assert few == [*varied_cases(CLEAN, 1)][:2]
    assert few != [*varied_cases(CLEAN.model_copy(update={"cases": 2}), 2)]


def test_the_mask_is_the_blood_and_bright() -> None:
    brighter = []
    for case in varied_cases(CLEAN, 0):
        rendering = render_varied(case)
        inside = rendering.blood > 0
        if inside.sum() > 15:
            brighter.append(np.median(rendering.hu[inside]) - case.head.grey)
    assert len(brighter) > 12
    assert 15 < np.median(brighter) < 45  # 30 to 40, times the gain, and partial volume
    many = varied_cases(CLEAN.model_copy(update={"cases": 100}), 0)
    assert len({finding.kind for case in many for finding in case.findings}) == 6


def test_what_only_looks_like_blood_is_in_no_mask() -> None:
    spec = CLEAN.model_copy(update={"bleeding": 0, "mimics": 1, "cases": 8})
    cases = [*varied_cases(spec, 0)]
    assert {finding.kind for case in cases for finding in case.findings} >= {"scalp", "vessel"}
    assert not any(render_varied(case).blood.any() for case in cases)


def test_a_window_cuts_values_and_nothing_else() -> None:
    spec = CLEAN.model_copy(update={"windowed": 1.0, "cases": 3})
    for case in varied_cases(spec, 0):
        assert case.window is not None
        low, high = case.window
        hu = render_varied(case).hu
        assert hu.min() == round(low)
        assert hu.max() == round(high)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast": [20, 10]}, "contrast is"),
        ({"sharpening": [-1, 0]}, "sharpening is"),
        ({"tilt": 50}, "tilt"),
    ],
)
def test_impossible_ranges_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VARIED_HEAD.spec("study", changes, where="varied-head")
