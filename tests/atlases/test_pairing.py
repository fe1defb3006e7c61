"""What a user gets wrong is said before anything is registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from threefold.atlases.pairing import pair_cases
from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec, load_propagation
from threefold.cohorts.cohort import AtlasSpec, Cohort
from threefold.errors import CohortError, ExperimentError
from threefold.images.reading import read_label_map
from threefold.images.writing import write_nifti

PLAIN = PropagationSpec(size=(16, 16, 16), affine_steps=2, epochs=0, refinement_steps=1)


def atlas(name: str, label: str | None, structures: str = "atlases/reference/atlas.nii.gz") -> AtlasSpec:
    return AtlasSpec(name=name, image="atlases/image/atlas.nii.gz", structures=structures, label=label)


def refused(cohort: Cohort, message: str, tmp_path: Path, **changes: Any) -> None:
    with pytest.raises(CohortError, match=message):
        propagate(cohort, tmp_path / "out", PLAIN.model_copy(update=changes))
    assert not list(tmp_path.glob("*out*"))
    assert not list(tmp_path.glob(".*"))


def test_each_case_goes_with_the_atlases_of_its_class(make_cohort: Any) -> None:
    cohort = make_cohort(
        rows={"two": {"label": "B"}, "three": {"label": None}},
        atlases=(atlas("a", "A"), atlas("b", "B"), atlas("any", None)),
    )
    pairing = pair_cases(cohort, PropagationSpec())
    names = {case: [one.name for one in atlases] for case, atlases in pairing.items()}
    assert names == {"one": ["a", "any"], "two": ["b", "any"], "three": ["a", "b", "any"]}
    assert [one.name for one in pair_cases(cohort, PropagationSpec(), ["any"])["two"]] == ["any"]
    with pytest.raises(CohortError, match=r"there is no atlas 'anny'. Did you mean 'any'\?"):
        pair_cases(cohort, PropagationSpec(), ["anny"])


def test_a_class_without_an_atlas(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(rows={"two": {"label": "B"}}, atlases=(atlas("a", "A"),))
    refused(cohort, r"no atlas for B \(1 cases, the first two\). Declare one with that label", tmp_path)


def test_no_atlases(make_cohort: Any, tmp_path: Path) -> None:
    refused(make_cohort(atlases=()), "cohort.yaml declares no atlases. List them under `atlases`", tmp_path)


def test_no_names_for_the_labels(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    bare = cohort.spec.model_copy(update={"structures": ()})
    refused(Cohort(cohort.folder, bare, cohort.cases), "names no `structures`", tmp_path)


def test_nothing_to_do(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(
        rows={name: {"structures": f"reference/{name}.nii.gz"} for name in ("one", "two", "three")}
    )
    refused(cohort, "every case has structures already", tmp_path)


def test_slices(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(dimensions=2)
    refused(cohort, r"its cases are slices \(dimensions: 2\); expected volumes", tmp_path)


def test_an_atlas_with_other_labels(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(structures=("core", "rod"))
    refused(
        cohort, r"atlas 'mean': .*expected the values 0 to 2 \(structures of cohort.yaml\), found 3", tmp_path
    )


def test_an_atlas_without_labels(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    path = cohort.folder / cohort.spec.atlases[0].structures
    old = read_label_map(path)
    write_nifti(path, np.zeros_like(old.array), old.affine)
    refused(cohort, "atlas 'mean': .*every voxel is 0; expected the labels 1 to 3", tmp_path)


def test_an_atlas_whose_label_map_lies_elsewhere(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    path = cohort.folder / cohort.spec.atlases[0].structures
    old = read_label_map(path)
    moved = old.affine.copy()
    moved[0, 3] += 5
    write_nifti(path, np.asarray(old.array), moved)
    refused(cohort, r"atlas 'mean': .*not on the grid of its image .*origin shifted by 5", tmp_path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("atlases/image/atlas.nii.gz", "atlas 'mean': .*no such file"),
        ("atlases/reference/atlas.nii.gz", "atlas 'mean': .*no such file"),
    ],
)
def test_missing_files(missing: str, message: str, make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    (cohort.folder / missing).unlink()
    refused(cohort, message, tmp_path)


def test_no_overlap_without_affine_alignment(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    old = read_label_map(cohort.cases[1].mask)
    far = old.affine.copy()
    far[2, 3] += 200
    for path in (cohort.cases[1].image, cohort.cases[1].mask, cohort.cases[1].reference):
        write_nifti(path, np.asarray(old.array, np.float32), far)
    only_two = Cohort(cohort.folder, cohort.spec, cohort.cases[1:2])
    message = (
        r"no case can be used.\n  failed: two: its image and atlas 'mean' do not overlap: \d+ mm apart along "
    )
    refused(only_two, message, tmp_path, affine=False)
    propagate(only_two, tmp_path / "aligned", PLAIN)  # with an alignment that is no error


def test_mistakes_in_settings() -> None:
    with pytest.raises(ExperimentError, match=r"epocs: unknown key. Did you mean 'epochs'\?"):
        load_propagation({}, ["epocs=3"])
    with pytest.raises(ExperimentError, match="window is 4; expected an odd number"):
        load_propagation({"window": 4})
    with pytest.raises(ExperimentError, match="channels has 3 numbers; expected two per resolution"):
        load_propagation({}, ["channels=[4, 8, 8]"])
    spec = load_propagation({"epochs": 2}, ["failure.max_folding=0.5", "epochs=3"])
    assert (spec.epochs, spec.failure.max_folding) == (3, 0.5)


def test_atlases_are_matched_by_a_column(make_cohort: Any) -> None:
    atlases = tuple(
        atlas(name, None).model_copy(update={"values": {"age": age}})
        for name, age in (("young", 22), ("middle", 26), ("old", 32))
    )
    ages = {"one": {"age": "23.5"}, "two": {"age": "31"}, "three": {"age": ""}}
    cohort = make_cohort(rows=ages, atlases=atlases)
    spec = PropagationSpec(match_by="age", most_atlases=2)
    names = {case: [one.name for one in found] for case, found in pair_cases(cohort, spec).items()}
    assert names == {
        "one": ["young", "middle"],
        "two": ["old", "middle"],
        "three": ["young", "middle", "old"],
    }


def test_a_match_by_what_is_not_known_is_refused(make_cohort: Any, tmp_path: Path) -> None:
    named = atlas("old", None).model_copy(update={"values": {"age": 32, "weight": 1}})
    known = make_cohort(rows={"one": {"age": "30"}, "two": {"age": "31"}}, atlases=(named,))
    refused(known, "no case has a number in the column 'weight'", tmp_path, match_by="weight")
    bare = make_cohort("bare", rows={"one": {"age": "30"}}, atlases=(named, atlas("any", None)))
    refused(bare, "atlas 'any' has no number 'age', to match by. Give it in", tmp_path, match_by="age")
    text = make_cohort("text", rows={"two": {"age": "late"}}, atlases=(named,))
    refused(text, "case two, column 'age': found 'late'; expected a number", tmp_path, match_by="age")
