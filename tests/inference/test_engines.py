"""A run's network in ONNX Runtime and OpenVINO: the same tables and masks, or a refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from torch import nn
from typer.testing import CliRunner

from threefold.cli.app import app
from threefold.errors import RunError, UsageError
from threefold.experiment import Experiment
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti
from threefold.inference.predictor import Predictor
from threefold.interchange import engines, exports
from threefold.interchange.engines import Engine
from threefold.interchange.exports import export_run
from threefold.run import RunFolder
from threefold.runs.ensembles import load_predictor

from .conftest import make_experiment, make_spec, write_run

pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose folder the tests may write into."""
    return write_run(tmp_path_factory.mktemp("runs") / "tiny", make_experiment(), make_spec(), 0.3).path


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exports") / "network"
    result = CliRunner().invoke(app, ["export", str(run), "onnx", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "the same decisions" in result.output
    assert "note: the cohort that it was trained on is not there" in result.output
    return out


@pytest.fixture
def traced_before(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the graph that was traced once: each trace takes ten seconds."""

    def copied(network: nn.Module, example: Any, path: Path, **options: Any) -> None:
        shutil.copyfile(exported / "model.onnx", path)

    monkeypatch.setattr(torch.onnx, "export", copied)


def predicted(run: Path, images: Path, out: Path, *options: str) -> pd.DataFrame:
    arguments = ["predict", str(run), str(images / "a.nii.gz"), str(images / "volume.nii.gz")]
    result = CliRunner().invoke(app, [*arguments, "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return pd.read_csv(out / "predictions.csv")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_an_engine_leaves_the_same_tables_and_masks(
    engine: str,
    run: Path,
    images: Path,
    tmp_path: Path,
    traced_before: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = predicted(run, images, tmp_path / "plain")
    other = predicted(run, images, tmp_path / "other", "--engine", engine)
    pd.testing.assert_frame_equal(plain, other, atol=1e-5, rtol=0)
    for mask in (tmp_path / "plain" / "masks").iterdir():
        again = read_image(tmp_path / "other" / "masks" / mask.name)
        assert np.array_equal(read_image(mask).array, again.array)
    (kept,) = (run / "engines").glob(f"{engine}-*")
    assert json.loads((kept / "parity.json").read_text())["engine"] == engine

    # The second call exports nothing, and another engine's folder of predictions is not gone on with.
    monkeypatch.setattr(exports, "write_network", lambda *_, **__: pytest.fail("was there already"))
    predicted(run, images, tmp_path / "again", "--engine", engine)
    with pytest.raises(RunError, match="engine"):
        list(load_predictor(run).predict([images / "a.nii.gz"], tmp_path / "again"))


def test_the_description_is_enough_to_use_the_file(run: Path, exported: Path) -> None:
    import onnxruntime

    said = json.loads((exported / "export.json").read_text())
    assert said["input"]["shape"] == ["batch", 1, 56, 56]
    assert said["preprocessing"]["windows"] == [[0, 100]]
    diagnosis, mask, restored = said["outputs"][:3]
    assert (diagnosis["classes"], diagnosis["positive"], diagnosis["threshold"]) == (
        ["no", "yes"],
        "yes",
        0.3,
    )
    assert (mask["labels"], restored["kind"]) == (["background", "foreground"], "image")
    images = np.random.default_rng(1).random((3, 1, 56, 56), np.float32)
    session = onnxruntime.InferenceSession(exported / said["files"][0])
    found = dict(
        zip([one["name"] for one in said["outputs"]], session.run(None, {"image": images}), strict=True)
    )
    with torch.inference_mode():
        expected = Predictor.from_run(run).network(torch.from_numpy(images))
    for name, head in expected.heads.items():
        np.testing.assert_allclose(found[name], head.numpy(), atol=2e-5)


def test_volumes_larger_than_the_network_go_in_windows(tmp_path: Path) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "tiny",
            "data": {"preprocessing": {"size": [16, 16, 16], "spacing": 1.0}},
            "network": {"kind": "attention-unet", "channels": [4, 8]},
            "tasks": {"segmentation": {}},
        }
    )
    spec = make_spec(dimensions=3, classes=[], positive=None)
    run = write_run(tmp_path / "volumes", experiment, spec, None).path
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((16, 24, 16)), 2)
    array = (100 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.int16)
    write_nifti(tmp_path / "scan.nii.gz", array, np.eye(4))
    plain, other = (
        next(load_predictor(run, engine=engine).predict([tmp_path / "scan.nii.gz"]))
        for engine in (None, "onnx")
    )
    assert plain.mask is not None
    assert other.mask is not None
    assert "one pass" in plain.note
    assert "2 windows" in other.note
    assert other.mask.shape == plain.mask.shape
    assert (other.mask[:, :8] == plain.mask[:, :8]).mean() > 0.9


def test_a_network_that_answers_otherwise_is_refused_and_nothing_is_left(
    run: Path, tmp_path: Path, traced_before: None
) -> None:
    predictor = Predictor.from_run(run)
    with torch.no_grad():  # not what was traced
        predictor.network.get_parameter("heads.classification.bias")[0] += 1
    with pytest.raises(RunError, match=r"onnx does not answer as PyTorch does: of 2 images .* Nothing was"):
        export_run(predictor, tmp_path / "out", "onnx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["model.onnx", "export.json"])
def test_a_damaged_export_is_refused(name: str, run: Path, exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= file.name == name
        (tmp_path / file.name).write_bytes(content)
    with pytest.raises(RunError, match=r"Export the run again"):
        exports.open_export(Predictor.from_run(run), tmp_path, "onnx")


def test_an_export_is_of_its_weights(run: Path, exported: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", make_experiment(), make_spec(), 0.3)
    other.weights.with_suffix(".json").write_text(json.dumps({"version": "0.3.0"}))
    with pytest.raises(RunError, match=r"expected version 0\.3\.0"):
        exports.open_export(Predictor.from_run(other.path), exported, "onnx")
    with pytest.raises(RunError, match="expected format openvino, found onnx"):
        exports.open_export(Predictor.from_run(run), exported, "openvino")


def test_what_an_engine_cant_do_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine: Engine = "onnx"
    with pytest.raises(UsageError, match="one run on the CPU: not an ensemble, mirror images"):
        load_predictor(run, engine=engine, flips=True)

    class Decides(nn.Module):
        def forward(self, image: torch.Tensor) -> Any:
            return tf_outputs(image if image.sum() > 0 else -image)

    def tf_outputs(image: torch.Tensor) -> Any:
        from threefold.core.outputs import Outputs

        return Outputs({"a": image.mean(dim=(2, 3))})

    with pytest.raises(RunError, match=r"can't be written as onnx: .* torch\.export takes"):
        engines.write_network(Decides(), tmp_path, "onnx", channels=1, size=(8, 8))
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'threefold\[export\]'"):
        load_predictor(run, engine=engine)
    assert RunFolder(run).weights.is_file()
