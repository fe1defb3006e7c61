"""A network, a task, a metric, a phantom, a reader and a recipe of one's own, each a file of a folder outside
the package: from the cohort through a training to predictions, numbers and a report."""

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

from threefold.api import compare
from threefold.audits.audit import audit
from threefold.cohorts.cohort import Cohort, write_cohort
from threefold.core.foreign_code import verify_code
from threefold.core.outputs import Outputs
from threefold.csv_tables import as_numbers, read_frame
from threefold.errors import ExperimentError, ImageError, RunError
from threefold.experiment import Experiment
from threefold.experiments import load_experiment
from threefold.images.reading import read_header, read_image
from threefold.inference.listing import find_sources
from threefold.inference.predictor import Predictor
from threefold.networks.foreign import ForeignNetwork
from threefold.phantoms.registry import phantom_of
from threefold.reporting.results import read_results
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run
from threefold.runs.explain import explain_run
from threefold.studies.reports import report as write_page
from threefold.studies.study_claims import require_metrics
from threefold.studies.study_spec import StudySpec
from threefold.training.plan import plan
from threefold.training.progress import Silence
from threefold.training.run import train

from ..conftest import blank_figures
from ..training.conftest import build_experiment, stopped_in_second_epoch, write_cases

PHANTOM = """
import numpy as np

from threefold import Phantom
from threefold.cohorts.cohort import CohortSpec, IntensitySpec, write_cohort
from threefold.core.targets import MaskSpec, NumberTarget
from threefold.experiment import Spec


class Squares(Spec):
    side: int = 32


def make(out, spec, seed, progress):
    rng, rows = np.random.default_rng(seed), []
    out.mkdir(parents=True)
    for number in range(24):
        name, positive = f"p{number // 2:02d}-{number % 2}", number // 2 % 2
        pixels, inside = rng.integers(0, 60, (spec.side,) * 2), np.zeros((spec.side,) * 2, np.uint8)
        top, left = rng.integers(4, 14, 2)
        inside[top : top + 12, left : left + 12] = 1
        pixels += 150 * inside
        if positive:
            pixels[top + 4 : top + 8, left + 4 : left + 8] = 20
        np.save(out / f"{name}.npy", pixels.astype(np.uint8))
        np.save(out / f"{name}-mask.npy", inside)
        rows.append({
            "case_id": name,
            "patient_id": name[:3],
            "site": ("north", "south")[(number // 2 + number // 4) % 2],
            "split": ("train", "train", "train", "train", "validation", "test")[number // 4],
            "image": f"{name}.npy",
            "mask": f"{name}-mask.npy" if number % 3 else None,
            "label": ("no", "yes")[positive] if number % 5 else None,
            "volume": None if number % 4 == 3 else f"{0.2 + number}",
        })
    return write_cohort(out, CohortSpec(
        name="squares",
        modality="photo",
        dimensions=2,
        classes=("no", "yes"),
        mask=MaskSpec(),
        targets={"volume": NumberTarget(kind="number", unit="mL")},
        intensity=IntensitySpec(unit="grey", window=(0, 255)),
    ), rows)


SQUARES = Phantom(name="squares", presets={"demo": Squares()}, make=make)
"""
RECIPE = """
extends: hematoma/demo
name: own
data: {split: {kind: column}, preprocessing: {size: [32, 32], windows: null}}
network: {kind: "my_nets:ConvNeXt", widths: [4, 8], pool: stages, cam: stages.1}
tasks:
  reconstruction: null
  volume: {kind: "my_tasks:LogNumber", target: volume, smallest: 0.5}
training: {epochs: 2, batch_size: 4}
evaluation: {replicates: 10, metrics: ["my_metrics:SIZE_ERROR"]}
"""
SIZE_ERROR = "my_metrics:SIZE_ERROR"
PAGES = Path(__file__).parents[2] / "docs" / "how-to"


STUDY = {
    "name": "own",
    "cohorts": {"one": {"phantom": "my_phantoms:SQUARES"}},
    "variants": {
        "a": {"recipe": "own.yaml"},
        "b": {"recipe": "own.yaml", "overrides": ["training.epochs=1"]},
    },
}


def code_of(page: str) -> str:
    """Return the Python file that a page of the documentation shows."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return text.partition("```python\n")[2].partition("```")[0]


FILES = {
    "my_nets.py": code_of("own-network.md"),
    "my_tasks.py": code_of("own-task.md"),
    "my_metrics.py": code_of("own-metric.md"),
    "my_readers.py": code_of("own-reader.md"),
    "my_phantoms.py": PHANTOM,
    "own.yaml": RECIPE,
}
"""A file each: a network, a task, a metric, a reader, a phantom, a recipe."""


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
    """The code of the pages, a phantom and a recipe, and a run of all of them."""
    folder = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch, blank_figures():
        patch.setenv("THREEFOLD_CACHE", str(folder / "cache"))
        patch.setenv("THREEFOLD_READERS", "my_readers:NUMPY")
        patch.chdir(folder)
        _forget()
        phantom = phantom_of("my_phantoms:SQUARES")
        cohort = phantom.make(folder / "cohort", phantom.presets["demo"], 1, None)
        recipe = load_experiment("own.yaml")
        yield Place(folder, cohort, recipe, train(recipe, cohort, folder / "run"))
    _forget()


def _rows(cohort: Cohort) -> list[dict[str, str]]:
    with (cohort.folder / "cases.csv").open(newline="") as stream:
        return [*csv.DictReader(stream)]


def _forget() -> None:
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


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

    assert {*numbers["group"]} >= {"all", "north", "south"}
    explained = explain_run(place.run, place.cohort)
    assert explained.evidence["share_inside"].between(0, 1).any()
    assert (place.run.tables / "probes.csv").is_file(), "from the layer that is pooled; no stages are named"


def test_a_metric_of_ones_own_is_a_number_like_the_others(place: Place, tmp_path: Path) -> None:
    report = evaluate_run(place.run)
    table = read_frame(place.run.predictions)
    test = table[table["part"] == "test"]
    truth, predicted = (as_numbers(test[f"mask_{what}_voxels"]) for what in ("truth", "predicted"))
    there = truth > 0
    expected = ((predicted - truth).abs() / truth)[there].mean()
    found = report.evaluation.find(SIZE_ERROR)
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(expected), there.sum())
    assert report.evaluation.find(SIZE_ERROR, group_kind="site", group="north") is not None
    assert report.evaluation.find(SIZE_ERROR, group_kind="worst site", group="") is not None
    kept = read_results(place.run.path)["evaluate"].numbers
    assert any(entry.estimate == found for entry in kept)
    assert "Error of size" in (place.run.tables / "metrics.md").read_text()
    assert "Error of size" in place_report(place, tmp_path).read_text()
    of_itself = compare(place.run.path, place.run.path, SIZE_ERROR)
    assert of_itself.first.value == pytest.approx(expected)
    assert of_itself.change.value == 0
    claim = {"claim": "smaller", "variant": "a", "baseline": "b", "metric": SIZE_ERROR, "expected": "lower"}
    require_metrics(StudySpec.model_validate({**STUDY, "claims": [claim]}))
    with pytest.raises(ExperimentError, match=r"metric 'my_metrics:SIZE_EROR'.*Did you mean 'SIZE_ERROR'"):
        require_metrics(
            StudySpec.model_validate({**STUDY, "claims": [{**claim, "metric": "my_metrics:SIZE_EROR"}]})
        )
    asked = place.experiment.model_copy(
        update={
            "evaluation": place.experiment.evaluation.model_copy(update={"metrics": ("my_nets:ConvNeXt",)})
        }
    )
    with pytest.raises(ExperimentError, match="expected a threefold Metric, found type"):
        plan(asked, place.cohort)


def place_report(place: Place, folder: Path) -> Path:
    return write_page(place.run.path, folder / "report.html")


def test_a_reader_of_ones_own_reads_what_it_knows(place: Place, tmp_path: Path) -> None:
    assert not [one for one in audit(place.cohort).findings if one.severity == "refuse"]
    renamed = tmp_path / "patient.dat"
    shutil.copy(place.cohort.cases[0].image, renamed)
    (tmp_path / "volume.npy").write_bytes(b"")
    np.save(tmp_path / "volume.npy", np.zeros((4, 5, 6), np.int16))
    image = read_image(renamed)
    assert (image.array.shape, image.facts.format, image.source) == ((32, 32), "NumPy", renamed)
    assert image.spacing == (0.5, 0.5)
    assert read_image(tmp_path / "volume.npy", slice_index=5).array.shape == (4, 5)
    assert read_header(tmp_path / "volume.npy").shape == (4, 5, 6)
    np.save(tmp_path / "broken.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ImageError, match=r"broken\.npy: the reader of NumPy can't read it \(ValueError: "):
        read_image(tmp_path / "broken.npy")
    np.save(tmp_path / "line.npy", np.zeros(3))
    with pytest.raises(ImageError, match=r"gave float64 of shape \(3,\); expected numbers of 2 or 3 axes"):
        read_image(tmp_path / "line.npy")
    listing = find_sources(tmp_path)
    assert {"patient.dat", "volume"} <= {source.name for source in listing.sources}


def test_without_its_reader_a_file_says_how_one_is_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("THREEFOLD_READERS")
    with pytest.raises(
        ImageError, match=r"begins as a NumPy file.* is named by THREEFOLD_READERS=module:NAME"
    ):
        read_image(place.cohort.cases[0].image)
    monkeypatch.setenv("THREEFOLD_READERS", "my_tasks:LogNumber")
    with pytest.raises(ExperimentError, match="reader 'my_tasks:LogNumber': expected a threefold Reader"):
        read_image(place.cohort.cases[0].image)


def test_a_misspelt_metric_of_ones_own_task_is_refused(place: Place) -> None:
    training = place.experiment.training
    for metric, said in (("volume.mea", "Did you mean 'volume.mae'"), ("volume.mae", "")):
        selection = training.selection.model_copy(update={"metric": metric})
        asked = place.experiment.model_copy(
            update={"training": training.model_copy(update={"selection": selection})}
        )
        if said:
            with pytest.raises(ExperimentError, match=f"the task volume gives volume.mae.*{said}"):
                plan(asked, place.cohort)
        else:
            plan(asked, place.cohort)


_forward = ForeignNetwork.forward


def _without_features(network: ForeignNetwork, image: torch.Tensor) -> Outputs:
    return Outputs(_forward(network, image).heads)


@pytest.fixture
def copied(place: Place, tmp_path: Path) -> RunFolder:
    """The run, to be changed."""
    shutil.copytree(place.run.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def test_a_network_without_features_and_layer_is_asked_for_the_rest(
    place: Place, copied: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(network: ForeignNetwork) -> None:
        raise RunError("It names no layer for Grad-CAM.")

    monkeypatch.setattr("threefold.networks.foreign.ForeignNetwork.forward", _without_features)
    monkeypatch.setattr("threefold.networks.foreign.ForeignNetwork.cam_layer", none)
    (copied.tables / "probes.csv").unlink(missing_ok=True)
    explained = explain_run(copied, place.cohort)
    assert "Nothing is said of attention. It names no layer for Grad-CAM." in explained.notes
    assert "share_inside" not in explained.evidence
    probed = explained.probed
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
