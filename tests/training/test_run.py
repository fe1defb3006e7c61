"""From an experiment and a cohort to a run folder, and what is refused on the way."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import threefold.training.folder as folder
import threefold.training.loop as loop
import threefold.training.run as training_run
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.findings import Finding
from threefold.cohorts.splits import Split, read_split, write_split
from threefold.core.batch import Batch
from threefold.errors import (
    CohortError,
    ExperimentError,
    ImageError,
    RunError,
    ThreefoldError,
    TrainingError,
    UsageError,
    WeightsError,
)
from threefold.evaluation.classification import choose_threshold
from threefold.evaluation.predictions import read_predictions
from threefold.experiment import Experiment
from threefold.experiments import read_experiment
from threefold.images.augmentation import AugmentationParameters, augment
from threefold.run import RunFolder
from threefold.training.checkpoints import load_checkpoint, save_checkpoint
from threefold.training.folder import locked
from threefold.training.progress import Silence
from threefold.training.run import train

MakeCohort = Callable[..., Cohort]
MakeExperiment = Callable[..., Any]
Finished = tuple[Cohort, RunFolder]


class Told(Silence):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_a_run_folder_holds_everything(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    experiment = make_experiment(epochs=3, tensorboard=True)
    finished = train(experiment, cohort, run.path)

    assert finished == run
    assert read_experiment(run.experiment) == experiment
    assert json.loads(run.cohort.read_text())["name"] == "squares"
    assert json.loads(run.environment.read_text())["packages"]["torch"] == str(torch.__version__)
    split = read_split(run.split)
    parts = {case.case_id: case.split for case in cohort.cases}
    assert split.parts == parts

    with run.metrics.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    expected = {"train_loss", "train_loss_segmentation", "validation_loss"}
    expected |= {"validation_auc", "validation_dice"}
    expected |= {"validation_psnr", "learning_rate", "seconds_data", "seconds_forward", "seconds_backward"}
    expected |= {"seconds_step", "seconds_validation"}
    assert expected <= rows[0].keys()

    status = run.read_status()
    assert status["state"] == "finished"
    losses = [float(row["validation_loss"]) for row in rows]
    assert status["best_epoch"] == 1 + int(np.argmin(losses))
    assert status["best_value"] == pytest.approx(min(losses))

    best = load_checkpoint(run.best_checkpoint)
    weights = load_file(run.weights)
    assert weights.keys() == best["network"].keys()
    assert all(torch.equal(weights[name], best["network"][name]) for name in weights)
    assert json.loads(run.weights.with_suffix(".json").read_text())["epoch"] == status["best_epoch"]

    predictions = read_predictions(run.predictions, classes=("no", "yes"))
    table = predictions.table.set_index("case_id")
    assert set(table.index) == {case for case, part in parts.items() if part != "train"}
    validation = table[(table["part"] == "validation") & (table["label"] != "")]
    assert status["threshold"] == choose_threshold(
        (validation["label"] == "yes").to_numpy(), validation["probability_yes"].to_numpy(), "youden"
    )
    tested = {case for case, part in parts.items() if part == "test"}
    assert {path.name.split(".")[0] for path in run.masks.iterdir()} == tested
    assert list((run.path / "tensorboard").iterdir())
    assert not list(run.path.rglob("*.partial"))


def test_the_status_says_how_far_a_running_training_is(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    seen: list[tuple[str, int]] = []

    class Watching(Silence):
        def epoch(self, *_: object) -> None:
            status = run.read_status()
            seen.append((status["state"], status["epoch"]))

    train(make_experiment(epochs=2), cohort, run.path, progress=Watching())
    assert seen == [("running", 1), ("running", 2)]


def test_a_case_that_is_drawn_again_is_augmented_otherwise(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: Counter[tuple[int, str, int]] = Counter()
    draw = loop.draw_parameters

    def noting(spec: Any, case_ids: Any, **keys: Any) -> AugmentationParameters:
        drawn.update((keys["epoch"], *pair) for pair in zip(case_ids, keys["repeats"], strict=True))
        return draw(spec, case_ids, **keys)

    monkeypatch.setattr(loop, "draw_parameters", noting)
    data = {**AUGMENTED, "sampling": "balanced"}
    train(make_experiment(epochs=2, data=data), cohort, run.path)
    assert max(repeat for _, _, repeat in drawn) > 0
    assert max(drawn.values()) == 1


def test_the_same_inputs_give_the_same_weights_and_a_seed_others(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    files = [
        train(make_experiment(epochs=1, seed=seed), cohort, tmp_path / name).weights.read_bytes()
        for name, seed in [("first", 0), ("again", 0), ("other", 1)]
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_the_callers_random_numbers_and_settings_stay_as_they_were(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    state = torch.get_rng_state()
    train(make_experiment(epochs=1), cohort, run.path)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_is_never_overwritten(finished: Finished, make_experiment: MakeExperiment) -> None:
    cohort, run = finished
    before = run.weights.read_bytes()
    with pytest.raises(RunError, match=r"there is a run already \(state: finished\).*--resume"):
        train(make_experiment(epochs=1), cohort, run.path)
    assert run.weights.read_bytes() == before


def test_a_folder_of_something_else_is_refused(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    run.path.mkdir()
    (run.path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="not a run folder"):
        train(make_experiment(), cohort, run.path)
    with pytest.raises(RunError, match="not a run folder"):
        train(make_experiment(), cohort, run.path, resume=True)
    assert [path.name for path in run.path.iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_taken(cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder) -> None:
    run.path.mkdir()
    assert train(make_experiment(epochs=1), cohort, run.path).read_status()["state"] == "finished"


def test_resuming_a_finished_run_says_so_and_does_nothing(
    finished: Finished, make_experiment: MakeExperiment
) -> None:
    cohort, run = finished
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    told = Told()
    train(make_experiment(epochs=1), cohort, run.path, resume=True, progress=told)
    assert "finished; nothing to do" in told.lines[-1]
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()} == before


def test_resuming_with_another_experiment_shows_what_differs(
    finished: Finished, make_experiment: MakeExperiment
) -> None:
    cohort, run = finished
    changed = make_experiment(epochs=1, optimiser={"learning_rate": 0.5})
    with pytest.raises(RunError, match=r"training\.optimiser\.learning_rate: 0\.01 in the run, 0\.5 now"):
        train(changed, cohort, run.path, resume=True)


def test_resuming_on_another_cohort_is_refused(
    finished: Finished, make_cohort: MakeCohort, make_experiment: MakeExperiment
) -> None:
    _, run = finished
    with pytest.raises(RunError, match="fingerprint"):
        train(make_experiment(epochs=1), make_cohort("other", patients=24), run.path, resume=True)


def test_resume_starts_where_there_is_nothing(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    assert train(make_experiment(epochs=1), cohort, run.path, resume=True).weights.is_file()


def test_a_checkpoint_of_another_network_is_refused(
    finished: Finished, make_experiment: MakeExperiment
) -> None:
    cohort, run = finished
    run.write_status(state="interrupted")
    content = load_checkpoint(run.last_checkpoint)
    content["network"]["heads.classification.weight"] = torch.zeros(3, 16)
    save_checkpoint(run.last_checkpoint, content)
    with pytest.raises(WeightsError, match=r"classification\.weight: shape \(3, 16\) in the file, \(2, 16\)"):
        train(make_experiment(epochs=1), cohort, run.path, resume=True)


def test_two_processes_never_train_into_one_folder(
    finished: Finished, make_experiment: MakeExperiment
) -> None:
    cohort, run = finished
    run.write_status(state="running")
    with locked(run), pytest.raises(RunError, match="another process"):
        train(make_experiment(epochs=1), cohort, run.path, resume=True)


def test_patience_stops_and_the_best_epoch_is_kept(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    # Dice of a network that hardly moves: the first epoch stays the best.
    experiment = make_experiment(
        epochs=9, optimiser={"learning_rate": 1e-12}, selection={"metric": "dice", "patience": 2}
    )
    status = train(experiment, cohort, run.path).read_status()
    assert (status["state"], status["epoch"], status["best_epoch"]) == ("finished", 3, 1)


# --- what is refused before the folder is made ----------------------------------------------------------


def test_one_class_only_is_refused(
    make_cohort: MakeCohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    with pytest.raises(CohortError, match="'no'"):
        train(make_experiment(), make_cohort(labels=("no",)), run.path)
    assert not run.path.exists()


def test_a_single_case_is_refused(
    make_cohort: MakeCohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    with pytest.raises(CohortError, match="not fit to train on"):
        train(make_experiment(), make_cohort(patients=1, slices=1), run.path)
    assert not run.path.exists()


def test_of_many_findings_the_first_are_told(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = [Finding("refuse", "files", f"finding {number}") for number in range(25)]
    found = SimpleNamespace(refused=True, findings=findings)
    monkeypatch.setattr("threefold.training.plan.audit", lambda *_, **__: found)
    with pytest.raises(CohortError, match=r"finding 0\n(.*\n)+  finding 19\n  and 5 more\n`threefold check"):
        train(make_experiment(), cohort, run.path)


def test_a_missing_image_is_refused(cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder) -> None:
    cohort.cases[0].image.unlink()
    with pytest.raises(CohortError, match=cohort.cases[0].case_id):
        train(make_experiment(), cohort, run.path)
    assert not run.path.exists()


def test_a_metric_that_validation_can_not_give_is_refused(
    make_cohort: MakeCohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    cohort = make_cohort()
    one_sided = tuple(
        case if case.split != "validation" else replace(case, targets={**case.targets, "label": 0})
        for case in cohort.cases
    )
    cohort = Cohort(cohort.folder, cohort.spec, one_sided)
    with pytest.raises(CohortError, match=r"training\.selection\.metric is auc.*none is labelled 'yes'"):
        train(make_experiment(selection={"metric": "auc"}), cohort, run.path)
    assert not run.path.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts CPU cores")
def test_more_devices_than_there_are_is_a_usage_error(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    with pytest.raises(UsageError, match=r"training\.devices is 4096, but this machine has \d+ CPU core"):
        train(make_experiment(devices=4096), cohort, run.path)
    assert not run.path.exists()


def test_quarter_turns_of_a_grid_that_is_not_square_are_refused(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    data = {"preprocessing": {"size": [32, 48]}, "augmentation": {"quarter_turns": True}}
    with pytest.raises(ExperimentError, match="square"):
        train(make_experiment(data=data), cohort, run.path)


@pytest.mark.parametrize(
    ("preprocessing", "said"),
    [
        ({"size": [32, 32], "windows": ["brian"]}, "there is no window 'brian'"),
        ({"size": [32, 32], "windows": ["brain"]}, "the cohort's unit is grey"),
        ({"size": [32, 32], "windows": [[80, 0]]}, "expected low below high"),
        ({"size": [32, 32, 32]}, "takes images of 2 axes"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused_before_there_is_a_folder(
    cohort: Cohort,
    make_experiment: MakeExperiment,
    run: RunFolder,
    preprocessing: dict[str, Any],
    said: str,
) -> None:
    data = {"split": {"kind": "column"}, "preprocessing": preprocessing}
    with pytest.raises((ImageError, ExperimentError), match=re.escape(said)):
        train(make_experiment(data=data), cohort, run.path)
    assert not run.path.exists()


def test_the_current_folder_is_no_name_for_a_run(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(RunError, match="current folder"):
        train(make_experiment(), cohort, Path())


def test_initial_weights_that_are_not_there_are_refused(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder, tmp_path: Path
) -> None:
    weights = {"path": str(tmp_path / "swin.pth")}
    with pytest.raises(WeightsError, match=r"swin\.pth"):
        train(make_experiment(initial_weights=weights), cohort, run.path)
    assert not run.path.exists()


def test_initial_weights_are_where_training_starts(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    first = train(make_experiment(epochs=1), cohort, tmp_path / "first")
    told = Told()
    still = make_experiment(
        epochs=1, initial_weights={"path": str(first.path)}, optimiser={"learning_rate": 1e-30}, seed=5
    )
    second = train(still, cohort, tmp_path / "second", progress=told)
    start, end = load_file(first.weights), load_file(second.weights)
    assert all(torch.equal(start[name], end[name]) for name in start)
    assert any("weights loaded" in line for line in told.lines)


def test_weights_that_were_trained_on_test_cases_are_refused(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    def starting(weights: RunFolder, split: int) -> Experiment:
        data = {"split": {"kind": "patient", "seed": split}, "preprocessing": {"size": [32, 32]}}
        return make_experiment(epochs=1, initial_weights={"path": str(weights.path)}, data=data)

    first = train(make_experiment(epochs=1), cohort, tmp_path / "first")
    second = train(
        make_experiment(epochs=1, initial_weights={"path": str(first.path)}), cohort, tmp_path / "second"
    )
    # Also those that the weights themselves started from.
    second.settings.unlink()
    write_split(second.split, Split("column", {case.case_id: "test" for case in cohort.cases}))
    for weights in (first, second):
        with pytest.raises(RunError, match=r"first: trained or selected .* test cases"):
            train(starting(weights, 1), cohort, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    other = Cohort(cohort.folder, cohort.spec.model_copy(update={"name": "other"}), cohort.cases)
    told = Told()
    train(starting(first, 1), other, tmp_path / "fourth", progress=told)
    assert any("cases of another cohort with the names" in line for line in told.lines)


def test_a_parent_that_can_not_hold_the_folder_is_named(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="can't be made"):
        train(make_experiment(), cohort, tmp_path / "file" / "run")


# --- what stops a training ------------------------------------------------------------------------------


class Poison:
    """From its second visit on, one case holds a NaN when it reaches the network; `active` switches it."""

    case_id = "p02-1"

    def __init__(self) -> None:
        self.active, self._visits = True, 0

    def __call__(self, batch: Batch, parameters: AugmentationParameters) -> Batch:
        out = augment(batch, parameters)
        if self.active and self.case_id in batch.case_ids:
            if self._visits:
                out.image[batch.case_ids.index(self.case_id)] = torch.nan
            self._visits += 1
        return out


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    poison = Poison()
    monkeypatch.setattr(loop, "augment", poison)
    return poison


AUGMENTED = {
    "split": {"kind": "column"},
    "preprocessing": {"size": [32, 32]},
    "augmentation": {"flip": 0.5, "quarter_turns": True, "rotation": 10},
}


def test_a_non_finite_loss_names_task_and_case_and_leaves_the_run_resumable(
    cohort: Cohort,
    make_experiment: MakeExperiment,
    tmp_path: Path,
    run: RunFolder,
    poison: Poison,
) -> None:
    experiment = make_experiment(epochs=3, data=AUGMENTED)
    with pytest.raises(TrainingError, match=f"epoch 2.*reconstruction: {poison.case_id}"):
        train(experiment, cohort, run.path)
    status = run.read_status()
    assert (status["state"], status["epoch"]) == ("failed", 1)
    assert poison.case_id in status["message"]

    poison.active = False
    train(experiment, cohort, run.path, resume=True)
    unbroken = train(experiment, cohort, tmp_path / "unbroken")
    assert run.weights.read_bytes() == unbroken.weights.read_bytes()


def test_a_full_disk_at_checkpoint_time_loses_one_epoch_at_most(
    cohort: Cohort,
    make_experiment: MakeExperiment,
    tmp_path: Path,
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = make_experiment(epochs=3)
    resource = pytest.importorskip("resource", reason="limits the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = loop.save_checkpoint

    def save(path: Path, content: Any) -> None:
        if content["epoch"] == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        real(path, content)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(loop, "save_checkpoint", save)
            with pytest.raises(ThreefoldError, match="could not be written"):
                train(experiment, cohort, run.path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(run.last_checkpoint)["epoch"] == 1
    assert run.read_status()["state"] == "failed"
    train(experiment, cohort, run.path, resume=True)
    unbroken = train(experiment, cohort, tmp_path / "unbroken")
    assert run.weights.read_bytes() == unbroken.weights.read_bytes()


def test_the_network_before_is_trained_first_and_its_encoder_adopted(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    small = {"embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}
    experiment = make_experiment(
        epochs=1,
        pretrain="hematoma/swin-unet-seg",
        network={"kind": "joint-swin", "encoder": small},
        tasks={"classification": {}},
    )
    train(experiment, cohort, run.path)
    before = RunFolder(run.path / "pretrain")
    assert before.read_status()["state"] == "finished"
    assert read_split(before.split) == read_split(run.split)
    first, joint = load_file(before.weights), load_file(run.weights)
    adopted = {name: value for name, value in joint.items() if name.startswith("frozen.")}
    assert adopted
    for name, value in adopted.items():
        assert torch.equal(value, first[name.replace("frozen.", "encoder.")])


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_a_compiled_network_trains_as_the_plain_one(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_eagerly(module: torch.nn.Module, **options: Any) -> None:
        compiled.append(type(module).__name__)
        in_place(module, backend="eager", **options)  # the same graphs, without minutes of code generation

    in_place = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    weights = [
        load_file(train(make_experiment(epochs=1, compile=on), cohort, tmp_path / str(on)).weights)
        for on in (False, True)
    ]
    assert compiled == ["SwinUnet"]
    for name, plain in weights[0].items():
        torch.testing.assert_close(weights[1][name], plain, rtol=1e-4, atol=1e-5)


def test_bf16_uncertainty_and_adamw_train_too(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder
) -> None:
    experiment = make_experiment(
        epochs=1,
        precision="bf16",
        balancing={"method": "uncertainty"},
        optimiser={"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine", "clip_norm": 1.0},
    )
    train(experiment, cohort, run.path)
    assert {value.dtype for value in load_file(run.weights).values()} <= {
        torch.float32,
        torch.int64,
        torch.bool,
    }


def test_reader_processes_change_nothing(
    cohort: Cohort, make_experiment: MakeExperiment, tmp_path: Path
) -> None:
    data = {**AUGMENTED, "cache": "none"}
    files = [
        train(
            make_experiment(epochs=2, data={**data, "workers": workers}), cohort, tmp_path / str(workers)
        ).weights.read_bytes()
        for workers in (0, 2)
    ]
    assert files[0] == files[1]


def test_want_of_memory_says_what_to_lower(
    cohort: Cohort, make_experiment: MakeExperiment, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(loop, "augment", exhaust)
    with pytest.raises(TrainingError, match=r"not enough memory.*training\.batch_size"):
        train(make_experiment(data=AUGMENTED), cohort, run.path)


@pytest.mark.parametrize(("cores", "expected"), [(8, 2), (1, 1)])
def test_a_run_goes_on_with_the_threads_that_it_began_with(
    cohort: Cohort,
    make_experiment: MakeExperiment,
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    cores: int,
    expected: int,
) -> None:
    computing: list[int] = []

    def stop(*_: object) -> None:
        computing.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "_train_stages", stop)
    monkeypatch.setattr(folder, "available_cores", lambda: cores)
    told, before = Told(), torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        train(make_experiment(), cohort, run.path)
    known = json.loads(run.environment.read_text(encoding="utf-8"))
    run.environment.write_text(json.dumps({**known, "threads": 2}))
    with pytest.raises(KeyboardInterrupt):
        train(make_experiment(), cohort, run.path, resume=True, progress=told)
    assert computing == [1, expected]
    assert torch.get_num_threads() == before == known["threads"] == 1
    assert any("began with 2 threads, but only 1 core(s) are available" in line for line in told.lines) == (
        cores == 1
    )
