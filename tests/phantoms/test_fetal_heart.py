"""The fetal-heart phantom: its truth, its physics, its files."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage
from typer.testing import CliRunner

from threefold.audits.audit import audit
from threefold.cli.phantom import phantom
from threefold.cohorts.cohort import Cohort
from threefold.errors import CohortError, UsageError
from threefold.evaluation.arch import find_arch
from threefold.images.geometry import Image
from threefold.images.reading import read_image, read_label_map
from threefold.phantoms.fetal_heart import (
    PRESETS,
    FetalHeartSpec,
    make_fetal_heart_cohort,
    render_case,
    settled,
    true_structures,
)
from threefold.phantoms.fetal_parameters import FetalCase, atlas_case, draw_cases
from threefold.phantoms.fetal_protocol import DIAGNOSES, STRUCTURES, SURROUNDINGS, Diagnosis
from threefold.phantoms.fetal_topology import violations
from threefold.phantoms.mri_scanner import as_stored

SMALL = PRESETS["demo"].model_copy(update={"patients": (3, 3, 3)})
LABEL = {name: number for number, name in enumerate(STRUCTURES, start=1)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return make_fetal_heart_cohort(tmp_path_factory.mktemp("fetal") / "cohort", SMALL, seed=5)


@pytest.fixture(scope="module")
def settled_cases() -> list[FetalCase]:
    spec = PRESETS["demo"].model_copy(update={"patients": (6, 6, 6)})
    return [settled(case, spec, 7) for case in draw_cases(spec, 7)]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_seed_gives_the_same_bytes(made: Cohort, tmp_path: Path) -> None:
    spec = SMALL.model_copy(update={"patients": (1, 1, 1)})
    first, again, other = (
        digests(make_fetal_heart_cohort(tmp_path / name, spec, seed).folder)
        for name, seed in (("a", 2), ("b", 2), ("c", 3))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first if name.startswith("images/") and name in other)


def test_the_cohort_is_sound_and_unbalanced_as_asked(made: Cohort) -> None:
    found = audit(made, targets=("label", "mask"))
    assert not found.refused, [f.message for f in found.findings]
    assert Counter(case.label for case in made.cases) == {0: 3, 1: 3, 2: 3}
    assert sum(case.mask is not None for case in made.cases) == round(9 * SMALL.mask_share)
    assert all(case.structures is None and case.reference is not None for case in made.cases)
    assert [atlas.label for atlas in made.spec.atlases] == list(DIAGNOSES)
    content = json.loads((made.folder / "parameters.json").read_text())
    assert len(content["cases"]) == 9
    assert all(case["redrawn"] < 40 for case in content["cases"])


def test_no_site_gives_the_diagnosis_away() -> None:
    cases = draw_cases(PRESETS["study"], 0)
    assert Counter(case.anatomy.diagnosis for case in cases) == {"CoA": 108, "RAA": 70, "DAA": 17}
    table = Counter((case.site, case.anatomy.diagnosis) for case in cases)
    for diagnosis, count in (("CoA", 108), ("RAA", 70), ("DAA", 17)):
        internal = [table[f"site-0{n}", diagnosis] for n in range(1, 5)]
        assert max(internal) - min(internal) <= 1
        assert sum(internal) == count - round(count / 4)


@pytest.mark.parametrize("preset", ["demo", "study"])
@pytest.mark.parametrize("diagnosis", DIAGNOSES)
def test_the_atlases_have_their_diagnosis_topology_and_no_other(preset: str, diagnosis: Diagnosis) -> None:
    structures = true_structures(atlas_case(PRESETS[preset], diagnosis, 0))
    assert violations(structures, diagnosis) == []
    for other in DIAGNOSES:
        if other != diagnosis and "DAA" in (other, diagnosis):
            assert any("tunnels" in sentence for sentence in violations(structures, other))


def test_what_breaks_the_topology_is_said() -> None:
    structures = true_structures(atlas_case(PRESETS["demo"], "DAA", 0))
    cut = structures.copy()
    left = (structures == LABEL["AO"]) & (np.arange(48)[:, None, None] < 20)
    cut[left & (np.arange(48)[None, :, None] < 24) & (np.arange(48)[None, :, None] > 20)] = 0
    assert any("0 tunnels; expected 1" in s for s in violations(cut, "DAA"))
    moved = structures.copy()
    moved[LABEL["AD"] == structures] = LABEL["PVs"]
    said = " ".join(violations(moved, "DAA"))
    assert "PVs has 2 pieces" in said
    assert "AD has 0 pieces" in said
    assert "AD-MPA do not touch" in said
    assert "MPA-PVs touch, and may not" in said


def test_every_case_has_its_topology_by_an_independent_count(settled_cases: list[FetalCase]) -> None:
    cube = np.ones((3, 3, 3))
    for case in settled_cases:
        structures = true_structures(case)
        pieces = {n: ndimage.label(structures == k, cube)[1] for n, k in LABEL.items()}
        assert set(pieces.values()) == {1}, (case.case_id, pieces)


def test_the_arch_passes_the_trachea_on_its_side(settled_cases: list[FetalCase]) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for case in settled_cases:
        rendering = render_case(case)
        structures, around = (
            as_stored(volume, case.scanner) for volume in (rendering.structures, rendering.surroundings)
        )
        trachea = around == 1 + SURROUNDINGS.index("trachea")
        arch = find_arch(structures, STRUCTURES, (case.spacing,) * 3, trachea=trachea).arch
        found[case.anatomy.diagnosis, arch] += 1
    assert found["DAA", "double"] == 6
    assert found["RAA", "single-right"] >= 5
    assert found["CoA", "single-left"] >= 5
    assert {arch for diagnosis, arch in found if diagnosis == "CoA"} <= {"single-left", "undetermined"}
    assert {arch for diagnosis, arch in found if diagnosis == "RAA"} <= {"single-right", "undetermined"}


def test_a_coarctation_is_narrow_before_the_duct() -> None:
    wide, narrow = (
        true_structures(
            replace(case, anatomy=replace(case.anatomy, narrowing=narrowing), size=96, spacing=0.55)
        )
        for case in [atlas_case(PRESETS["study"], "CoA", 0)]
        for narrowing in (1.0, 0.2)
    )
    volumes = [(structures == LABEL["AO"]).sum() for structures in (wide, narrow)]
    assert volumes[1] < 0.95 * volumes[0]
    assert violations(narrow, "CoA") == []


def test_blood_is_dark_and_the_airway_bright(made: Cohort) -> None:
    for case in made.cases[:3]:
        assert case.reference is not None
        image = read_image(case.image).array.astype(float)
        labels = read_label_map(case.reference).array
        around = read_label_map(made.folder / "truth" / case.image.name).array
        core = ndimage.binary_erosion(labels > 0)
        trachea = around == 1 + SURROUNDINGS.index("trachea")
        lungs = ndimage.binary_erosion(around == 1 + SURROUNDINGS.index("lungs"))
        assert image[core].mean() < 0.55 * image[lungs].mean()
        assert image[trachea].mean() > image[core].mean()
        thick = np.isin(labels, [LABEL["AO"], LABEL["DAO"], LABEL["MPA"]])
        assert image[thick].mean() < image[lungs].mean()


def test_the_manual_mask_is_near_the_truth_and_not_it(made: Cohort) -> None:
    scores = []
    for case in made.cases:
        if case.mask is None:
            continue
        assert case.reference is not None
        truth = read_label_map(case.reference).array > 0
        mask = read_label_map(case.mask).array > 0
        scores.append(2 * (truth & mask).sum() / (truth.sum() + mask.sum()))
    assert min(scores) > 0.6
    assert max(scores) < 0.97


def test_files_lie_in_any_orientation_and_agree_in_space(made: Cohort) -> None:
    directions = set()
    centres = []
    for case in made.cases:
        assert case.reference is not None
        image: Image = read_image(case.image)
        directions.add(tuple(np.sign(np.diag(image.affine)[:3]).tolist()))
        labels = read_label_map(case.reference).array
        assert not np.allclose(image.affine[:3, :3], np.diag(np.diag(image.affine)[:3]))
        voxel = np.argwhere(labels == LABEL["DAO"]).mean(axis=0)
        aorta = image.affine[:3, :3] @ voxel + image.affine[:3, 3]
        voxel = np.argwhere(labels == LABEL["MPA"]).mean(axis=0)
        trunk = image.affine[:3, :3] @ voxel + image.affine[:3, 3]
        centres.append(trunk - aorta)
    assert len(directions) > 1
    # The pulmonary trunk is in front of the descending aorta, and above its middle, whatever the file's axes.
    assert (np.array(centres)[:, 1] > 5).all()
    assert (np.array(centres)[:, 2] > 0).all()


def test_the_shift_moves_the_external_scanners_alone() -> None:
    near, far = (draw_cases(FetalHeartSpec(shift=shift), 3) for shift in (0.0, 1.0))
    for a, b in zip(near, far, strict=True):
        assert a.anatomy == b.anatomy
        external = a.site in ("site-05", "site-06")
        assert (a.scanner == b.scanner) != external
        if external:
            assert b.scanner.noise > 1.2 * a.scanner.noise


@pytest.mark.parametrize(
    "wrong", [{"patients": (0, 0, 0)}, {"external_sites": 0}, {"size": 3}, {"mask_share": 2}]
)
def test_a_specification_that_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FetalHeartSpec.model_validate(wrong)


def test_a_deformation_that_no_draw_survives_is_an_error_that_says_what_to_do() -> None:
    spec = SMALL.model_copy(update={"deformation": 12.0, "size": 32, "spacing": 1.6})
    with pytest.raises(CohortError, match="Use a smaller deformation"):
        [settled(case, spec, 0) for case in draw_cases(spec, 0)]


def test_the_command(tmp_path: Path) -> None:
    command = ["fetal-heart", str(tmp_path / "c"), "--preset", "demo", "--patients", "1", "1", "1", "size=32"]
    command += ["spacing=1.6"]
    result = CliRunner().invoke(phantom, command, catch_exceptions=False)
    assert result.exit_code == 0
    assert "3 volumes of 3 patients from 1 sites" in result.stdout
    assert "1 CoA, 1 RAA, 1 DAA" in result.stdout
    assert "threefold propagate" in result.stdout
    with pytest.raises(CohortError, match="is not empty"):
        CliRunner().invoke(phantom, command, catch_exceptions=False)
    with pytest.raises(UsageError, match="Did you mean 'noise'"):
        CliRunner().invoke(phantom, ["fetal-heart", str(tmp_path / "d"), "nosie=1"], catch_exceptions=False)
