"""A study packed into one file and unpacked elsewhere: the same comparison, and it goes on."""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from threefold.errors import RunError
from threefold.runs.explain import explain_run
from threefold.studies import study_pools
from threefold.studies.archive import pack_study
from threefold.studies.comparison import compare_study, write_comparison
from threefold.studies.study import run_study
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_page import study_page
from threefold.studies.study_pools import LocalPool
from threefold.studies.study_spec import StudySpec, load_study
from threefold.studies.study_status import standing_of

from .tiny import CLS, SEG, Heard, run_here, write_study

VARIANTS = {"cls": {"recipe": CLS}, "seg": {"recipe": SEG}, "tuned": {"recipe": CLS, "init_from": "cls"}}
CLAIMS = [{"claim": "masks help", "variant": "seg", "baseline": "cls"}]
FIRST, TUNED = "heads/cls/split-0-seed-0", "heads/tuned/split-0-seed-0"


@pytest.fixture(autouse=True, scope="module")
def _in_this_process(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_pools, "run_in_process", run_here)
        patch.setenv("THREEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def go_on(study: StudySpec, folder: StudyFolder, *only: str) -> str:
    pool, heard = LocalPool(folder.path, 1, 1), Heard()
    try:
        run_study(study, folder, pool, heard, only)
    finally:
        pool.close()
    return heard.text


@pytest.fixture(scope="module")
def study(cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudySpec:
    path = tmp_path_factory.mktemp("spec") / "tiny.yaml"
    return load_study(str(write_study(path, cohort_folder, variants=VARIANTS, claims=CLAIMS)))


@pytest.fixture(scope="module")
def folder(study: StudySpec, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study of which `tuned` has not run."""
    folder = StudyFolder(tmp_path_factory.mktemp("here") / "my study")
    go_on(study, folder, "heads/cls/*", "heads/seg/*")
    explain_run(folder.run(FIRST))
    return folder


@pytest.fixture
def unpacked(folder: StudyFolder, tmp_path: Path) -> StudyFolder:
    pack_study(folder, tmp_path / "study.tar.xz")
    with tarfile.open(tmp_path / "study.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    return StudyFolder(tmp_path / "there/my study")


def tables(folder: StudyFolder) -> dict[str, bytes]:
    write_comparison(compare_study(folder), folder)
    return {path.name: path.read_bytes() for path in (*folder.tables.iterdir(), *folder.figures.iterdir())}


def test_what_is_unpacked_compares_to_the_same_bytes(folder: StudyFolder, unpacked: StudyFolder) -> None:
    found = tables(unpacked)
    assert found == tables(folder)
    assert {"claims.csv", "variants.csv", "reliance.csv", "pairs.csv", "claims.png"} <= {*found}
    states = {each.plan.id: (each.state, each.epoch) for each in standing_of(unpacked)}
    assert states == {
        FIRST: ("finished", 2),
        "heads/seg/split-0-seed-0": ("finished", 2),
        TUNED: ("waiting", None),
    }
    assert study_page(unpacked, unpacked.path / "report.html", "").sections


def test_no_image_mask_weights_or_path_of_this_machine_is_in_it(
    folder: StudyFolder, unpacked: StudyFolder, cohort_folder: Path
) -> None:
    files = [path for path in unpacked.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".yaml", ".json", ".csv"}
    text = "".join(path.read_text() for path in files)
    assert str(folder.path.parent) not in text
    assert str(cohort_folder.parent) not in text
    assert str(Path(sys.executable).parent) not in text  # the command that a run was started with
    # What remains of them: below the study's parent, or the last part.
    assert yaml.safe_load(unpacked.study.read_text())["cohorts"]["heads"]["folder"] == cohort_folder.name


def test_the_same_study_is_packed_to_the_same_bytes(folder: StudyFolder, tmp_path: Path) -> None:
    copy = StudyFolder(tmp_path / "elsewhere" / folder.path.name)
    shutil.copytree(folder.path, copy.path)
    first, second = (pack_study(each, tmp_path / f"{n}.tar.xz") for n, each in enumerate((folder, copy)))
    assert first == second
    assert first.missing == (TUNED,)
    assert first.bytes == (tmp_path / "0.tar.xz").stat().st_size
    assert (tmp_path / "0.tar.xz").read_bytes() == (tmp_path / "1.tar.xz").read_bytes()


def test_a_study_goes_on_after_it_was_unpacked(study: StudySpec, unpacked: StudyFolder) -> None:
    assert go_on(study, unpacked, "heads/seg/*").startswith("1 runs, 1 of them finished before")
    with pytest.raises(RunError, match=f"{TUNED}: starts from {FIRST}, .* Remove .*{FIRST} to train it anew"):
        go_on(study, unpacked)
    shutil.rmtree(unpacked.run(FIRST).path)
    assert "3/3" in go_on(study, unpacked)
    assert unpacked.is_finished(TUNED)


def test_when_claims_were_written_is_packed(folder: StudyFolder, tmp_path: Path) -> None:
    changed = StudyFolder(tmp_path / "changed")
    shutil.copytree(folder.path, changed.path)
    turned = {**CLAIMS[0], "claim": "they do harm", "expected": "lower"}
    changed.write(StudySpec.model_validate({**changed.read().model_dump(), "claims": [turned]}))
    before = tables(changed)
    assert b"late" in before["claims.md"]
    assert b"counts in the correction: masks help." in before["claims.md"]
    pack_study(changed, tmp_path / "study.tar.xz")
    with tarfile.open(tmp_path / "study.tar.xz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    assert tables(StudyFolder(tmp_path / "there/changed")) == before
    changed.protocol.write_text("{}")
    with pytest.raises(RunError, match=r"protocol\.json: can't be read"):
        pack_study(changed, tmp_path / "again.tar.xz")


def test_what_cant_be_packed_is_refused(study: StudySpec, folder: StudyFolder, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a study folder"):
        pack_study(StudyFolder(tmp_path), tmp_path / "a.tar.xz")
    empty = StudyFolder(tmp_path / "empty")
    empty.write(study)
    with pytest.raises(RunError, match="none of its 3 runs has finished"):
        pack_study(empty, tmp_path / "a.tar.xz")
    (tmp_path / "there.tar.xz").touch()
    with pytest.raises(RunError, match=r"there\.tar\.xz: exists already"):
        pack_study(folder, tmp_path / "there.tar.xz")
    with pytest.raises(RunError, match=r"a\.zip: expected a name that ends in \.tar\.xz"):
        pack_study(folder, tmp_path / "a.zip")
    with pytest.raises(RunError, match="could not be written"):
        pack_study(folder, tmp_path / "nowhere/a.tar.xz")
