from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from threefold.audits.audit import audit
from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError
from threefold.images.reading import read_image
from threefold.phantoms.head_ct import (
    PRESETS,
    CaseParameters,
    HeadCtSpec,
    case_parameters,
    make_head_ct_cohort,
    render_case,
    render_object,
)
from threefold.phantoms.head_protocol import SCANNERS
from threefold.phantoms.parameters_file import read_parameters

SMALL = HeadCtSpec(patients_per_site=2, external_patients_per_site=2, slices=(1, 2), shortcut=0.9)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def _sample(spec: HeadCtSpec = PRESETS["study"], *, every: int = 90, seed: int = 3) -> list[CaseParameters]:
    return list(case_parameters(spec, seed)[::every])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_head_ct_cohort(tmp_path_factory.mktemp("phantom") / "cohort", SMALL, seed=5)


def test_the_same_seed_gives_the_same_bytes_in_another_process(made: Cohort, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from threefold.phantoms.head_ct import *\n"
        "spec = HeadCtSpec.model_validate_json(sys.argv[2])\n"
        "make_head_ct_cohort(Path(sys.argv[1]), spec, 5)"
    )
    out = tmp_path / "again"
    command = [sys.executable, "-c", script, str(out), SMALL.model_dump_json()]
    subprocess.run(command, check=True, env={"PYTHONHASHSEED": "1"})
    assert _digests(out) == _digests(made.folder)


def test_another_seed_gives_other_images() -> None:
    first, second = (render_case(case_parameters(SMALL, seed)[0]).hu for seed in (5, 6))
    assert (first != second).mean() > 0.3


def test_the_cohort_passes_the_audit_and_has_masks_at_sites_1_to_4_only(made: Cohort) -> None:
    assert not audit(made).refused
    masked = {case.site for case in made.cases if case.mask is not None}
    assert masked == {"site-01", "site-02", "site-03", "site-04"}
    assert all((case.mask is not None) == (case.site in masked) for case in made.cases)
    assert made.spec.site_group("site-04") == "internal"
    assert made.spec.site_group("site-05") == "external"
    assert len(made.sites) == 11


def test_patients_belong_to_one_site_and_have_one_label_and_one_acquisition() -> None:
    seen: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    cases = case_parameters(PRESETS["study"], 0)
    for case in cases:
        seen[case.patient_id].add((case.site, case.label, case.acquisition, case.head))
    assert len(seen) == 4 * 60 + 7 * 30
    assert all(len(values) == 1 for values in seen.values())
    assert len({case.case_id for case in cases}) == len(cases)
    assert len({case.noise_seed for case in cases}) > 0.999 * len(cases)


def test_what_is_written_is_what_the_parameters_render(made: Cohort) -> None:
    cases = read_parameters(made.folder, CaseParameters)
    assert cases == case_parameters(SMALL, 5)
    with (made.folder / "truth.csv").open() as stream:
        truth = {row["case_id"]: row for row in csv.DictReader(stream)}
    for case, parameters in list(zip(made.cases, cases, strict=True))[::5]:
        rendering = render_case(parameters)
        image = read_image(case.image)
        np.testing.assert_array_equal(np.squeeze(image.array), rendering.hu)
        np.testing.assert_allclose(image.affine, rendering.affine, atol=1e-5)
        assert image.spacing[0] == pytest.approx(parameters.acquisition.field_of_view / 224, rel=1e-6)
        row = truth[case.case_id]
        for name, expected in (("hematoma", rendering.hematoma), ("marker", rendering.marker)):
            stored = read_image(made.folder / row[name])
            np.testing.assert_array_equal(np.squeeze(stored.array), expected)
        if case.mask is not None:
            np.testing.assert_array_equal(np.squeeze(read_image(case.mask).array), rendering.hematoma)
        assert case.extra["shortcut"] == str(int(parameters.acquisition.shortcut))
        assert case.label == int(parameters.label)
    assert "truth" not in (made.folder / "cases.csv").read_text()


def test_every_case_has_a_hematoma_and_exactly_the_positives_have_the_marker_inside_it() -> None:
    for spec in PRESETS.values():
        for case in _sample(spec, every=67):
            rendering = render_case(case)
            area = case.acquisition.spacing**2
            assert rendering.hematoma.sum() * area > 40, case.case_id
            assert bool(rendering.marker.any()) == case.label, case.case_id
            assert not (rendering.marker & ~rendering.hematoma.astype(bool)).any()
            if case.label:
                assert rendering.marker.sum() * area > 10, case.case_id


def test_densities_before_the_scanner_are_in_the_stated_ranges() -> None:
    blood, marker = [], []
    for case in _sample(every=60):
        acquisition = replace(case.acquisition, thickness=1.0)  # one plane, no partial volume
        thing = render_object(replace(case, acquisition=acquisition))
        blood.append(thing.hu[(thing.hematoma == 1) & (thing.marker == 0)])
        marker.append(thing.hu[(thing.hematoma == 1) & (thing.marker == 1)])
    blood_hu, marker_hu = np.concatenate(blood), np.concatenate(marker)
    tolerance = 0.01  # float32 blending
    assert blood_hu.min() >= 55 - tolerance
    assert blood_hu.max() <= 80 + tolerance
    assert marker_hu.min() >= 30 - tolerance
    assert marker_hu.max() <= 45 + tolerance
    assert len(marker_hu) > 200
    assert np.ptp(blood_hu) > 20
    assert np.ptp(marker_hu) > 10


def test_tissues_have_their_densities_after_the_scanner() -> None:
    case = next(
        c for c in case_parameters(PRESETS["study"], 0) if c.site == "site-01" and abs(c.level - 45) < 4
    )
    hu = render_case(case).hu
    bone = ndimage.binary_closing(hu > 300, iterations=2)
    brain = ndimage.binary_erosion(ndimage.binary_fill_holes(bone) & ~bone, iterations=4)
    assert 700 < np.median(hu[hu > 500]) < 1500
    assert 26 < np.median(hu[brain]) < 40
    assert np.median(hu[[0, -1], :]) == pytest.approx(-1000, abs=25)
    assert 9000 < brain.sum() * case.acquisition.spacing**2 < 20000  # mm²: a brain's section


@pytest.mark.parametrize(("strength", "external"), [(0.0, "absent"), (0.6, "reversed"), (0.9, "random")])
def test_the_shortcut_goes_with_the_label_as_strongly_as_asked(strength: float, external: str) -> None:
    spec = HeadCtSpec(
        patients_per_site=100,
        external_patients_per_site=100,
        slices=(1, 1),
        shortcut=strength,
        external_shortcut=external,  # type: ignore[arg-type]
    )
    agreement: dict[bool, list[bool]] = {True: [], False: []}
    present: dict[bool, list[bool]] = {True: [], False: []}
    for case in [case for seed in range(4) for case in case_parameters(spec, seed)]:
        internal = case.site <= "site-04"
        agreement[internal].append(case.acquisition.shortcut == case.label)
        present[internal].append(case.acquisition.shortcut)
    assert np.mean(agreement[True]) == pytest.approx((1 + strength) / 2, abs=0.01)
    expected = {"absent": 0.5, "reversed": (1 - strength) / 2, "random": 0.5}[external]
    assert np.mean(agreement[False]) == pytest.approx(expected, abs=0.01)
    assert any(present[False]) == (external != "absent")


def test_strength_changes_nothing_but_the_clip_and_keeps_weaker_agreements() -> None:
    def agreeing(strength: float) -> tuple[list[CaseParameters], set[str]]:
        cases = list(case_parameters(HeadCtSpec(shortcut=strength, slices=(1, 1)), 4))
        internal = (case for case in cases if case.site <= "site-04")
        return cases, {case.case_id for case in internal if case.acquisition.shortcut == case.label}

    weak, weak_ids = agreeing(0.3)
    strong, strong_ids = agreeing(0.9)
    assert weak_ids < strong_ids
    for first, second in zip(weak, strong, strict=True):
        clip = first.acquisition.shortcut
        assert first == replace(second, acquisition=replace(second.acquisition, shortcut=clip))


def test_more_patients_leave_the_first_ones_heads_and_hematomas_as_they_were() -> None:
    few = case_parameters(HeadCtSpec(patients_per_site=3), 2)
    many = {case.case_id: case for case in case_parameters(HeadCtSpec(patients_per_site=9), 2)}
    for case in few:
        other = many[case.case_id]
        assert other.head == case.head
        assert replace(other.hematoma, marker=case.label) == case.hematoma


def test_switching_the_shortcut_changes_the_corner_and_nothing_else() -> None:
    for case in _sample(every=200):
        with_, without = (
            render_case(replace(case, acquisition=replace(case.acquisition, shortcut=there))).hu.astype(int)
            for there in (True, False)
        )
        i, j = np.nonzero(with_ != without)
        assert 20 < len(i) < 400
        assert (with_ - without).max() > 400  # bright in any window
        assert i.max() < 45  # the patient's right
        assert j.max() < 45  # and front
        assert with_[i, j].max() > 80


def test_switching_the_marker_changes_the_hypodensities_and_nothing_else() -> None:
    for case in _sample(every=170):
        positive = replace(case, hematoma=replace(case.hematoma, marker=True))
        negative = replace(case, hematoma=replace(case.hematoma, marker=False))
        with_, without = render_case(positive), render_case(negative)
        assert (with_.hematoma == without.hematoma).all()
        assert without.marker.sum() == 0
        changed = with_.hu != without.hu
        blur = 2 + int(np.ceil(3 * 2.6 * case.acquisition.blur / case.acquisition.spacing))
        # Partial volume: hypodensities of a part of the thickness lie in the hematoma, not all in the mask.
        near = ndimage.binary_dilation(with_.hematoma, iterations=blur)
        assert changed.any()
        assert not (changed & ~near).any()
        drop = without.hu.astype(int) - with_.hu
        assert drop[with_.marker == 1].mean() > 8


def test_nothing_but_the_marker_tells_the_label() -> None:
    cases = [case for case in case_parameters(PRESETS["study"], 0) if case.slice_number == 1]
    labels = np.array([case.label for case in cases])
    features = {
        "volume": [case.hematoma.volume for case in cases],
        "density": [case.hematoma.density for case in cases],
        "edge": [case.hematoma.edge for case in cases],
        "gradient": [case.hematoma.gradient for case in cases],
        "depth": [abs(case.hematoma.centre[0]) for case in cases],
        "level": [case.hematoma.centre[2] for case in cases],
        "sulcus": [case.head.sulcus for case in cases],
        "noise": [case.acquisition.noise for case in cases],
        "shortcut": [case.acquisition.shortcut for case in cases],
    }
    for name, values in features.items():
        correlation = np.corrcoef(np.asarray(values, float), labels)[0, 1]
        assert abs(correlation) < 3.5 / np.sqrt(len(cases)), name


def test_the_demo_is_told_by_the_marker_even_with_a_crude_reading() -> None:
    """A threshold on the darkest part of the hematoma's core separates the demo's classes."""
    scores, labels = [], []
    for case in _sample(PRESETS["demo"], every=9):
        rendering = render_case(case)
        core = ndimage.binary_erosion(rendering.hematoma, iterations=3)
        scores.append(-np.percentile(ndimage.gaussian_filter(rendering.hu.astype(float), 0.8)[core], 10))
        labels.append(case.label)
    score, label = np.array(scores), np.array(labels)
    auc = (score[label][:, None] > score[~label][None, :]).mean()
    assert auc > 0.9


def test_external_scanners_lie_outside_the_internal_range_in_several_respects() -> None:
    internal, external = SCANNERS[:4], SCANNERS[4:]
    numeric = [name for name in vars(internal[0]) if name != "holder"]
    for scanner in external:
        outside = [
            name
            for name in numeric
            if not min(getattr(s, name) for s in internal)
            <= getattr(scanner, name)
            <= max(getattr(s, name) for s in internal)
        ]
        assert len(outside) >= 3


def test_parameters_say_what_they_were_drawn_from(made: Cohort) -> None:
    content = json.loads((made.folder / "parameters.json").read_text())
    assert HeadCtSpec.model_validate(content["spec"]) == SMALL
    assert content["seed"] == 5
    assert len(list((made.folder / "previews").glob("*.png"))) == 11


def test_a_folder_with_content_is_refused_and_a_failure_leaves_nothing(
    made: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _digests(made.folder)
    with pytest.raises(CohortError, match="not empty"):
        make_head_ct_cohort(made.folder, SMALL, seed=6)
    assert _digests(made.folder) == before

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_head_ct_cohort(tmp_path / "out", SMALL, seed=6, progress=fail)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(CohortError, match="can't be made"):
        make_head_ct_cohort(tmp_path / "file" / "out", SMALL, seed=6)
    with pytest.raises(CohortError, match=r"parameters\.json: not found"):
        read_parameters(tmp_path, CaseParameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shortcut": 1.5}, "less than or equal to 1"),
        ({"marker_density": (30.0, 60.0)}, "expected it within"),
        ({"hematoma_volume": (60.0, 6.0)}, "low <= high"),
        ({"mask_sites": (1, 1)}, "each site once"),
        ({"pateints": 3}, "Extra inputs"),
    ],
)
def test_an_impossible_specification_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadCtSpec.model_validate(change)
