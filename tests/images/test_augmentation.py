from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage, stats

from threefold.core.batch import Batch, Sample, collate
from threefold.core.targets import ClassTarget, LabelsTarget, MaskTarget, TargetSpec
from threefold.errors import ExperimentError
from threefold.experiment import AugmentationSpec
from threefold.images.augmentation import AugmentationParameters, augment, draw_parameters

EVERYTHING = AugmentationSpec(
    flip=0.5, rotation=25, scale=0.2, intensity_shift=0.1, intensity_scale=0.2, noise=0.05
)


TARGETS: dict[str, TargetSpec] = {
    "label": ClassTarget(classes=("no", "yes")),
    "mask": MaskTarget(kind="mask"),
    "structures": LabelsTarget(kind="labels", names=("a", "b", "c", "d")),
}


def targets(**values: Any) -> dict[str, Any]:
    """Return a sample's targets without those that are None."""
    return {name: value for name, value in values.items() if value is not None}


def batch_of(shape: tuple[int, ...], n: int = 6, channels: int = 2) -> Batch:
    rng = np.random.default_rng(0)
    return collate(
        [
            Sample(
                f"case{i}",
                rng.random((channels, *shape), np.float32),
                targets(
                    mask=rng.integers(0, 2, shape).astype(np.uint8) if i != 1 else None,
                    structures=rng.integers(0, 5, shape).astype(np.uint8) if i != 2 else None,
                    label=i % 2,
                ),
            )
            for i in range(n)
        ],
        TARGETS,
    )


def maps(batch: Batch, name: str) -> torch.Tensor:
    """Return (B, *S) label maps."""
    return batch.targets[name].values


def nothing(batch: Batch) -> AugmentationParameters:
    return draw_parameters(
        AugmentationSpec(), batch.case_ids, seed=0, epoch=0, dimensions=batch.image.ndim - 2
    )


def assert_same(a: Batch | AugmentationParameters, b: Batch | AugmentationParameters) -> None:
    for field in fields(a):
        first, second = getattr(a, field.name), getattr(b, field.name)
        if isinstance(first, torch.Tensor):
            assert torch.equal(first, second), field.name
        elif field.name == "targets":
            assert first.keys() == second.keys()
            for name, one in first.items():
                assert torch.equal(one.values, second[name].values), name
                assert torch.equal(one.present, second[name].present), name
        else:
            assert first == second


# --- drawing ------------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_epoch_and_case_alone() -> None:
    spec = EVERYTHING.model_copy(update={"quarter_turns": True})
    ids = [f"case{i}" for i in range(8)]
    whole = draw_parameters(spec, ids, seed=3, epoch=5, dimensions=2)
    assert_same(whole, draw_parameters(spec, ids, seed=3, epoch=5, dimensions=2))
    for part in (ids[::-1], ids[3:4], ids[1::2]):
        drawn = draw_parameters(spec, part, seed=3, epoch=5, dimensions=2)
        for i, case_id in enumerate(part):
            for field in fields(drawn):
                a, b = getattr(drawn, field.name)[i], getattr(whole, field.name)[ids.index(case_id)]
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    for other in ({"seed": 4, "epoch": 5}, {"seed": 3, "epoch": 6}):
        drawn = draw_parameters(spec, ids, dimensions=2, **other)
        assert not torch.equal(drawn.matrix, whole.matrix)
        assert not torch.equal(drawn.noise_seed, whole.noise_seed)


def test_a_case_that_is_drawn_again_is_changed_otherwise() -> None:
    drawn = draw_parameters(EVERYTHING, ["a", "a", "b"], seed=0, epoch=0, dimensions=2, repeats=[0, 1, 0])
    once = draw_parameters(EVERYTHING, ["a", "b"], seed=0, epoch=0, dimensions=2)
    assert torch.equal(drawn.matrix[[0, 2]], once.matrix)
    assert not torch.equal(drawn.matrix[0], drawn.matrix[1])


def test_switching_one_change_on_leaves_the_others_as_they_were() -> None:
    ids = [f"case{i}" for i in range(20)]
    plain = draw_parameters(AugmentationSpec(flip=0.5), ids, seed=0, epoch=0, dimensions=2)
    more = draw_parameters(EVERYTHING, ids, seed=0, epoch=0, dimensions=2)
    assert torch.equal(plain.flips, more.flips)


def test_draws_have_the_distribution_that_the_spec_says() -> None:
    spec = EVERYTHING.model_copy(update={"quarter_turns": True, "rotation_probability": 0.5, "flip": 0.25})
    n = 2000
    drawn = draw_parameters(spec, [str(i) for i in range(n)], seed=0, epoch=0, dimensions=2)
    assert_allclose(drawn.flips.numpy().mean(axis=0), 0.25, atol=0.04)
    assert_allclose(np.bincount(drawn.quarter_turns.numpy(), minlength=4) / n, 0.25, atol=0.04)
    scale = 1 / torch.linalg.det(drawn.matrix).sqrt().numpy()
    angle = np.degrees(np.arctan2(drawn.matrix[:, 1, 0].numpy(), drawn.matrix[:, 0, 0].numpy()))
    turned = np.abs(angle) > 1e-9
    assert turned.mean() == pytest.approx(0.5, abs=0.04)
    for values, low, high in (
        (angle[turned], -25, 25),
        (scale, 0.8, 1.2),
        (drawn.shift.numpy(), -0.1, 0.1),
        (drawn.contrast.numpy(), -0.2, 0.2),
        (drawn.noise.numpy(), 0, 0.05),
    ):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_rotations_of_a_volume_are_rotations() -> None:
    spec = AugmentationSpec(rotation=30)
    matrix = draw_parameters(spec, [str(i) for i in range(50)], seed=0, epoch=0, dimensions=3).matrix
    assert_allclose(
        (matrix @ matrix.transpose(1, 2)).numpy(), np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12
    )
    assert_allclose(torch.linalg.det(matrix).numpy(), 1)


# --- applying -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 9), (8, 12), (5, 6, 7)])
def test_nothing_drawn_changes_nothing(shape: tuple[int, ...]) -> None:
    batch = batch_of(shape)
    assert_same(augment(batch, nothing(batch)), batch)


@pytest.mark.parametrize("shape", [(9, 9), (8, 12), (5, 6, 7)])
def test_the_input_is_left_as_it_was_and_a_replay_is_the_same(shape: tuple[int, ...]) -> None:
    batch, again = batch_of(shape), batch_of(shape)
    parameters = draw_parameters(EVERYTHING, batch.case_ids, seed=0, epoch=0, dimensions=len(shape))
    first = augment(batch, parameters)
    assert_same(batch, again)
    assert_same(augment(batch, parameters), first)
    assert not torch.equal(first.image, batch.image)
    assert float(first.image.min()) >= 0
    assert float(first.image.max()) <= 1
    assert not maps(first, "mask")[1].any()  # absent targets stay zero
    assert not maps(first, "structures")[2].any()


def test_a_case_is_changed_the_same_in_any_batch() -> None:
    batch = batch_of((12, 12))
    spec = EVERYTHING.model_copy(update={"quarter_turns": True})
    whole = augment(batch, draw_parameters(spec, batch.case_ids, seed=0, epoch=0, dimensions=2))
    order = [4, 0, 3]
    chosen = batch.map(lambda tensor: tensor[order])
    part = replace(chosen, case_ids=tuple(batch.case_ids[i] for i in order))
    changed = augment(part, draw_parameters(spec, part.case_ids, seed=0, epoch=0, dimensions=2))
    assert torch.equal(changed.image, whole.image[order])
    assert torch.equal(maps(changed, "mask"), maps(whole, "mask")[order])


def test_flips_by_axis_draw_the_same_numbers() -> None:
    ids = [f"c{i}" for i in range(200)]
    both = draw_parameters(AugmentationSpec(flip=0.5), ids, seed=0, epoch=0, dimensions=2)
    mirrored = draw_parameters(AugmentationSpec(flip=(0.0, 0.5)), ids, seed=0, epoch=0, dimensions=2)
    assert not mirrored.flips[:, 0].any()
    assert torch.equal(mirrored.flips[:, 1], both.flips[:, 1])


def test_quarter_turns_and_flips_are_those_of_numpy_to_the_bit() -> None:
    kinds = list(product(range(4), [False, True], [False, True]))
    batch = batch_of((7, 7), n=len(kinds))
    parameters = replace(
        nothing(batch),
        quarter_turns=torch.tensor([turn for turn, _, _ in kinds]),
        flips=torch.tensor([flips for _, *flips in kinds]),
    )
    changed = augment(batch, parameters)
    for i, (turn, *flips) in enumerate(kinds):
        axes = [a for a, on in enumerate(flips) if on]
        for before, after in (
            (batch.image, changed.image),
            (maps(batch, "mask")[:, None], maps(changed, "mask")[:, None]),
        ):
            for old, new in zip(before[i].numpy(), after[i].numpy(), strict=True):
                assert_array_equal(new, np.flip(np.rot90(old, turn), axes))


def test_flips_of_a_volume_are_those_of_numpy_to_the_bit() -> None:
    kinds = list(product([False, True], repeat=3))
    batch = batch_of((4, 5, 6), n=len(kinds))
    changed = augment(batch, replace(nothing(batch), flips=torch.tensor(kinds)))
    for i, flips in enumerate(kinds):
        axes = [a for a, on in enumerate(flips) if on]
        assert_array_equal(changed.image[i, 0], np.flip(batch.image[i, 0].numpy(), axes))
        assert_array_equal(
            maps(changed, "structures")[i], np.flip(maps(batch, "structures")[i].numpy(), axes)
        )


@pytest.mark.parametrize("shape", [(20, 20), (16, 28), (10, 12, 14)])
def test_rotation_and_scale_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    batch = batch_of(shape, n=4)
    spec = AugmentationSpec(flip=0.5, rotation=40, scale=0.3)
    parameters = draw_parameters(spec, batch.case_ids, seed=1, epoch=0, dimensions=len(shape))
    changed = augment(batch, parameters)
    centre = (np.array(shape) - 1) / 2
    for i in range(4):
        matrix = parameters.matrix[i].numpy()
        offset = centre - matrix @ centre
        axes = np.flatnonzero(parameters.flips[i])
        options = {"matrix": matrix, "offset": offset, "mode": "grid-constant", "cval": 0}
        for channel in range(2):
            flipped = np.flip(batch.image[i, channel].numpy(), axes)
            expected = ndimage.affine_transform(flipped.astype(float), order=1, **options)
            assert_allclose(changed.image[i, channel], expected, atol=2e-5)
        # nearest: leave out voxels whose source lies within rounding of a border between two
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
        source = index @ matrix.T + offset
        clear = (np.abs(source % 1 - 0.5) > 1e-3).all(axis=-1)
        for old, new in (
            (maps(batch, "mask")[i], maps(changed, "mask")[i]),
            (maps(batch, "structures")[i], maps(changed, "structures")[i]),
        ):
            expected = ndimage.affine_transform(np.flip(old.numpy(), axes), order=0, **options)
            assert clear.mean() > 0.9
            assert_array_equal(new.numpy()[clear], expected[clear])


def test_image_and_mask_move_together() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:30, 35:60] = 1
    samples = [
        Sample(f"case{i}", mask[None].astype(np.float32), {"mask": mask, "label": 0}) for i in range(8)
    ]
    batch = collate(samples, TARGETS)
    spec = AugmentationSpec(flip=0.5, quarter_turns=True, rotation=30, scale=0.1)
    changed = augment(batch, draw_parameters(spec, batch.case_ids, seed=0, epoch=0, dimensions=2))
    assert ((changed.image[:, 0] > 0.5) != maps(changed, "mask").bool()).float().mean() < 0.01
    assert len({tuple(m.nonzero().float().mean(dim=0).tolist()) for m in maps(changed, "mask")}) == 8


def test_intensity_changes_are_the_formula() -> None:
    batch = batch_of((16, 16), n=3)
    batch = replace(batch, image=batch.image * 0.2 + 0.4)  # far from the clamps
    parameters = replace(
        nothing(batch), contrast=torch.tensor([0.2, 0.0, -0.1]), shift=torch.tensor([0.05, 0.0, -0.1])
    )
    changed = augment(batch, parameters)
    for i, (contrast, shift) in enumerate([(0.2, 0.05), (0.0, 0.0), (-0.1, -0.1)]):
        for old, new in zip(batch.image[i].numpy(), changed.image[i].numpy(), strict=True):
            assert_allclose(new, old.mean() + (old - old.mean()) * (1 + contrast) + shift, atol=1e-6)
    assert torch.equal(changed.image[1], batch.image[1])
    assert torch.equal(maps(changed, "mask"), maps(batch, "mask"))


def test_noise_is_gaussian_and_each_cases_own() -> None:
    batch = batch_of((64, 64), n=3)
    batch = replace(batch, image=torch.full_like(batch.image, 0.5))
    parameters = replace(
        nothing(batch), noise=torch.tensor([0.05, 0.0, 0.05]), noise_seed=torch.tensor([1, 2, 3])
    )
    changed = augment(batch, parameters).image - 0.5
    assert not changed[1].any()
    assert stats.kstest(changed[0].flatten().numpy() / 0.05, "norm").pvalue > 1e-3
    correlation = np.corrcoef(changed[[0, 0, 2], [0, 1, 0]].flatten(1).numpy())
    assert np.abs(correlation - np.eye(3)).max() < 0.06


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ExperimentError, match="quarter_turns is for 2D"):
        draw_parameters(AugmentationSpec(quarter_turns=True), ["a"], seed=0, epoch=0, dimensions=3)
    batch = batch_of((8, 12))
    with pytest.raises(ExperimentError, match="square grid"):
        augment(batch, replace(nothing(batch), quarter_turns=torch.ones(6, dtype=torch.int64)))
    with pytest.raises(ValueError, match="the batch holds"):
        augment(batch, replace(nothing(batch), case_ids=("x",) * 6))
