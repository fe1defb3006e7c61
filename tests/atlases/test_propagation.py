"""Propagation from end to end: better than affine, resumable, failures flagged, nothing overwritten."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from threefold.atlases import propagation
from threefold.atlases.propagation import propagate
from threefold.atlases.quality import deviations, dice_of, doubts, failures, field_quality, region_dice
from threefold.atlases.refinement import Pair, refine
from threefold.atlases.spec import FailureSpec, PropagationSpec
from threefold.atlases.training import train_registration
from threefold.audits.audit import audit
from threefold.cohorts.cohort import AtlasSpec, read_cohort
from threefold.errors import CohortError, TrainingError, WeightsError
from threefold.images.reading import read_label_map
from threefold.images.writing import write_nifti

TINY: dict[str, Any] = {"channels": (4, 6, 6, 6), "final_channels": (4,)}
QUICK = PropagationSpec(
    size=(20, 20, 20), affine_steps=12, epochs=2, refinement_steps=8, smoothness_weight=0.3, window=5, **TINY
)
PLAIN = QUICK.model_copy(update={"epochs": 0})


def quality(folder: Path) -> dict[str, dict[str, str]]:
    with (folder / "quality.csv").open(newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}


def labels_of(path: Path | None) -> NDArray[Any]:
    assert path is not None
    return np.asarray(read_label_map(path).array)


def test_labels_are_better_than_affine_and_lie_on_the_image(
    make_cohort: Any, bodies: SimpleNamespace, tmp_path: Path
) -> None:
    cohort, seen = make_cohort(), []
    out = tmp_path / "out"
    made = propagate(cohort, out, QUICK, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(number, 12) for number in range(1, 13)]  # 3 alignments, 2 epochs of 3, 3 cases
    rows = quality(out)
    for case in made.cases:
        row = rows[case.case_id]
        assert float(row["dice"]) > float(row["dice_affine"]) > float(row["dice_unregistered"])
        assert float(row["dice"]) > 0.85
        assert float(row["mask_dice"]) > float(row["mask_dice_affine"])
        assert float(row["correlation"]) > float(row["correlation_affine"])
        assert row["folding_voxels"] == "0"
        assert case.extra == {"atlas": "mean", "registration": "ok"}
        labels = read_label_map(case.structures)
        np.testing.assert_allclose(labels.affine, bodies.of[case.case_id].affine, atol=1e-5)
        truth = bodies.of[case.case_id].labels()
        dice = dice_of(np.asarray(labels.array, np.uint8), truth, cohort.spec.structures)
        for name, value in dice.items():
            assert float(row[f"dice {name}"]) == pytest.approx(value, abs=1e-5)
    assert not any(finding.severity == "error" for finding in audit(made).findings)
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["cases"] == {
        "propagated": ["one", "three", "two"],
        "check": [],
        "failed": [],
        "kept": [],
        "left out": {},
    }
    assert provenance["atlases"][0]["name"] == "mean"
    assert len(provenance["weights_sha256"]) == 64
    assert PropagationSpec(**provenance["propagation"]) == QUICK
    state = load_file(out / "registration" / "weights.safetensors")
    assert state["unet.out.weight"].shape == (3, 4, 3, 3, 3)
    assert not (out / "progress").exists()
    assert made.spec.columns["registration"].startswith("ok, check")


def test_a_finished_propagation_is_read_and_another_refused(make_cohort: Any, tmp_path: Path) -> None:
    cohort, out = make_cohort(), tmp_path / "out"
    made = propagate(cohort, out, PLAIN)
    stamp = (out / "cases.csv").stat().st_mtime_ns
    assert propagate(cohort, out, PLAIN) == made
    assert (out / "cases.csv").stat().st_mtime_ns == stamp
    with pytest.raises(CohortError, match=r"by its provenance.json is not this propagation"):
        propagate(cohort, out, QUICK)
    assert "weights_sha256" in json.loads((out / "provenance.json").read_text())
    assert not (out / "registration").exists()


def test_a_killed_propagation_goes_on_and_ends_the_same(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort = make_cohort()
    whole = propagate(cohort, tmp_path / "whole", QUICK)

    class Killed(BaseException):
        pass

    def kill_at(step: int) -> Any:
        def progress(done: int, total: int) -> None:
            if done == step:
                raise Killed

        return progress

    out, aligned = tmp_path / "out", []
    align = propagation.align
    monkeypatch.setattr(propagation, "align", lambda *a, **k: aligned.append(1) or align(*a, **k))
    for step in (2, 7, 11):  # while aligning, in the second epoch, at the second case
        with pytest.raises(Killed):
            propagate(cohort, out, QUICK, progress=kill_at(step))
        assert not out.exists()
    made = propagate(cohort, out, QUICK)
    assert len(aligned) == 3
    for name in ("quality.csv", "cases.csv", "registration/weights.safetensors", "structures/two.nii.gz"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert [case.structures is not None for case in made.cases] == [True] * 3
    assert len(whole.cases) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failed_registration_has_no_structures(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    rng = np.random.default_rng(0)
    header = read_label_map(cohort.cases[1].mask)
    noise = rng.normal(size=header.array.shape).astype(np.float32)
    write_nifti(cohort.cases[1].image, noise, header.affine)
    spec = PLAIN.model_copy(update={"failure": FailureSpec(min_mask_dice=0.7)})
    made = propagate(cohort, tmp_path / "out", spec)
    states = {case.case_id: case.extra["registration"] for case in made.cases}
    assert states == {"one": "ok", "two": "failed", "three": "ok"}
    assert made.cases[1].structures is None
    assert not (tmp_path / "out" / "structures" / "two.nii.gz").exists()
    reason = quality(tmp_path / "out")["two"]["reason"]
    assert reason.startswith("Dice with the mask 0.")
    assert "below 0.7" in reason
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["cases"]["failed"] == ["two"]


def test_a_field_that_is_not_finite_fails(
    make_cohort: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagation, "refine", lambda pair, start, spec: pair.fixed[:, [0] * 3] * np.nan)
    made = propagate(make_cohort(), tmp_path / "out", PLAIN)
    assert {row["reason"] for row in quality(tmp_path / "out").values()} == {"the registration is not finite"}
    assert not any(case.structures for case in made.cases)


def test_a_network_needs_cases_to_train_on(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(rows={name: {"split": "test"} for name in ("one", "two", "three")})
    with pytest.raises(CohortError, match="every case is of the test part"):
        propagate(cohort, tmp_path / "out", QUICK)


def test_given_structures_are_kept(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(rows={"one": {"structures": "reference/one.nii.gz"}})
    made = propagate(cohort, tmp_path / "out", PLAIN)
    assert np.array_equal(labels_of(made.cases[0].structures), labels_of(cohort.cases[0].reference))
    assert made.cases[0].extra == {"atlas": "", "registration": ""}
    assert list(quality(tmp_path / "out")) == ["two", "three"]


def test_files_can_stay_where_they_are(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    made = propagate(cohort, tmp_path / "out", PLAIN, copy=False)
    assert [case.image for case in made.cases] == [case.image for case in cohort.cases]
    assert not (tmp_path / "out" / "images").exists()
    with pytest.raises(CohortError, match="leaves the cohort's folder"):
        read_cohort(tmp_path / "out")
    assert read_cohort(tmp_path / "out", allow_outside=True) == made


def test_of_several_atlases_the_one_that_fits_best_is_taken(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    good = cohort.spec.atlases[0]
    rng = np.random.default_rng(1)
    labels = read_label_map(cohort.folder / good.structures)
    write_nifti(
        cohort.folder / "atlases" / "noise.nii.gz",
        rng.normal(size=labels.array.shape).astype(np.float32),
        labels.affine,
    )
    noise = AtlasSpec(name="a/noise", image="atlases/noise.nii.gz", structures=good.structures)
    spec = cohort.spec.model_copy(update={"atlases": (noise, good)})
    both = type(cohort)(cohort.folder, spec, cohort.cases)
    voting = PLAIN.model_copy(update={"fusion": "vote"})  # in which noise has no say
    made = propagate(both, tmp_path / "out", voting, copy=False)
    assert {case.extra["atlas"] for case in made.cases} == {"mean"}
    alone = propagate(both, tmp_path / "alone", PLAIN, atlases=["a/noise"], copy=False)
    assert {case.extra["atlas"] for case in alone.cases} <= {"a/noise"}


def test_masks_of_the_test_part_do_not_steer(make_cohort: Any, tmp_path: Path) -> None:
    spec = PLAIN.model_copy(update={"mask_weight": 1.0})
    cohort = make_cohort(rows={"one": {"split": "train"}, "two": {"split": "test"}})
    with_mask, without = tmp_path / "with", tmp_path / "without"
    propagate(cohort, with_mask, spec)
    propagate(cohort, without, PLAIN)
    for case, same in (("one", False), ("two", True)):
        found = [(out / "structures" / f"{case}.nii.gz").read_bytes() for out in (with_mask, without)]
        assert (found[0] == found[1]) is same
    named = tmp_path / "named"
    propagate(make_cohort(), named, spec, held_out=["one", "two", "three"])
    assert {row["mask_steered"] for row in quality(named).values()} == {"no"}
    assert {row["mask_steered"] for row in quality(with_mask).values()} == {"yes", "no"}


def test_a_cohort_that_awaits_propagation_is_not_refused_for_it(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort(rows={"two": {"label": "B"}})
    before = audit(cohort)
    assert not before.refused
    assert [f.message for f in before.findings if "propagate" in f.message] == [
        "No case has structures yet; the atlases mean have. `threefold propagate` transfers them."
    ]
    assert audit(cohort, targets=["structures"]).refused
    after = audit(propagate(cohort, tmp_path / "out", PLAIN))
    assert not any("propagate" in finding.message for finding in after.findings)


def test_a_trained_network_serves_the_next_propagation(make_cohort: Any, tmp_path: Path) -> None:
    cohort = make_cohort()
    propagate(cohort, tmp_path / "first", QUICK)
    weights = tmp_path / "first" / "registration" / "weights.safetensors"
    spec = QUICK.model_copy(update={"epochs": 0, "weights": str(weights)})
    propagate(cohort, tmp_path / "second", spec)
    first, second = (quality(tmp_path / name)["one"] for name in ("first", "second"))
    assert first == second
    broken = spec.model_copy(update={"channels": (4, 8)})
    with pytest.raises(WeightsError, match=r"weights.safetensors: does not fit channels \[4, 8\]"):
        propagate(cohort, tmp_path / "third", broken)
    weights.write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="safetensors"):
        propagate(cohort, tmp_path / "third", spec)
    assert not (tmp_path / "third").exists()


def pairs(count: int = 3) -> list[Pair]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        size = (16, 14, 16 + 2 * number)
        coarse = torch.rand(2, 1, 5, 5, 5, generator=generator)
        fixed, moving = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")[:, None].unbind()
        made.append(Pair(fixed, moving))
    return made


def test_training_lowers_the_loss_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    spec = PropagationSpec(size=(16, 16, 16), epochs=4, window=5, learning_rate=5e-3, **TINY)
    whole = train_registration(pairs(), spec, tmp_path / "whole.ckpt", lambda: None)
    half = spec.model_copy(update={"epochs": 2})
    train_registration(pairs(), half, tmp_path / "half.ckpt", lambda: None)
    steps: list[int] = []
    resumed = train_registration(pairs(), spec, tmp_path / "half.ckpt", lambda: steps.append(1))
    assert len(steps) == 12
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    (tmp_path / "half.ckpt").write_bytes(b"broken")
    with pytest.raises(WeightsError, match="is damaged"):
        train_registration(pairs(), spec, tmp_path / "half.ckpt", lambda: None)


def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path) -> None:
    broken = [Pair(pair.fixed * float("nan"), pair.moving) for pair in pairs(1)]
    with pytest.raises(TrainingError, match=r"loss is nan in epoch 1. Lower learning_rate"):
        train_registration(
            broken, PropagationSpec(size=(16, 16, 16), epochs=1, **TINY), tmp_path / "x", lambda: None
        )


@pytest.mark.parametrize("diffeomorphic", [True, False])
@pytest.mark.parametrize("smoothness", ["diffusion", "bending"])
def test_refinement_starts_from_a_prediction_and_improves_on_it(diffeomorphic: bool, smoothness: str) -> None:
    pair = pairs(1)[0]
    spec = PropagationSpec(
        diffeomorphic=diffeomorphic,
        smoothness=smoothness,  # type: ignore[arg-type]
        refinement_steps=15,
        window=5,
        smoothness_weight=0.1,
    )
    start = 0.5 * torch.ones(1, 3, *pair.fixed.shape[2:])

    def fit(displacement: torch.Tensor) -> float:
        warped = propagation.warp(pair.moving, displacement, outside="border")
        return propagation.correlation_of(warped, pair.fixed, 5)

    still = spec.model_copy(update={"refinement_steps": 0})
    assert torch.equal(refine(pair, None, still), torch.zeros_like(start))
    assert fit(refine(pair, start, still)) < fit(refine(pair, start, spec))
    assert fit(torch.zeros_like(start)) < fit(refine(pair, None, spec))


def test_the_mask_pulls_where_the_images_are_flat() -> None:
    flat = torch.full((1, 1, 16, 16, 16), 0.5)
    region, mask = torch.zeros_like(flat), torch.zeros_like(flat)
    region[..., 4:9, 4:9, 4:9] = 1
    mask[..., 6:11, 4:9, 4:9] = 1
    spec = PropagationSpec(refinement_steps=30, smoothness_weight=0.05, mask_weight=1.0)

    def overlap(displacement: torch.Tensor) -> float:
        warped = propagation.warp(region, displacement) > 0.5
        return region_dice(warped.numpy().astype(np.uint8), mask.numpy().astype(np.uint8))

    moved = refine(Pair(flat, flat, region, mask), None, spec)
    assert overlap(torch.zeros_like(moved)) == pytest.approx(0.6)
    assert overlap(moved) > 0.9
    assert refine(Pair(flat, flat), None, spec).abs().max() == 0


def test_quality_counts_what_it_says() -> None:
    field = torch.zeros(1, 3, 8, 8, 8)
    assert field_quality(field) == {"folding_voxels": 0, "folding_share": 0.0, "log_jacobian_sd": 0.0}
    field[0, 0] = -2.0 * torch.arange(8.0)[:, None, None]  # the first axis runs backwards
    assert field_quality(field)["folding_share"] == 1.0
    labels = np.array([0, 1, 1, 2, 2, 2], np.uint8)
    truth = np.array([1, 1, 0, 2, 2, 0], np.uint8)
    assert dice_of(labels, truth, ("a", "b", "c")) == {"a": 0.5, "b": 0.8}
    assert region_dice(labels, truth) == pytest.approx(2 * 3 / 9)
    assert np.isnan(region_dice(labels, np.zeros_like(truth)))


def test_every_limit_of_the_failure_rule_is_said() -> None:
    good = {
        "correlation": 0.5,
        "correlation_affine": 0.4,
        "folding_share": 0.0,
        "mask_dice": 0.8,
        "score": 0.1,
        "volume_change": 0.2,
    }
    labels, rule = np.ones(3, np.uint8), FailureSpec()
    assert failures(good, labels, rule) == doubts(good, rule) == []
    assert failures({**good, "score": 0.95}, labels, rule) == ["probability of failure 0.95, above 0.9"]
    assert doubts({**good, "volume_change": np.log(5)}, rule) == [
        "a structure's volume changed by a factor of 5.0 more than all"
    ]
    assert doubts({**good, "inverse_error": 0.7}, rule) == [
        "aligned the other way around, it lies elsewhere (inverse_error 0.70)"
    ]
    assert doubts({**good, "agreement": 0.3}, rule) == ["the atlases agree with a Dice of 0.30 only"]
    assert doubts({**good, "start": "mirrored"}, rule)[0].startswith("only mirrored does the image fit")
    assert failures({**good, "mask_dice": 0.1}, labels, rule) == ["Dice with the mask 0.100, below 0.3"]
    assert failures({**good, "folding_share": 0.5}, labels, rule) == [
        "50.00% of the voxels fold, above 1.00%"
    ]
    assert failures({**good, "correlation": 0.3}, labels, rule) == [
        "local correlation changed by -0.100, below -0.02"
    ]
    assert failures(good, 0 * labels, rule) == ["no propagated label lies in the image"]
    assert failures({**good, "correlation": np.nan}, labels, rule) == ["the registration is not finite"]


def test_a_registration_far_from_the_cohorts_others_is_to_be_checked() -> None:
    rows = {f"case {k}": {"correlation": 0.5 + 0.01 * k, "volume_change": 0.1} for k in range(8)}
    rows["low"] = {"correlation": 0.2, "volume_change": 0.1}
    rows["high"] = {"correlation": 0.9, "volume_change": np.nan}
    found = deviations(rows, FailureSpec())
    assert found == {"low": ["correlation 0.20, where the cohort's median is 0.54"]}
    assert deviations(dict(list(rows.items())[-4:]), FailureSpec()) == {}  # too few to say
