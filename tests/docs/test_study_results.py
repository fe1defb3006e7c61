"""The committed results of studies: each table again, from the tables of runs that are packed beside it."""

from __future__ import annotations

import lzma
import tarfile
from pathlib import Path

import pytest

from threefold.reporting.study_tables import claim_table, pair_table, reliance_table, variant_table
from threefold.reporting.table import markdown
from threefold.studies.archive import packed_content
from threefold.studies.comparison import compare_study
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import load_study

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "studies"
ARCHIVES = sorted(RESULTS.glob("*/*.tar.xz"))


def test_there_are_archives() -> None:
    assert {path.parent.name for path in ARCHIVES} >= {"aortic-arch-degradation"}


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.parent.name)
def test_the_pages_tables_are_those_of_the_packed_runs(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    name = archive.parent.name
    folder = StudyFolder(tmp_path / name)
    page = (RESULTS / f"{name}.md").read_text()
    comparison = compare_study(folder)
    study = comparison.study
    settings = {"confidence": study.confidence, "replicates": study.replicates}
    claims = claim_table(comparison.claims, margin=study.margin, withdrawn=comparison.withdrawn, **settings)
    assert markdown(claims) in page
    assert markdown(variant_table(comparison.means, **settings)) in page
    if comparison.reliance:
        assert markdown(reliance_table(comparison.reliance)) in page
    if comparison.pairs:
        pairs = markdown(pair_table(comparison.pairs, confidence=study.confidence))
        assert pairs in (RESULTS / f"{name}-pairs.md").read_text()
    # What was run is what the package ships, and packing it again changes nothing.
    assert study == load_study(name)
    assert packed_content(folder) == lzma.decompress(archive.read_bytes())
