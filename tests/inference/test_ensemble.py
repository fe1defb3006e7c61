"""Several networks asked as one: their mean, how far they are apart, and one network's weights at a time."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from torch import nn

import threefold as tf
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.splits import Split, write_split
from threefold.cohorts.trained_on import trained_on_together
from threefold.errors import RunError, ThreefoldError, UsageError
from threefold.experiment import Experiment
from threefold.images.writing import write_nifti
from threefold.inference import engine, ensemble, predictor
from threefold.inference.engine import result_of
from threefold.inference.ensemble import mirrorings
from threefold.inference.predictor import Predictor
from threefold.run import RunFolder
from threefold.runs.ensembles import EnsembleFolder, load_predictor, make_ensemble

from .conftest import AFFINE, SHAPE, make_experiment, make_slice, make_spec, make_trained_on, write_run


def _network(folder: RunFolder, seed: int) -> RunFolder:
    """Give a run other weights, in which the head speaks up."""
    import safetensors.torch
    import torch

    torch.manual_seed(seed)
    state = safetensors.torch.load_file(folder.weights)
    made = {name: torch.randn_like(value) * value.std() + value.mean() for name, value in state.items()}
    safetensors.torch.save_file({n: v.nan_to_num() for n, v in made.items()}, folder.weights)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("members")
    thresholds = (0.2, 0.3, 0.7)
    made = [
        _network(write_run(home / f"m{seed}", make_experiment(), make_spec(), threshold), seed)
        for seed, threshold in enumerate(thresholds)
    ]
    for run in made:
        write_split(run.split, Split("patient", {"case0": "train"}))
    return [run.path for run in made]


@pytest.fixture(scope="module")
def together(runs: list[Path]) -> Path:
    return make_ensemble(runs, runs[0].parent / "together").path


def _answers(run: Path, image: Path) -> tuple[Any, Any]:
    """Return what a run alone says of an image, on its grid."""
    one = Predictor.from_run(run)
    listing = predictor.find_sources([image])
    (prepared,) = one._prepared(listing.sources, None, 16, "refuse", None, None)
    ((_, answer),) = engine.ask_network(one.network, [prepared], one.questions, device="cpu", batch_size=1)
    return prepared, answer


def test_probabilities_and_masks_are_the_mean_of_the_members(
    runs: list[Path], together: Path, images: Path
) -> None:
    (prediction,) = tf.load_run(together).predict(images / "a.nii.gz")
    alone = [_answers(run, images / "a.nii.gz") for run in runs]
    expected = np.mean([answer.arrays["classification"] for _, answer in alone], axis=0)
    assert [*prediction.probabilities.values()] == pytest.approx(expected)
    assert prediction.decision == ("yes" if expected[1] >= 0.4 else "no")
    arrays = {"segmentation": np.mean([answer.arrays["segmentation"] for _, answer in alone], axis=0)}
    prepared, _ = alone[0]
    (question,) = (one for one in Predictor.from_run(runs[0]).questions if one.head == "segmentation")
    mask = result_of(engine.Answer(arrays), prepared, [question]).labels["segmentation"]
    assert prediction.mask is not None
    np.testing.assert_array_equal(prediction.mask, mask)
    assert mask.any()
    assert not mask.all()


def test_how_far_the_members_are_apart(runs: list[Path], together: Path, images: Path) -> None:
    (prediction,) = tf.load_run(together).predict(images / "a.nii.gz")
    alone = [_answers(run, images / "a.nii.gz")[1].arrays for run in runs]
    chances = np.array([each["classification"] for each in alone])

    def entropy(p: np.ndarray) -> float:
        return float(-(p * np.log(p)).sum())

    apart = entropy(chances.mean(0)) - np.mean([entropy(p) for p in chances])
    assert prediction.members["member_disagreement"] == pytest.approx(apart)
    assert apart > 1e-4
    decided = [p[1] >= threshold for p, threshold in zip(chances, (0.2, 0.3, 0.7), strict=True)]
    most = max(sum(decided), 3 - sum(decided)) / 3
    assert prediction.members["member_agreement"] == pytest.approx(most)
    a, b, c = (each["segmentation"].argmax(0) > 0 for each in alone)
    dice = np.mean([2 * (x & y).sum() / (x.sum() + y.sum()) for x, y in ((a, b), (a, c), (b, c))])
    assert prediction.members["member_dice"] == pytest.approx(dice)
    assert dice < 1


def test_one_network_is_held_at_a_time(
    together: Path, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ensemble, "HELD", 1)  # each batch by itself, so each member is loaded again and again
    alive: list[weakref.ref[nn.Module]] = []
    build = predictor.build_network

    def counted(*given: Any) -> nn.Module:
        if any(one() is not None for one in alive):
            gc.collect()
        assert [one for one in alive if one() is not None] == []
        network = build(*given)
        alive.append(weakref.ref(network))
        return network

    monkeypatch.setattr(predictor, "build_network", counted)
    found = tf.load_run(together).predict([images], tmp_path / "out")
    assert len(found) == 7
    # When they are read, and for each pass: a picture, the slices of a volume, a picture.
    assert len(alive) == 3 + 3 * 3


def test_chunks_do_not_change_an_answer(
    together: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tf.load_run(together).predict([images])
    monkeypatch.setattr(ensemble, "HELD", 1)
    for one, again in zip(whole, tf.load_run(together).predict([images]), strict=True):
        assert one.case_id == again.case_id
        assert one.probabilities == again.probabilities
        assert one.members == again.members


def test_mirror_images_are_those_of_the_recipe(tmp_path: Path, images: Path) -> None:
    experiment = make_experiment()
    assert mirrorings(experiment) == ((),)
    augmentation = experiment.data.augmentation.model_copy(update={"flip": (0.0, 0.5)})
    data = experiment.data.model_copy(update={"augmentation": augmentation})
    flipping = experiment.model_copy(update={"data": data})
    assert mirrorings(flipping) == ((), (1,))
    run = write_run(tmp_path / "flipping", flipping, make_spec(), 0.3).path
    mirrored = make_slice(1)[::-1]  # the columns of the network's grid: from right to left
    write_nifti(tmp_path / "mirrored.nii.gz", mirrored, AFFINE)
    (one,) = tf.load_run(run).predict(images / "a.nii.gz", flips=True)
    (other,) = tf.load_run(run).predict(tmp_path / "mirrored.nii.gz", flips=True)
    plain = [
        tf.load_run(run).predict(path)[0] for path in (images / "a.nii.gz", tmp_path / "mirrored.nii.gz")
    ]
    assert one.probabilities["yes"] == pytest.approx(other.probabilities["yes"], abs=1e-6)
    assert one.probabilities["yes"] == pytest.approx(
        np.mean([p.probabilities["yes"] for p in plain]), abs=1e-6
    )
    assert one.mask is not None
    assert other.mask is not None
    np.testing.assert_array_equal(one.mask, other.mask[::-1])
    still = write_run(tmp_path / "still", experiment, make_spec(), 0.3).path
    with pytest.raises(UsageError, match="trained without mirror images"):
        tf.load_run(still).predict(images / "a.nii.gz", flips=True)


def test_members_of_other_grids_meet_on_the_images_own(
    runs: list[Path], tmp_path: Path, images: Path
) -> None:
    preprocessing = {"size": [28, 42]}
    content = make_experiment(classification={}, segmentation={}).model_dump()
    smaller = Experiment.model_validate(
        {**content, "data": {**content["data"], "preprocessing": preprocessing}}
    )
    other = _network(write_run(tmp_path / "other", smaller, make_spec(), 0.3), 7).path
    made = make_ensemble([runs[0], other], tmp_path / "mixed").path
    predicting = load_predictor(made, maps=True)
    (prediction,) = predicting.predict(images / "a.nii.gz")
    alone = [_answers(run, images / "a.nii.gz") for run in (runs[0], other)]
    restored = [
        np.stack(
            [engine.restore(label, one.placement, order="linear") for label in answer.arrays["segmentation"]]
        )
        for one, answer in alone
    ]
    assert prediction.mask is not None
    assert prediction.mask.shape == SHAPE
    np.testing.assert_array_equal(prediction.mask, np.mean(restored, axis=0).argmax(0))
    entropies = [-(p * np.log(p)).sum(0) for p in (np.mean(restored, axis=0), *restored)]
    expected = entropies[0] - np.mean(entropies[1:], axis=0)
    np.testing.assert_allclose(prediction.disagreement["segmentation"], expected, atol=1e-6)
    assert expected.max() > 1e-4


def test_a_map_of_disagreement_is_zero_where_members_agree(
    runs: list[Path], tmp_path: Path, images: Path
) -> None:
    (prediction,) = load_predictor(make_ensemble(runs[:2], tmp_path / "two").path, maps=True).predict(
        images / "a.nii.gz"
    )
    apart = prediction.disagreement["segmentation"]
    assert apart.shape == SHAPE
    assert apart.dtype == np.float32
    assert 0 <= apart.min() < apart.max() <= np.log(2)
    with pytest.raises(UsageError, match="one run, which has no members"):
        load_predictor(runs[0], maps=True)


def test_maps_of_disagreement_are_written_on_the_images_grid(
    together: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    volume = np.stack([make_slice(10 + k) if k != 2 else np.zeros(SHAPE, np.int16) for k in range(5)], -1)
    write_nifti(images / "volume.nii.gz", volume, AFFINE)  # one of whose slices shows nothing
    found = tf.load_run(together).predict([images], out, disagreement_maps=True)
    assert [one.case_id for one in found if not one.probabilities] == ["volume#2"]
    table = pd.read_csv(out / "predictions.csv").set_index("case_id")
    for prediction in found:
        image = nibabel.load(out / table.loc[prediction.case_id, "disagreement"])
        assert image.get_data_dtype() == np.uint16
        values, apart = image.get_fdata(), prediction.disagreement["segmentation"]
        if prediction.slice_index is not None:
            assert values.shape == (*SHAPE, 5)
            values = values[..., prediction.slice_index]
        np.testing.assert_allclose(values.reshape(SHAPE), apart, atol=1e-5)
        np.testing.assert_allclose(image.affine[:2, :2], AFFINE[:2, :2])
    assert sorted(path.name for path in (out / "disagreement").iterdir()) == [
        "a.nii.gz",
        "below_b.nii.gz",
        "volume.nii.gz",
    ]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    assert tf.load_run(together).predict([images], out, disagreement_maps=True) == []
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")} == before


def test_what_is_refused(runs: list[Path], together: Path, tmp_path: Path) -> None:
    def refused(*members: Path, out: Path = tmp_path / "out") -> str:
        with pytest.raises(ThreefoldError) as error:
            make_ensemble(members, out)
        assert out == runs[0] or not out.exists()
        return str(error.value)

    assert "at least two runs" in refused(runs[0])
    assert "named twice" in refused(runs[0], runs[1], runs[0])
    assert "not a run folder" in refused(runs[0], tmp_path)
    classes = write_run(tmp_path / "classes", make_experiment(), make_spec(positive="no"), 0.3).path
    said = refused(runs[0], classes)
    assert "classes: the target of task classification is label (no, yes; positive no)" in said
    assert "positive yes" in said
    assert "same targets, classes and units" in said
    grey = write_run(tmp_path / "grey", make_experiment(), make_spec("grey"), 0.3).path
    assert "the intensity unit is grey, but" in refused(runs[0], grey)
    alone = write_run(tmp_path / "alone", make_experiment(classification={}), make_spec(), 0.3).path
    assert "the target of task segmentation is none" in refused(runs[0], alone)
    assert "exists and is not empty" in refused(*runs, out=runs[0])
    assert make_ensemble(runs, together).path == together  # repeated
    nested = make_ensemble(
        [together, _network(_copy(runs[0], tmp_path / "new"), 9).path], tmp_path / "nested"
    )
    assert len(nested.members()) == 4


def _copy(run: Path, to: Path) -> RunFolder:
    import shutil

    shutil.copytree(run, to)
    return RunFolder(to)


def test_members_are_named_by_path_and_checksum(runs: list[Path], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    members = [_copy(run, home / run.name).path for run in runs[:2]]
    elsewhere = _copy(runs[2], tmp_path / "elsewhere").path
    made = make_ensemble([*members, elsewhere], home / "together")
    named = [member["path"] for member in json.loads(made.file.read_text())["members"]]
    assert named == ["../m0", "../m1", elsewhere.as_posix()]
    home.rename(tmp_path / "moved")
    moved = EnsembleFolder(tmp_path / "moved" / "together")
    assert [run.path.name for run in moved.members()] == ["m0", "m1", "elsewhere"]
    _network(RunFolder(tmp_path / "moved" / "m1"), 8)
    with pytest.raises(
        RunError, match=r"m1: is not the run that .*ensemble.json was made of: expected SHA-256"
    ):
        load_predictor(moved.path)
    (tmp_path / "moved" / "m1" / "status.json").unlink()
    with pytest.raises(RunError, match=r"its member ../m1 is not a run any more"):
        tf.load_run(moved.path)
    moved.file.write_text(moved.file.read_text().replace("../m0", "../m2"))
    with pytest.raises(RunError, match="is not what was written"):
        tf.load_run(moved.path)


def test_a_run_alone_and_an_ensemble_are_loaded_alike(runs: list[Path], together: Path) -> None:
    assert [run.path.name for run in tf.load_run(together).members] == ["m0", "m1", "m2"]
    assert [run.path for run in tf.load_run(runs[0]).members] == [runs[0]]
    with pytest.raises(RunError, match="is an ensemble, which `predict`, `evaluate` and `report` take"):
        tf.load_run(together).experiment  # noqa: B018


def test_evaluated_on_a_cohort(together: Path, make_cohort: Callable[..., Cohort]) -> None:
    cohort = make_cohort()
    results = tf.load_run(together).evaluate(cohort)
    assert set(results.table["metric"]) >= {"auc", "dice", "psnr"}
    table = pd.read_csv(together / "evaluations" / "cohort" / "predictions.csv")
    assert table["member_agreement"].between(0.5, 1).all()
    apart = int((table["member_agreement"] < 1).sum())
    said = f"The members of the ensemble decide differently on {apart} of 6 cases"
    assert any(note.startswith(said) for note in results.evaluation.notes)
    predicted = {one.case_id: one for one in tf.load_run(together).predict(cohort)}
    for _, row in table.iterrows():
        assert row["probability_yes"] == pytest.approx(predicted[row["case_id"]].probabilities["yes"])


def test_trained_on_together_is_the_whole_of_the_ranges() -> None:
    one = make_trained_on(make_spec(), modalities={"CT": 3}, tilt_degrees=None)
    two = make_trained_on(
        make_spec(), modalities={"CT": 1, "MR": 2}, spacing_mm=[(0.2, 0.7)] * 2, tilt_degrees=(1, 2)
    )
    both = trained_on_together([one, two])
    assert both is not None
    assert both.spacing_mm == ((0.2, 1.0), (0.2, 1.0))
    assert both.modalities == {"CT": 4, "MR": 2}
    assert both.cases == 8
    assert both.tilt_degrees == (1.0, 2.0)
    assert trained_on_together([one, None]) is None
