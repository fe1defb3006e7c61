"""Nothing that a text names leaves its folder without being asked: names, paths, links, of every kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threefold.cohorts.cohort import CohortSpec, read_cohort, write_cohort
from threefold.cohorts.splits import read_split
from threefold.cohorts.table import case_id_problems, read_text
from threefold.errors import CohortError, ExperimentError, ThreefoldError
from threefold.evaluation.predictions import read_predictions
from threefold.experiments import load_experiment
from threefold.paths import Boundary, is_path_part
from threefold.studies.chain_spec import ChainSpec, load_chain
from threefold.studies.study_spec import StudySpec, load_study
from threefold.training.checkpoints import load_checkpoint
from threefold.validation import parse_spec

OUTSIDE = (
    "../x",
    "..",
    "a/../../x",
    "./../x",
    "/etc/passwd",
    "//etc/passwd",
    "a/b/../../../x",
    "../cohort2/x",
)
NO_NAMES = (
    *OUTSIDE,
    ".",
    "",
    " ",
    "a/b",
    "a\\b",
    "..\\x",
    ".hidden",
    "a\nb",
    "a\0b",
    "~/x",
    "a--b",
)
SEGMENTS = st.sampled_from(["..", ".", "a", "b", "", "link", "folder"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a link out of it, a link within it, and a folder that holds a link out of it."""
    where = tmp_path / "cohort"
    (where / "folder").mkdir(parents=True)
    (where / "series").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (where / "link").symlink_to(tmp_path / "secret")
    (where / "inner").symlink_to(where / "folder")
    (where / "series" / "slice").symlink_to(tmp_path / "secret" / "file")
    (where / "loop").symlink_to(where / "loop")
    return where


@pytest.mark.parametrize("path", [*OUTSIDE, "link", "link/file", "folder/../link/file", "series"])
def test_what_leaves_is_found(path: str, folder: Path) -> None:
    assert Boundary(folder).leaves(path) is not None


@pytest.mark.parametrize("path", ["a", "folder/x", "folder/../a", "inner/x", "loop", "a\0b", "x" * 5000])
def test_what_stays_or_is_not_there_is_let_through(path: str, folder: Path) -> None:
    assert Boundary(folder).leaves(path) is None


@given(parts=st.lists(SEGMENTS, max_size=6), absolute=st.booleans())
def test_the_boundary_agrees_with_the_system(
    parts: list[str], absolute: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    where = tmp_path_factory.getbasetemp() / "boundary" / "cohort"
    (where / "folder").mkdir(parents=True, exist_ok=True)
    if not (where / "link").is_symlink():
        (where / "link").symlink_to(where.parent)
    path = ("/" if absolute else "") + "/".join(parts)
    # A path is taken as `os.path.normpath` has it, as the table's paths are.
    real = Path(os.path.realpath(os.path.normpath(where / path)))
    inside = real.is_relative_to(where.resolve()) and real != where.resolve()  # which holds the link
    assert (Boundary(where).leaves(path) is None) is inside


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_of_stages_studies_cohorts_and_variants_are_parts_of_paths(name: str) -> None:
    assert not is_path_part(name)
    stage = {"name": name, "recipe": "aortic-arch/seg-lp"}
    with pytest.raises(ExperimentError):
        parse_spec(ChainSpec, {"name": "c", "stages": [stage]}, where="c", error=ExperimentError)
    study: dict[str, Any] = {
        "name": "s",
        "cohorts": {"c": {"folder": "c"}},
        "variants": {"v": {"recipe": "hematoma/mtl-cls-seg"}},
    }
    parse_spec(StudySpec, study, where="s", error=ExperimentError)
    for change in (
        {"name": name},
        {"cohorts": {name: {"folder": "c"}}},
        {"variants": {name: {"recipe": "hematoma/mtl-cls-seg"}}},
    ):
        with pytest.raises(ExperimentError):
            parse_spec(StudySpec, study | change, where="s", error=ExperimentError)


@pytest.mark.parametrize("name", [*OUTSIDE, "a\\b", ".hidden", "..\\x", "x" * 300])
def test_a_case_id_names_files_in_one_folder(name: str) -> None:
    assert case_id_problems(name)


@pytest.mark.parametrize("name", [*OUTSIDE, "hematoma/../../x", "x.yml/../y"])
def test_shipped_recipes_chains_and_studies_go_by_their_names_alone(name: str) -> None:
    for load in (load_experiment, load_chain, load_study):
        with pytest.raises(ExperimentError, match="there is no"):
            load(name)


SPEC = CohortSpec(name="c", modality="mri", dimensions=3, structures=("a",))


@pytest.mark.parametrize("path", [*OUTSIDE, "link/file", "series"])
def test_cases_and_atlases_stay_in_their_cohort_unless_asked_for(path: str, folder: Path) -> None:
    row = {"case_id": "c", "patient_id": "p", "site": "s", "image": "i.nii"}
    for column in ("image", "structures", "reference"):
        with pytest.raises(CohortError, match=rf"column {column}: .* leaves the cohort's folder"):
            write_cohort(folder, SPEC, [row | {column: path}])
    for key in ("image", "structures"):
        atlas = {"name": "a", "image": "i.nii", "structures": "s.nii", key: path}
        spec = CohortSpec.model_validate({**SPEC.model_dump(), "atlases": [atlas]})
        with pytest.raises(CohortError, match=rf"atlas 'a', {key}: .* leaves the cohort's folder"):
            write_cohort(folder, spec, [row])
        write_cohort(folder, spec, [row], allow_outside=True)
        with pytest.raises(CohortError, match="--allow-outside"):
            read_cohort(folder)
        read_cohort(folder, allow_outside=True)


@pytest.mark.parametrize("base", ["../base.yaml", "below/../../base.yaml", "linked.yaml"])
def test_a_recipe_extends_files_of_its_folder_alone(base: str, tmp_path: Path) -> None:
    home = tmp_path / "recipes"
    (home / "below").mkdir(parents=True)
    (tmp_path / "base.yaml").write_text("extends: hematoma/mtl-cls-seg\n")
    (home / "linked.yaml").symlink_to(tmp_path / "base.yaml")
    (home / "mine.yaml").write_text(f"extends: {base}\n")
    with pytest.raises(ExperimentError, match=r"expected a recipe or a file in .*recipes.* leaves"):
        load_experiment(str(home / "mine.yaml"))
    (home / "common.yaml").write_text("extends: hematoma/mtl-cls-seg\nname: common\n")
    (home / "below" / "step.yaml").write_text("extends: ../common.yaml\n")
    (home / "mine.yaml").write_text("extends: below/step.yaml\n")
    assert load_experiment(str(home / "mine.yaml")).name == "common"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
@pytest.mark.parametrize("name", ["x.csv", "x.csv.sha256"])
@pytest.mark.parametrize("read", [read_predictions, read_split, read_text, load_checkpoint])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(
    read: Callable[[Path], object], name: str, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ThreefoldError, match=r"x\.csv"):
        read(tmp_path / "x.csv")
