"""Objects before backgrounds: what goes with what, how strongly, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import binary_erosion
from sklearn.metrics import roc_auc_score

from threefold.cohorts.splits import read_split
from threefold.errors import CohortError
from threefold.experiments import load_experiment
from threefold.images.reading import read_image, read_label_map
from threefold.phantoms.object_background import (
    INTERNAL_SITES,
    KINDS,
    ObjectBackgroundSpec,
    ObjectCase,
    make_object_background_cohort,
    object_cases,
    render_picture,
)
from threefold.phantoms.parameters_file import read_parameters
from threefold.training.run import train

SMALL = ObjectBackgroundSpec(patients_per_site=8, external_patients_per_site=4, size=48)


def of_sites(cases: tuple[ObjectCase, ...], internal: bool) -> list[ObjectCase]:
    return [case for case in cases if (int(case.site[-2:]) <= INTERNAL_SITES) == internal]


def agreement(cases: list[ObjectCase]) -> float:
    return float(np.mean([bool(case.kind) == case.shortcut for case in cases]))


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.9, 1.0])
def test_the_background_goes_with_the_object_as_strongly_as_asked(strength: float) -> None:
    many = ObjectBackgroundSpec(patients_per_site=200, external_patients_per_site=200, shortcut=strength)
    cases = object_cases(many, 1)
    assert agreement(of_sites(cases, True)) == pytest.approx((1 + strength) / 2, abs=0.01)
    assert agreement(of_sites(cases, False)) == pytest.approx((1 - strength) / 2, abs=0.01)
    fair = object_cases(many.model_copy(update={"external_shortcut": "random"}), 1)
    assert agreement(of_sites(fair, False)) == pytest.approx(0.5, abs=0.01)
    assert np.mean([case.kind for case in cases]) == 0.5


def test_strengths_differ_in_backgrounds_alone() -> None:
    weak, strong = (
        object_cases(SMALL.model_copy(update={"shortcut": strength}), 0) for strength in (0.25, 0.75)
    )
    assert all(replace(a, shortcut=b.shortcut) == b for a, b in zip(weak, strong, strict=True))
    changed = [(a, b) for a, b in zip(weak, strong, strict=True) if a.shortcut != b.shortcut]
    assert changed
    kept = [bool(b.kind) == b.shortcut for _, b in changed if int(b.site[-2:]) <= INTERNAL_SITES]
    assert all(kept)  # a stronger shortcut keeps every agreement


def test_another_background_leaves_the_object() -> None:
    case = replace(object_cases(SMALL, 3)[0], noise=0.0)
    here, there = render_picture(case), render_picture(replace(case, shortcut=not case.shortcut))
    assert np.array_equal(here.mask, there.mask)
    inner = binary_erosion(here.mask, iterations=4)  # away from the blurred edge
    assert inner.sum() > 20
    assert np.abs(here.grey[inner].astype(int) - there.grey[inner]).max() <= 1
    assert np.abs(here.grey[~inner].astype(int) - there.grey[~inner]).mean() > 5


def test_brightness_and_size_tell_neither_object_nor_background() -> None:
    cases = object_cases(SMALL.model_copy(update={"patients_per_site": 60, "shortcut": 0.0}), 0)
    inside = of_sites(cases, True)
    pictures = [render_picture(case).grey for case in inside]
    kinds, striped = [case.kind for case in inside], [case.shortcut for case in inside]
    for numbers in ([p.mean() for p in pictures], [p.std() for p in pictures], [c.radius for c in inside]):
        for truth in (kinds, striped):
            assert abs(roc_auc_score(truth, numbers) - 0.5) < 0.12  # 240 pictures: 3.2 standard errors


def test_a_mask_is_the_outline() -> None:
    """Counted against the area of the curve r(a) = R (1 + d cos(k a)): pi R^2 (1 + d^2 / 2)."""
    for case in object_cases(SMALL.model_copy(update={"size": 112}), 0)[:6]:
        area = np.pi * (case.radius * case.size) ** 2 * (1 + case.depth**2 / 2)
        assert render_picture(case).mask.sum() == pytest.approx(area, rel=0.03)


def test_a_cohort_is_written_and_read_back(tmp_path: Path) -> None:
    made = make_object_background_cohort(tmp_path / "a", SMALL, 5)
    again = make_object_background_cohort(tmp_path / "b", SMALL, 5)
    first = made.cases[0]
    assert first.image.read_bytes() == again.cases[0].image.read_bytes()
    parameters = {case.case_id: case for case in read_parameters(tmp_path / "a", ObjectCase)}
    rendering = render_picture(parameters[first.case_id])
    image = read_image(first.image, spacing=(1.0, 1.0)).array
    assert np.array_equal(image, rendering.grey)
    assert first.mask is not None
    mask = read_label_map(first.mask, spacing=(1.0, 1.0)).array
    assert np.array_equal(mask > 0, rendering.mask > 0)
    assert {case.site for case in made.cases if case.mask is None} == {"site-05", "site-06", "site-07"}
    assert int(first.extra["shortcut"]) == parameters[first.case_id].shortcut
    with pytest.raises(CohortError, match="not empty"):
        make_object_background_cohort(tmp_path / "a", SMALL, 5)


def test_the_recipes_of_head_ct_train_on_it(tmp_path: Path) -> None:
    cohort = make_object_background_cohort(tmp_path / "cohort", SMALL, 0)
    experiment = load_experiment(
        "hematoma/mtl-cls-seg-rec",
        [
            "training.epochs=1",
            "data.preprocessing.size=[32,32]",
            'network.encoder={"size":"mini","embed_dim":8,"depths":[1,1],"heads":[1,2],"window":4}',
        ],
    )
    run = train(experiment, cohort, tmp_path / "run")
    table, split = pd.read_csv(run.predictions), read_split(run.split)
    held_out = {case.case_id for part in ("validation", "test") for case in split.cases(cohort, part)}
    assert {*table["case_id"]} == held_out
    external = table["site"].isin(["site-05", "site-06", "site-07"])
    assert external.sum() == 12
    assert (table.loc[external, "part"] == "test").all()
    probabilities = table[[f"probability_{kind}" for kind in KINDS]]
    assert np.allclose(probabilities.sum(axis=1), 1)
    assert probabilities.nunique().min() > len(table) / 2  # it tells the pictures apart
    with_mask = table["site"].isin(["site-01", "site-02", "site-03", "site-04"])
    assert table.loc[with_mask, "mask_truth_voxels"].gt(0).all()
