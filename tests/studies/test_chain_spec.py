"""What a chain says, and how overrides find their stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from threefold.errors import ExperimentError
from threefold.studies.chain_spec import (
    ChainSpec,
    StageSpec,
    chain_names,
    load_chain,
    stage_experiments,
    stage_overrides,
)

CHAIN = ChainSpec(
    name="two",
    stages=(
        StageSpec(name="first", recipe="hematoma/swin-unet-seg"),
        StageSpec(name="second", recipe="hematoma/mtl-cls-seg", init_from="first"),
    ),
)


def test_an_override_goes_to_the_stage_that_its_first_key_names() -> None:
    divided = stage_overrides(
        CHAIN, ["training.seed=3", "second.training.epochs=2", "propagation.seed=1", "data.cache=none"]
    )
    assert divided == {
        "propagation": ["seed=1"],
        "first": ["training.seed=3", "data.cache=none"],
        "second": ["training.seed=3", "training.epochs=2", "data.cache=none"],
    }


def test_a_stage_starts_from_the_weights_of_the_one_it_names(tmp_path: Path) -> None:
    experiments = stage_experiments(CHAIN, ["second.training.epochs=2", "training.seed=3"], tmp_path)
    assert experiments["first"].initial_weights is None
    initial = experiments["second"].initial_weights
    assert initial is not None
    assert initial.path == str(tmp_path / "first")
    assert [e.training.epochs for e in experiments.values()] == [600, 2]
    assert [e.training.seed for e in experiments.values()] == [3, 3]


def test_a_misspelt_key_names_its_stage(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"(?s)stage second: .*epcohs.*Did you mean 'epochs'\?"):
        stage_experiments(CHAIN, ["second.training.epcohs=2"], tmp_path)


@pytest.mark.parametrize(
    ("stages", "telling"),
    [
        ("[{name: a, recipe: x, init_from: b}]", "stage 'a' starts from 'b', which is no earlier stage"),
        ("[{name: a, recipe: x}, {name: a, recipe: y}]", "the name 'a' is taken"),
        ("[{name: propagation, recipe: x}]", "the name 'propagation' is taken"),
        ("[{name: a, recipe: x, init_form: b}]", "Did you mean 'init_from'?"),
    ],
)
def test_stages_that_do_not_follow_are_refused(stages: str, telling: str, tmp_path: Path) -> None:
    file = tmp_path / "chain.yaml"
    file.write_text(f"name: mine\nstages: {stages}\n")
    with pytest.raises(ExperimentError) as error:
        load_chain(str(file))
    assert telling in str(error.value)


def test_the_nearest_chain_is_named() -> None:
    assert {"aortic-arch", "aortic-arch-demo"} <= {*chain_names()}
    with pytest.raises(ExperimentError, match=r"Did you mean 'aortic-arch'\?"):
        load_chain("aortic-arhc")
