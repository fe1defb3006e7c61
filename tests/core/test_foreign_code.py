"""A network and a task of one's own, from a folder outside the package: from training to predictions."""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from threefold.cohorts.cohort import Cohort, write_cohort
from threefold.core.foreign_code import verify_code
from threefold.core.outputs import Outputs
from threefold.core.targets import NumberTarget
from threefold.csv_tables import as_numbers, read_frame
from threefold.errors import ExperimentError, RunError
from threefold.experiment import Experiment
from threefold.inference.predictor import Predictor
from threefold.networks.foreign import ForeignNetwork
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run
from threefold.runs.explain import explain_run
from threefold.runs.probe import probe_run
from threefold.training.progress import Silence
from threefold.training.run import train

from ..conftest import blank_figures
from ..training.conftest import build_experiment, stopped_in_second_epoch, write_cases

PAGES = Path(__file__).parents[2] / "docs" / "how-to"


def code_of(page: str) -> str:
    """Return the Python file that a page of the documentation shows."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return text.partition("```python\n")[2].partition("```")[0]


@dataclass(frozen=True)
class Place:
    """A user's working folder with code, a cohort and a run."""

    folder: Path
    cohort: Cohort
    experiment: Experiment
    run: RunFolder


def own(**changes: Any) -> Experiment:
    """Return an experiment with the network and the task of the documentation."""
    network = {"kind": "my_nets:ConvNeXt", "widths": [4, 8], "pool": "stages", "cam": "stages.1"}
    tasks = {
        "classification": {},
        "segmentation": {},
        "volume": {"kind": "my_tasks:LogNumber", "target": "volume", "smallest": 0.5},
    }
    return build_experiment(**{"network": network, "tasks": tasks, "epochs": 2, **changes})


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The code of the pages, a cohort that knows a number, and a run of both."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "my_nets.py").write_text(code_of("own-network.md"))
    (folder / "my_tasks.py").write_text(code_of("own-task.md"))
    cohort = _with_a_number(write_cases(folder / "cohort"))
    with pytest.MonkeyPatch.context() as patch, blank_figures():
        patch.setenv("THREEFOLD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        _forget()
        yield Place(folder, cohort, own(), train(own(), cohort, folder / "run"))
    _forget()


def _with_a_number(cohort: Cohort) -> Cohort:
    rows = _rows(cohort)
    for number, row in enumerate(rows):
        row["volume"] = "" if number % 4 == 3 else f"{0.2 + number}"
    targets = {"volume": NumberTarget(kind="number", unit="mL")}
    return write_cohort(cohort.folder, cohort.spec.model_copy(update={"targets": targets}), rows)


def _rows(cohort: Cohort) -> list[dict[str, str]]:
    with (cohort.folder / "cases.csv").open(newline="") as stream:
        return [*csv.DictReader(stream)]


def _forget() -> None:
    for name in ("my_nets", "my_tasks"):
        sys.modules.pop(name, None)


def test_a_run_says_what_code_it_was_made_with(place: Place) -> None:
    listed = json.loads((place.run.path / "code.json").read_text())["code"]
    assert [(one["group"], one["name"]) for one in listed] == [
        ("networks", "my_nets:ConvNeXt"),
        ("tasks", "my_tasks:LogNumber"),
    ]
    assert listed[0]["file"] == str(place.folder / "my_nets.py")
    assert not list(place.run.path.glob("*.py")), "code never travels inside a run"
    weights = load_file(place.run.weights)
    assert {"net.stem.weight", "heads.classification.weight", "heads.volume.weight"} <= {*weights}


def test_a_run_of_the_programs_own_has_no_such_file(place: Place, tmp_path: Path) -> None:
    plain = train(build_experiment(epochs=1, tasks={"segmentation": {}}), place.cohort, tmp_path / "plain")
    assert not (plain.path / "code.json").exists()


def test_it_goes_on_where_it_stopped(place: Place, tmp_path: Path) -> None:
    with stopped_in_second_epoch():
        train(place.experiment, place.cohort, tmp_path / "cut")
    resumed = train(place.experiment, place.cohort, tmp_path / "cut", resume=True)
    assert resumed.weights.read_bytes() == place.run.weights.read_bytes()
    assert resumed.predictions.read_bytes() == place.run.predictions.read_bytes()


def test_it_is_evaluated_asked_and_explained(place: Place) -> None:
    table = read_frame(place.run.predictions)
    known = as_numbers(table["volume.truth"]).notna()
    assert 0 < known.sum() < len(table)
    assert np.isfinite(as_numbers(table["volume.predicted"])).all()
    history = read_frame(place.run.metrics)
    assert (history["validation_volume.mae"].astype(float) > 0).all()

    evaluate_run(place.run)
    numbers = read_frame(place.run.path / "tasks" / "volume" / "tables" / "metrics.csv")
    assert {"mae", "rmse", "r2"} <= {*numbers["metric"]}
    case = place.cohort.cases[0]
    (prediction,) = Predictor.from_run(place.run.path).predict([case.image])
    assert prediction.probabilities is not None
    assert sum(prediction.probabilities.values()) == pytest.approx(1)

    explained = explain_run(place.run, place.cohort)
    assert explained.evidence["share_inside"].between(0, 1).any()
    assert (place.run.tables / "probes.csv").is_file(), "from the layer that is pooled; no stages are named"


_forward = ForeignNetwork.forward


def _without_features(network: ForeignNetwork, image: torch.Tensor) -> Outputs:
    return Outputs(_forward(network, image).heads)


@pytest.fixture
def copied(place: Place, tmp_path: Path) -> RunFolder:
    """The run, to be changed."""
    shutil.copytree(place.run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_a_network_without_features_is_asked_for_the_rest(
    place: Place, copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("threefold.networks.foreign.ForeignNetwork.forward", _without_features)
    (copied.tables / "probes.csv").unlink(missing_ok=True)
    probed = probe_run(copied, cohort=place.cohort)
    assert "The network gives no features" in " ".join(probed.notes)
    assert "calibration_temperature" in {table.name for table in probed.tables}
    assert not (copied.tables / "probes.csv").exists()


def test_changed_code_is_refused_until_it_is_said_to_be_the_same(
    place: Place, copied: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    file = place.folder / "my_nets.py"
    before = file.read_text()
    file.write_text(before + "\n# another version\n")
    try:
        for refuses in (
            lambda: Predictor.from_run(copied.path),
            lambda: train(place.experiment, place.cohort, copied.path, resume=True),
        ):
            with pytest.raises(
                RunError, match="my_nets:ConvNeXt is not the code that it was made with"
            ) as error:
                refuses()
            said = str(error.value)
            assert said.count("with SHA-256") == 2
            assert said.endswith(
                f"Put that file or version back; or, where what changed does not bear on the "
                f"run, delete {copied.path / 'code.json'}."
            )
        (copied.path / "code.json").unlink()
        with caplog.at_level(logging.WARNING, "threefold"):
            assert Predictor.from_run(copied.path)
        assert "was made with my_nets:ConvNeXt; no code.json says what that was" in caplog.text
    finally:
        file.write_text(before)


def test_code_that_is_not_there_is_asked_for(
    place: Place, copied: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    _forget()
    with pytest.raises(RunError) as error:
        Predictor.from_run(copied.path)
    said = str(error.value)
    assert (
        "was made with code that can't be loaded here. network 'my_nets:ConvNeXt': can't import my_nets"
        in said
    )
    assert "Install it, or run the command in the folder that holds it." in said
    assert f"my_nets:ConvNeXt: {place.folder / 'my_nets.py'} with SHA-256" in said
    with pytest.raises(ExperimentError, match="can't import my_"):
        train(place.experiment, place.cohort, tmp_path / "new")
    assert not (tmp_path / "new").exists(), "refused before training"


def test_a_package_of_another_version_is_refused(
    place: Place, copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied.path / "code.json"
    content = json.loads(file.read_text())
    content["code"][0] |= {"distribution": "acme-nets", "version": "1.4", "sha256": "0" * 64}
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"expected acme-nets 1\.4, .* with SHA-256 0{12}, found "):
        verify_code(copied, place.experiment)


def test_another_question_starts_from_its_weights(place: Place, tmp_path: Path) -> None:
    cohort = write_cases(tmp_path / "cohort")
    cohort = write_cohort(
        cohort.folder,
        cohort.spec.model_copy(update={"classes": ("no", "yes", "perhaps")}),
        _rows(cohort),
    )
    tasks = {"classification": {}, "segmentation": {}}
    start = {"path": str(place.run.path)}
    lines: list[str] = []

    class Listening(Silence):
        def say(self, text: str) -> None:
            lines.append(text)

    run = train(
        own(tasks=tasks, initial_weights=start, epochs=1), cohort, tmp_path / "run", progress=Listening()
    )
    said = "\n".join(lines)
    assert "heads.classification.weight: not loaded, the file has 2 outputs and the network 3" in said
    assert "in the file, unused: heads.volume" in said or "heads.volume" in said
    assert torch.isfinite(load_file(run.weights)["heads.classification.weight"]).all()
