"""The models that the package ships: found by name, whole, small, and able to predict at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from threefold.checksums import verify_tensors
from threefold.cli.models import models
from threefold.cohorts.cohort import CohortSpec
from threefold.errors import RunError, UsageError
from threefold.experiments import load_experiment
from threefold.images.writing import write_nifti
from threefold.inference.predictor import Predictor
from threefold.models.store import (
    description_in,
    engines_of,
    is_model,
    model_names,
    read_card,
    run_path,
    warning_in,
)
from threefold.networks.pretrained import load_pretrained
from threefold.phantoms.varied_head import VariedHeadSpec, render_varied, varied_cases
from threefold.run import RunFolder
from threefold.runs.finished import verify_made, verify_settings
from threefold.tasks.build import build_network
from threefold.training.plan import resolve_paths

HEAD_CT = "threefold/head-ct"
EASY = VariedHeadSpec(
    cases=1,
    bleeding=1,
    mimics=0,
    noise=0.5,
    artefacts=0,
    contrast=(35, 40),
    lesion_radius=(18, 20),
    lesion_thickness=(18, 20),
)


@pytest.mark.parametrize("name", model_names())
def test_a_model_is_whole_and_small(name: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = RunFolder(run_path(name))
    verify_settings(folder)
    verify_made(folder, folder.weights, folder.weights.with_suffix(".json"))
    assert verify_tensors(folder.weights, RunError, "")
    assert not caplog.records
    weights = load_file(folder.weights)
    assert {value.dtype for value in weights.values()} == {torch.bfloat16, torch.int64}
    assert folder.weights.stat().st_size < 2_000_000
    card = read_card(folder)
    assert description_in(card)
    assert "Not a medical device" in warning_in(card)
    assert str(Path.home()) not in folder.cohort.read_text(encoding="utf-8")


def test_it_finds_blood_in_a_slice_at_once(tmp_path: Path) -> None:
    (case,) = varied_cases(EASY, 4)
    rendering = render_varied(case)
    write_nifti(tmp_path / "scan.nii.gz", rendering.hu, rendering.affine)
    predictor = Predictor.from_run(HEAD_CT)
    (found,) = predictor.predict(tmp_path / "scan.nii.gz", tmp_path / "out")
    assert found.mask is not None
    truth, mask = rendering.blood > 0, np.asarray(found.mask) > 0
    assert truth.sum() > 100
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.6
    assert found.decision == "haemorrhage"
    warning = warning_in(read_card(RunFolder(run_path(HEAD_CT))))
    assert warning in found.remarks
    table = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")
    assert HEAD_CT in table
    assert warning[:40] in table


def test_its_exports_are_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engines_of(RunFolder(run_path(HEAD_CT))) == tmp_path / "threefold" / "engines" / "head-ct"
    assert engines_of(RunFolder(tmp_path / "my-run")) == tmp_path / "my-run" / "engines"


def test_its_weights_start_a_training() -> None:
    experiment = load_experiment("hematoma/head-ct", [f"initial_weights.path={HEAD_CT}"])
    resolved = resolve_paths(experiment)
    assert resolved.initial_weights is not None
    assert resolved.initial_weights.path == HEAD_CT  # which means the same elsewhere
    spec = CohortSpec.model_validate(RunFolder(run_path(HEAD_CT)).read_cohort()["spec"])
    report = load_pretrained(build_network(experiment, spec), Path(HEAD_CT))
    assert report.missing == report.unused == ()


def test_names_that_are_no_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'threefold/head-ct'"):
        run_path("threefold/head-tc")
    with pytest.raises(UsageError, match="no such model"):
        resolve_paths(load_experiment("hematoma/head-ct", ["initial_weights.path=threefold/other"]))
    (tmp_path / "threefold" / "mine").mkdir(parents=True)
    assert run_path("threefold/mine") == Path("threefold/mine")  # a folder that is there
    assert run_path("my-run") == Path("my-run")
    assert not is_model(tmp_path / HEAD_CT)


def test_the_command_lists_and_shows() -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(models, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    assert said("list").startswith(HEAD_CT)
    assert [one["name"] for one in json.loads(said("list", "--json"))] == [*model_names()]
    assert "## Warning" in said("show", HEAD_CT)
    facts = json.loads(said("show", HEAD_CT, "--json"))
    assert (facts["unit"], facts["classes"]) == ("HU", ["none", "haemorrhage"])
    assert facts["bytes"] < 2_000_000
    with pytest.raises(UsageError, match="no model of the package"):
        said("show", "my-run")
