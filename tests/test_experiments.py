"""Recipes, files, overrides: what an experiment can be read from, and that it reads back equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from threefold.errors import ExperimentError
from threefold.experiment import (
    DenseNetSpec,
    Experiment,
    ForeignNetworkSpec,
    SegmentationSpec,
    SwinSpec,
    SwinUnetSpec,
)
from threefold.experiments import experiment_yaml, load_ensemble, load_experiment, recipe_names

PAPER_ROWS = ("swin-cls", "mtl-cls-seg", "mtl-cls-rec", "mtl-cls-seg-rec", "joint-swin")


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_reads_back_equal_and_says_which_paper_line_it_is(name: str, tmp_path: Path) -> None:
    experiment = load_ensemble(name) or load_experiment(name)
    assert experiment.name == name.split("/")[1]
    assert experiment.description
    assert "arXiv" in experiment.paper
    saved = tmp_path / "saved.yaml"
    saved.write_text(experiment_yaml(experiment))
    assert (load_ensemble(str(saved)) or load_experiment(str(saved))) == experiment


def test_an_ensemble_names_recipes_and_is_no_experiment(tmp_path: Path) -> None:
    deployed = load_ensemble("aortic-arch/deployed")
    assert deployed is not None
    readers = [load_experiment(member.recipe) for member in deployed.members]
    assert [one.network.classifier_input for one in readers] == ["structures", *["image+structures"] * 2]
    assert {one.pretrain for one in readers} == {"aortic-arch/seg-lp-man"}
    assert {member.seed for member in deployed.members} == {0, 1, 2}
    with pytest.raises(ExperimentError, match="is an ensemble of several trainings"):
        load_experiment("aortic-arch/deployed")
    twice = tmp_path / "twice.yaml"
    twice.write_text("name: x\nmembers: [{recipe: a/b}, {recipe: a/b}]\n")
    with pytest.raises(ExperimentError, match="one is there twice"):
        load_ensemble(str(twice))


@pytest.mark.parametrize("row", PAPER_ROWS)
def test_each_row_of_the_paper_exists_in_both_sizes(row: str) -> None:
    tiny, default = (load_experiment(f"hematoma/{row}{suffix}") for suffix in ("", "-default"))
    assert tiny.tasks == default.tasks
    assert tiny.training == default.training
    assert default.network.encoder.embed_dim == 96
    assert default.network.encoder.depths[2] == 6
    assert tiny.network.encoder.depths[2] == 2


def test_published_weights() -> None:
    tasks = load_experiment("hematoma/mtl-cls-seg-rec").tasks
    segmentation = tasks["segmentation"]
    assert isinstance(segmentation, SegmentationSpec)
    assert tasks["classification"].weight == 0.3
    assert segmentation.weight == 1.0
    assert (segmentation.cross_entropy, segmentation.dice) == (0.4, 0.6)
    assert tasks["reconstruction"].weight == 0.4


def test_overrides_reach_into_mappings_and_keep_the_rest() -> None:
    experiment = load_experiment(
        "hematoma/mtl-cls-seg-rec",
        [
            "training.epochs=3",
            "training.optimiser.learning_rate=1e-3",
            "network.encoder.drop_path=0",
            "tasks.reconstruction=null",
        ],
    )
    assert experiment.training.epochs == 3
    assert experiment.training.optimiser.learning_rate == 1e-3
    assert experiment.training.optimiser.momentum == 0.9
    assert isinstance(experiment.network, SwinUnetSpec)
    assert experiment.network.encoder == SwinSpec(size="tiny", drop_path=0)
    assert tuple(experiment.tasks) == ("classification", "segmentation")


def test_overrides_by_key_are_values() -> None:
    changes = {"training.optimiser.learning_rate": 1e-3, "tasks.reconstruction": None, "name": "on"}
    experiment = load_experiment("hematoma/mtl-cls-seg-rec", changes)
    assert experiment.training.optimiser.learning_rate == 1e-3
    assert tuple(experiment.tasks) == ("classification", "segmentation")
    assert experiment.name == "on"
    with pytest.raises(ExperimentError, match="expected the path of a key"):
        load_experiment("hematoma/swin-cls", {"training..epochs": 3})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "expected key.path=value"),
        ("=3", "expected the path of a key"),
        ("training.epcohs=3", "training.epcohs: unknown key. Did you mean 'epochs'?"),
        ("training.epochs=[", "not valid YAML"),
        ("training=3", "training: "),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        load_experiment("hematoma/swin-cls", [override])
    assert message in str(caught.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ExperimentError, match="Did you mean 'hematoma/mtl-cls-seg'"):
        load_experiment("hematoma/mtl-cls-sge")


def test_a_file_extends_a_recipe_or_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: hematoma/mtl-cls-seg\nname: mine\ntraining: {epochs: 5}\n")
    (tmp_path / "yours.yaml").write_text("extends: mine.yaml\nname: yours\ntraining: {batch_size: 2}\n")
    experiment = load_experiment(str(tmp_path / "yours.yaml"))
    assert (experiment.training.epochs, experiment.training.batch_size) == (5, 2)
    assert experiment.tasks == load_experiment("hematoma/mtl-cls-seg").tasks


def test_a_network_of_another_kind_takes_over_only_what_it_has_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: hematoma/demo\nname: mine\nnetwork: {kind: 'my_nets:Net', width: 8}\n")
    mine = load_experiment(str(path)).network
    assert isinstance(mine, ForeignNetworkSpec)
    assert mine.options == {"width": 8}
    joint = load_experiment("hematoma/demo", ["network.kind=swin-unet", "network.encoder.window=4"]).network
    assert isinstance(joint, SwinUnetSpec)
    assert (joint.encoder.embed_dim, joint.encoder.window) == (32, 4)
    changes = (
        "network.growth=3",
        "network.kind=densenet",
        "tasks.segmentation=null",
        "tasks.reconstruction=null",
    )
    dense = load_experiment("hematoma/demo", changes).network
    assert isinstance(dense, DenseNetSpec)
    assert dense.growth == 3


def test_pooling_over_a_region_needs_a_task_that_segments_it() -> None:
    network = {"kind": "attention-unet", "pooling": "region"}
    with pytest.raises(ValidationError, match="no task segments the region; add one"):
        Experiment.model_validate({"name": "x", "network": network, "tasks": {"classification": {}}})
    Experiment.model_validate(
        {"name": "x", "network": network, "tasks": {"classification": {}, "segmentation": {}}}
    )


def test_extending_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(ExperimentError, match="extends itself"):
        load_experiment(str(tmp_path / "a.yaml"))


def test_yaml_holds_plain_values_only() -> None:
    data = yaml.safe_load(experiment_yaml(load_experiment("hematoma/joint-swin")))
    assert data["data"]["preprocessing"]["size"] == [224, 224]
    assert set(data) == set(Experiment.model_fields)


def test_tasks_have_names_of_ones_own_and_come_in_the_order_of_their_kinds() -> None:
    named = {
        "bleeding": {"kind": "segmentation", "target": "hematoma"},
        "age": {"kind": "regression", "target": "age"},
        "type": None,
        "density": {"kind": "classification", "target": "density"},
        "side": {"kind": "classification", "target": "side"},
    }
    experiment = Experiment.model_validate({"name": "x", "tasks": named})
    assert list(experiment.tasks) == ["density", "side", "age", "bleeding"]
    assert experiment.monitors["density.auc"] == ("density", "auc")
    assert experiment.monitors["mae"] == ("age", "mae")
    assert "auc" not in experiment.monitors
    with pytest.raises(ValidationError, match=r"several tasks give; say which one: density\.auc, side\.auc"):
        Experiment.model_validate({"name": "x", "tasks": named, "training": {"selection": {"metric": "auc"}}})
    with pytest.raises(ValidationError, match="'a b' can't name a task"):
        Experiment.model_validate({"name": "x", "tasks": {"a b": {"kind": "regression"}}})
    with pytest.raises(ValidationError, match="'depth' is no kind of task; say which one it is"):
        Experiment.model_validate({"name": "x", "tasks": {"depth": {}}})
