"""What the rest of the program may expect of every phantom."""

from __future__ import annotations

from typing import get_args

import pytest

from threefold.errors import UsageError
from threefold.phantoms.registry import PHANTOMS
from threefold.studies.study_spec import CohortSource


def test_a_study_may_ask_for_every_phantom() -> None:
    (allowed, _) = get_args(CohortSource.model_fields["phantom"].annotation)
    assert {*get_args(allowed)} == {*PHANTOMS}


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
