"""What the rest of the program may expect of every phantom."""

from __future__ import annotations

from pathlib import Path

import pytest

from threefold.errors import ExperimentError, UsageError
from threefold.phantoms.registry import PHANTOMS, phantom_of
from threefold.studies.study_spec import CohortSource


def test_a_phantom_is_found_by_name_ones_own_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, phantom in PHANTOMS.items():
        assert CohortSource(phantom=name).phantom == name
        assert phantom_of(name) is phantom
    (tmp_path / "mine_for_a_test.py").write_text(
        "from dataclasses import replace\n"
        "from threefold.phantoms.head_ct import HEAD_CT\n"
        "MINE = replace(HEAD_CT, name='mine')\n"
        "OTHER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert phantom_of("mine_for_a_test:MINE").name == "mine"
    with pytest.raises(ExperimentError, match="expected a threefold Phantom, found int"):
        phantom_of("mine_for_a_test:OTHER")
    with pytest.raises(ExperimentError, match="Did you mean 'head-ct'"):
        phantom_of("head-cd")


def test_no_two_phantoms_keep_their_truth_under_one_name() -> None:
    known = [phantom.counterfactuals for phantom in PHANTOMS.values()]
    columns = [of.truth for of in known if of is not None]
    assert len(columns) == len({*columns}) == 2


@pytest.mark.parametrize("name", PHANTOMS)
def test_mistakes_in_a_specification_are_named(name: str) -> None:
    phantom = PHANTOMS[name]
    with pytest.raises(UsageError, match=rf"here: {name} has no preset 'dem'.*'demo'"):
        phantom.spec("dem", {}, where="here")
    with pytest.raises(UsageError, match="Did you mean 'noise'"):
        phantom.spec("demo", {"nosie": 1}, where="here")
    assert phantom.spec("demo", {"noise": 0.25}, where="here").noise == 0.25
    assert phantom.spec("demo", {}, where="here") == phantom.presets["demo"]
