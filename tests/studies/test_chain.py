"""The demo's chain, whole, at a size for a test: propagation, three trainings, one table; and again."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from threefold.cli.app import main
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.splits import make_split
from threefold.experiment import SplitSpec
from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort
from threefold.phantoms.fetal_protocol import FetalHeartSpec

from ..cohorts.cases import retold
from ..hearts import SMALL_HEART

TINY = (
    "propagation.size=[24,24,24]",
    "propagation.channels=[4,4,4,4]",
    "propagation.final_channels=[4]",
    "propagation.epochs=1",
    "propagation.refinement_steps=2",
    "propagation.affine_steps=2",
    "data.preprocessing.size=[24,24,24]",
    "evaluation.replicates=50",
    "training.epochs=1",
    "segmenter.network.channels=[4,8]",
    "classifier.network.segmenter.channels=[4,8]",
    "joint.network.segmenter.channels=[4,8]",
)


def tiny_spec(patients: tuple[int, int, int]) -> FetalHeartSpec:
    """Return the demo's phantom of so many patients with CoA, RAA and DAA, on a grid of 24 voxels a side."""
    return PRESETS["demo"].model_copy(update={**SMALL_HEART, "patients": patients})


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Few DAA, so that the validation cases have none that is labelled."""
    return make_fetal_heart_cohort(tmp_path_factory.mktemp("chain") / "hearts", tiny_spec((6, 6, 2)), 0)


def call(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", *arguments])
        main()


def test_a_chain_started_once_a_device_is_refused(
    hearts: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("GROUP_RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "0")
    out = tmp_path / "chain"
    with pytest.raises(SystemExit) as stop:
        call("chain", "aortic-arch-demo", "--cohort", str(hearts.folder), "--out", str(out))
    assert stop.value.code == 2
    assert "a chain is one process" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("joint.training.selection.metric=balanced_accuracy", "validation cases none is labelled"),
        ("joint.data.split.seed=1", "stage joint tests"),
        ("joint.data.augmentation.quarter_turns=true", "quarter_turns needs a square grid"),
        ("joint.training.devices=1000", "training.devices is 1000"),
    ],
)
def test_what_would_end_a_later_stage_is_refused_before_anything_is_done(
    change: str, message: str, hearts: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chain"
    with pytest.raises(SystemExit) as stop:
        call("chain", "aortic-arch-demo", "--cohort", str(hearts.folder), "--out", str(out), *TINY, change)
    assert stop.value.code
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that the demo of the aortic arch left, and what it printed."""
    out, printed = tmp_path_factory.mktemp("demo") / "demo", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setitem(PRESETS, "demo", tiny_spec((5, 5, 5)))
        with pytest.raises(SystemExit) as stop:
            call("demo", "aortic-arch", "--out", str(out), "--seed", "0", *TINY)
    assert not stop.value.code
    return out, printed.getvalue()


@pytest.mark.acceptance
def test_the_demo_of_the_aortic_arch_from_nothing(
    demo: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, printed = demo
    for title in ("Variants by structure", "Variants by class", "Gain of each step, paired by case"):
        assert title in printed
    assert f"comparison: tables in {out / 'tables'}" in printed
    assert {path.name for path in (out / "tables").iterdir()} == {
        "comparison.md",
        "comparison.csv",
        "gains.md",
        "gains.csv",
    }
    assert (out / "runs/joint/figures/volumes-DAA.png").is_file()
    # A chain is of one cohort and one way of propagating: nothing else is taken for it.
    with pytest.raises(SystemExit) as stop:
        call("demo", "aortic-arch", "--out", str(out), "--seed", "0", *TINY, "propagation.epochs=2")
    assert stop.value.code == 1
    assert "exists already, and by its provenance.json is not this propagation" in capsys.readouterr().err


@pytest.mark.acceptance
def test_the_shipped_chain_is_whole_and_goes_on_where_it_was(
    demo: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = demo
    weights = (out / "runs/joint/weights.safetensors").read_bytes()
    cohort = read_cohort(out / "cohort")
    seeds = ("training.seed=0", "data.split.seed=0", "propagation.seed=0")
    command = ("chain", "aortic-arch-demo", "--cohort", str(cohort.folder), "--out", str(out), *TINY, *seeds)
    with pytest.raises(SystemExit) as stop:
        call(*command, "--json")
    assert not stop.value.code
    said = capsys.readouterr()
    assert "propagated: already there" in said.err
    assert (out / "runs/joint/weights.safetensors").read_bytes() == weights
    found = json.loads(said.out)
    assert list(found["stages"]) == ["propagation", "segmenter", "classifier", "joint"]
    dice = {
        stage: next(
            row["value"]
            for row in content["numbers"]
            if (row["level"], row["group_kind"], row["metric"], row["class_name"])
            == ("case", "all", "structure_dice", "")
        )
        for stage, content in found["stages"].items()
    }
    assert dice["propagation"] > 0.3
    # The classifier is trained on the segmenter as it was.
    assert dice["classifier"] == dice["segmenter"]
    # The test cases' masks steer nothing, though the table has no split column.
    quality = pd.read_csv(out / "propagated/quality.csv").set_index("case_id")["mask_steered"]
    parts = pd.read_csv(out / "runs/joint/split.csv", comment="#").set_index("case_id")["part"]
    assert {*quality[parts[parts == "test"].index]} == {"no"}
    assert "yes" in {*quality[parts[parts == "train"].index]}
    propagated = read_cohort(out / "propagated", allow_outside=True)
    some = tuple(retold(case, structures=None) if k % 3 else case for k, case in enumerate(propagated.cases))
    for seed in range(5):
        split = SplitSpec(kind="patient", seed=seed)
        parts = make_split(cohort, split).parts
        assert parts == make_split(propagated, split).parts
        assert parts == make_split(replace(propagated, cases=some), split).parts  # registrations failed
    gains = {(gain["before"], gain["after"]): gain for gain in found["gains"]}
    assert gains["propagation", "joint"]["difference"] == pytest.approx(dice["joint"] - dice["propagation"])
    assert gains["unregistered", "registered"]["difference"] > 0.1
    assert gains["affine", "registered"]["n"] > 0
    diagnosed = {row["metric"] for row in found["stages"]["joint"]["numbers"]}
    assert {"balanced_accuracy", "hd95_mm", "b1_error", "topology_right"} <= diagnosed

    with pytest.raises(SystemExit) as stop:
        call("predict", str(out / "runs/joint"), str(cohort.cases[0].image), "--out", str(tmp_path / "p"))
    assert not stop.value.code
    header = (tmp_path / "p" / "predictions.csv").read_text().splitlines()[0]
    assert {"probability_CoA", "arch", "topology_class", "agrees"} <= {*header.split(",")}
