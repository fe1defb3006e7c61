"""The published changes, held voxel for voxel against MONAI's transforms with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from monai import transforms
from monai.transforms.utils import create_shear
from numpy.testing import assert_allclose
from pydantic import ValidationError
from scipy import stats

from threefold.core.batch import Batch, Sample, collate
from threefold.core.targets import ClassTarget, LabelsTarget, MaskTarget, TargetSpec
from threefold.experiment import AugmentationSpec
from threefold.images.augmentation import AugmentationParameters, augment, draw_parameters
from threefold.images.augmentation_intensity import (
    adjust_gamma,
    bias_field,
    bias_terms,
    gaussian_sharpen,
    gaussian_smooth,
    shift_histogram,
)

PUBLISHED = AugmentationSpec(
    probability=0.3,
    rotation=28.65,
    scale=0.1,
    shear=0.1,
    translation=0.1,
    intensity_shift=0.1,
    smooth=1.5,
    noise=0.1,
    sharpen=30,
    histogram_shift=10,
    gamma=4.5,
    bias_field=0.1,
)
SHAPES = [(24, 17), (12, 15, 18)]
OLD = {
    "quarter_turns": [3, 0],
    "flips": [[True, False], [True, False]],
    "matrix": [
        [[0.9447153131834365, -0.09183312429183207], [0.09183312429183207, 0.9447153131834365]],
        [[1.045369068334255, 0.09258973043623635], [-0.09258973043623635, 1.045369068334255]],
    ],
    "contrast": [0.1887439638376236, -0.07283158600330353],
    "shift": [0.09264206141233444, -0.0836314857006073],
    "noise": [0.0033802236430346966, 0.024969855323433876],
    "noise_seed": [2386175605, 2607037940],
}


def image_of(shape: tuple[int, ...], channels: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).random((channels, *shape), np.float32))


TARGETS: dict[str, TargetSpec] = {
    "label": ClassTarget(classes=("no", "yes")),
    "mask": MaskTarget(kind="mask"),
    "structures": LabelsTarget(kind="labels", names=tuple("abcdefghijk")),
}


def batch_of(shape: tuple[int, ...], n: int) -> Batch:
    rng = np.random.default_rng(0)
    return collate(
        [
            Sample(
                f"case{i}",
                rng.random((1, *shape), np.float32) * 0.4 + 0.3,
                {
                    "mask": rng.integers(0, 2, shape).astype(np.uint8),
                    "structures": rng.integers(0, 12, shape).astype(np.uint8),
                    "label": 0,
                },
            )
            for i in range(n)
        ],
        TARGETS,
    )


def maps(batch: Batch, name: str) -> torch.Tensor:
    """Return (B, *S) label maps."""
    return batch.targets[name].values


@cache
def many(dimensions: int, n: int = 2000) -> AugmentationParameters:
    return draw_parameters(PUBLISHED, [str(i) for i in range(n)], seed=0, epoch=0, dimensions=dimensions)


def even(values: torch.Tensor, low: float, high: float) -> bool:
    return bool(stats.kstest(values.flatten().numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3)


# --- definitions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.25, 0.9, 1.5, 4.0])
def test_smoothing_is_monais(shape: tuple[int, ...], size: float) -> None:
    sigma = [size, size * 0.7, size * 1.2][: len(shape)]
    expected = transforms.GaussianSmooth(sigma)(image_of(shape))
    assert_allclose(gaussian_smooth(image_of(shape), sigma), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_sharpening_is_monais(shape: tuple[int, ...]) -> None:
    fine, coarse = [0.9, 0.6, 0.75][: len(shape)], [0.7, 0.55, 0.5][: len(shape)]
    expected = transforms.GaussianSharpen(fine, coarse, 25.0)(image_of(shape))
    assert_allclose(gaussian_sharpen(image_of(shape), fine, coarse, 25.0), expected, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("points", [3, 10])
def test_histogram_shift_is_monais(shape: tuple[int, ...], points: int) -> None:
    image = image_of(shape) * 3 - 1  # its own range counts, not 0..1
    reference = transforms.RandHistogramShift(points, prob=1).set_random_state(points)
    expected = reference(image)
    moved = np.asarray(reference.floating_control_points).tolist()
    assert_allclose(shift_histogram(image, moved), expected, atol=2e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.7, 4.5])
def test_gamma_is_monais(exponent: float) -> None:
    image = image_of((9, 10, 11)) * 3 - 1
    assert_allclose(adjust_gamma(image, exponent), transforms.AdjustContrast(exponent)(image), atol=3e-6)


def test_bias_field_is_monais_with_the_coefficients_in_its_order() -> None:
    shape = (12, 15, 18)
    reference = transforms.RandBiasField(degree=3, coeff_range=(-0.3, 0.3), prob=1).set_random_state(1)
    expected = reference(image_of(shape))
    assert len(reference._coeff) == len(bias_terms(3)) == 20
    field = bias_field(shape, torch.tensor(reference._coeff, dtype=torch.float32))
    assert_allclose(image_of(shape) * field, expected, atol=2e-6)


def test_bias_field_of_a_slice_has_the_terms_up_to_degree_3() -> None:
    """MONAI's in 2D are those whose first degree is not below the second, up to x^3 y^3."""
    coefficients = np.random.default_rng(0).uniform(-0.3, 0.3, 10)
    cube = np.zeros((4, 4))
    cube[[0, 0, 0, 0, 1, 1, 1, 2, 2, 3], [0, 1, 2, 3, 0, 1, 2, 0, 1, 0]] = coefficients
    expected = np.exp(np.polynomial.legendre.leggrid2d(np.linspace(-1, 1, 9), np.linspace(-1, 1, 7), cube))
    assert_allclose(bias_field((9, 7), torch.from_numpy(coefficients)), expected)


@pytest.mark.parametrize("change", [lambda x: shift_histogram(x, [0, 0.3, 1]), lambda x: adjust_gamma(x, 3)])
def test_an_image_of_one_value_stays(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    flat = torch.full((1, 4, 5), 0.3)
    assert_allclose(change(flat), flat)


@pytest.mark.parametrize("shape", [(20, 20), (16, 28), (10, 12, 14), (13, 11, 10)])
def test_the_affine_map_is_monais(shape: tuple[int, ...]) -> None:
    batch = batch_of(shape, n=4)
    spec = AugmentationSpec(rotation=28.65, scale=0.1, shear=0.1, translation=2)
    parameters = draw_parameters(spec, batch.case_ids, seed=1, epoch=0, dimensions=len(shape))
    changed = augment(batch, parameters)
    for i in range(4):
        affine = np.eye(len(shape) + 1)
        affine[:-1, :-1], affine[:-1, -1] = parameters.matrix[i], parameters.translation[i]
        options = {"affine": affine, "padding_mode": "zeros", "image_only": True}
        expected = transforms.Affine(mode="bilinear", **options)(batch.image[i])
        assert_allclose(changed.image[i], expected, atol=2e-5)
        labels = torch.stack([maps(batch, "mask")[i], maps(batch, "structures")[i]]).float()
        expected = transforms.Affine(mode="nearest", **options)(labels)
        moved = torch.stack([maps(changed, "mask")[i], maps(changed, "structures")[i]])
        # a voxel whose source lies within rounding of the border of two may go either way
        assert (moved == expected).float().mean() > 0.999


@pytest.mark.parametrize("dimensions", [2, 3])
def test_shear_is_monais_and_keeps_volumes(dimensions: int) -> None:
    spec = AugmentationSpec(shear=0.3)
    drawn = draw_parameters(spec, ["a", "b", "c"], seed=0, epoch=0, dimensions=dimensions).matrix
    assert_allclose(torch.linalg.det(drawn).numpy(), 1, atol=1e-12)
    for matrix in drawn.numpy():
        first = matrix[0, 1]
        second = matrix[1, 0]
        factors = (first, second) if dimensions == 2 else (first, matrix[0, 2], second)
        assert_allclose(create_shear(dimensions, factors)[:-1, :-1], matrix, atol=1e-12)
        assert max(map(abs, factors)) <= 0.3


def test_volumes_are_sampled_in_slabs_as_they_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of((12, 9, 10), n=2)
    spec = AugmentationSpec(rotation=20, shear=0.1)
    parameters = draw_parameters(spec, batch.case_ids, seed=1, epoch=0, dimensions=3)
    found = []
    for threads in (1, 2, 4, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(augment(batch, parameters))
    assert all(torch.equal(found[0].image, other.image) for other in found)
    assert all(torch.equal(maps(found[0], "structures"), maps(other, "structures")) for other in found)


# --- through a batch ----------------------------------------------------------------------------------


def only(name: str) -> AugmentationSpec:
    return AugmentationSpec(**{name: getattr(PUBLISHED, name)})


@pytest.mark.parametrize("shape", SHAPES)
def test_each_change_reaches_the_batch_with_each_cases_own_parameters(shape: tuple[int, ...]) -> None:
    batch = batch_of(shape, n=3)
    for name, reference in (
        ("smooth", lambda x, p, i: transforms.GaussianSmooth(p.smooth[i].tolist())(x)),
        (
            "sharpen",
            lambda x, p, i: transforms.GaussianSharpen(*p.sharpen_sigmas[i].tolist(), float(p.sharpen[i]))(x),
        ),
        ("gamma", lambda x, p, i: transforms.AdjustContrast(float(p.gamma[i]))(x)),
    ):
        parameters = draw_parameters(only(name), batch.case_ids, seed=2, epoch=0, dimensions=len(shape))
        changed = augment(batch, parameters)
        assert torch.equal(maps(changed, "structures"), maps(batch, "structures"))
        for i in range(3):
            expected = reference(batch.image[i], parameters, i).clamp(0, 1)
            assert_allclose(changed.image[i], expected, atol=2e-5, err_msg=name)
        assert not torch.allclose(changed.image, batch.image, atol=1e-3)


def test_histogram_and_bias_field_reach_the_batch() -> None:
    batch = batch_of((8, 9, 10), n=2)
    for name in ("histogram_shift", "bias_field"):
        parameters = draw_parameters(only(name), batch.case_ids, seed=2, epoch=0, dimensions=3)
        changed = augment(batch, parameters).image
        for i, image in enumerate(batch.image):
            expected = (
                shift_histogram(image, parameters.histogram[i].tolist())
                if name == "histogram_shift"
                else image * bias_field((8, 9, 10), parameters.bias[i].float())
            )
            assert_allclose(changed[i], expected.clamp(0, 1), atol=1e-6)
        assert not torch.allclose(changed, batch.image, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_everything_together_stays_in_range_replays_and_is_each_cases_own(shape: tuple[int, ...]) -> None:
    batch, again = batch_of(shape, n=8), batch_of(shape, n=8)
    spec = PUBLISHED.model_copy(update={"probability": 0.6})
    parameters = draw_parameters(spec, batch.case_ids, seed=0, epoch=0, dimensions=len(shape))
    first = augment(batch, parameters)
    assert torch.equal(batch.image, again.image)
    assert torch.equal(maps(batch, "structures"), maps(again, "structures"))
    assert torch.equal(augment(batch, parameters).image, first.image)
    assert 0 <= float(first.image.min()) < float(first.image.max()) <= 1
    assert first.image.dtype == torch.float32
    assert maps(first, "structures").dtype == torch.uint8
    for i in (0, 5):
        told = {"mask": maps(batch, "mask")[i].numpy()}
        alone = collate([Sample(f"case{i}", batch.image[i].numpy(), told)], TARGETS)
        drawn = draw_parameters(spec, alone.case_ids, seed=0, epoch=0, dimensions=len(shape))
        assert_allclose(augment(alone, drawn).image[0], first.image[i], atol=1e-6)


# --- draws --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [2, 3])
def test_draws_have_the_published_distribution(dimensions: int) -> None:
    p = many(dimensions)
    straight = torch.from_numpy(np.linspace(0, 1, 10))
    on = {
        "affine": (p.matrix != torch.eye(dimensions)).flatten(1).any(dim=1),
        "shift": p.shift != 0,
        "smooth": p.smooth.any(dim=1),
        "noise": p.noise != 0,
        "sharpen": p.sharpen != 0,
        "histogram": (p.histogram != straight).any(dim=1),
        "gamma": p.gamma != 1,
        "bias": p.bias.any(dim=1),
    }
    share = {name: float(chosen.float().mean()) for name, chosen in on.items()}
    assert share == pytest.approx(dict.fromkeys(on, 0.3), abs=0.035)
    together = np.corrcoef(np.stack([chosen.numpy() for chosen in on.values()]))
    assert np.abs(together - np.eye(len(on))).max() < 0.08  # each is drawn by itself
    assert torch.equal(on["affine"], p.translation.any(dim=1))
    assert even(p.translation[on["affine"]], -0.1, 0.1)
    assert even(p.smooth[on["smooth"]], 0.25, 1.5)
    assert even(p.sharpen[on["sharpen"]], 10, 30)
    assert even(p.sharpen_sigmas[:, 0], 0.5, 1)
    assert even(((p.sharpen_sigmas[:, 1] - 0.5) / (p.sharpen_sigmas[:, 0] - 0.5)), 0, 1)
    assert even(p.gamma[on["gamma"]], 0.5, 4.5)
    assert even(p.bias[on["bias"]], 0, 0.1)
    assert (p.histogram.diff(dim=1) > 0).all()
    assert torch.equal(
        p.histogram[:, [0, -1]], torch.tensor([[0.0, 1.0]], dtype=torch.float64).expand(2000, 2)
    )
    volume = torch.linalg.det(p.matrix[on["affine"]]).numpy()
    assert 1 / 1.1**dimensions <= volume.min() < volume.max() <= 1 / 0.9**dimensions


def test_control_points_move_as_the_published_ones() -> None:
    reference = transforms.RandHistogramShift(10, prob=1).set_random_state(0)
    theirs = []
    for _ in range(1500):
        reference.randomize()
        theirs.append(reference.floating_control_points)
    p = many(3)
    ours = p.histogram[(p.histogram != torch.from_numpy(np.linspace(0, 1, 10))).any(dim=1)].numpy()
    for point in range(1, 9):
        assert stats.ks_2samp(ours[:, point], np.stack(theirs)[:, point]).pvalue > 1e-3


@pytest.mark.parametrize("dimensions", [2, 3])
def test_each_new_change_leaves_the_draws_of_the_others(dimensions: int) -> None:
    ids = [f"case{i}" for i in range(12)]
    before = AugmentationSpec(flip=0.5, rotation=20, scale=0.1, intensity_shift=0.1, noise=0.1)
    plain = draw_parameters(before, ids, seed=3, epoch=1, dimensions=dimensions)
    for name in ("smooth", "sharpen", "histogram_shift", "gamma", "bias_field", "translation"):
        spec = before.model_copy(update={name: getattr(PUBLISHED, name)})
        drawn = draw_parameters(spec, ids, seed=3, epoch=1, dimensions=dimensions)
        changed = [
            field
            for field in vars(plain)
            if field != "case_ids" and not torch.equal(getattr(plain, field), getattr(drawn, field))
        ]
        assert changed == [{"histogram_shift": "histogram", "bias_field": "bias"}.get(name, name)]


def test_draws_of_runs_from_before_are_what_they_were() -> None:
    """Numbers of version 0.1.0: a run of then is repeated by the draws of now."""
    spec = AugmentationSpec(
        flip=0.5,
        quarter_turns=True,
        rotation=15,
        scale=0.1,
        intensity_shift=0.1,
        intensity_scale=0.2,
        noise=0.03,
    )
    drawn = draw_parameters(spec, ["a", "b"], seed=3, epoch=5, dimensions=2)
    assert drawn.quarter_turns.tolist() == OLD["quarter_turns"]
    assert drawn.flips.tolist() == OLD["flips"]
    assert drawn.noise_seed.tolist() == OLD["noise_seed"]
    for name in ("matrix", "contrast", "shift", "noise"):
        assert_allclose(getattr(drawn, name), OLD[name], rtol=1e-6)


def test_empty_ranges_are_refused() -> None:
    for name, value, message in (
        ("histogram_shift", 2, "at least 3"),
        ("gamma", 0.5, r"more than 0\.5"),
        ("bias_field", -0.1, "greater than or equal to 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            AugmentationSpec(**{name: value})


def test_what_is_off_is_left_alone() -> None:
    batch = batch_of((6, 7, 8), n=2)
    drawn = draw_parameters(AugmentationSpec(), batch.case_ids, seed=0, epoch=0, dimensions=3)
    never = draw_parameters(
        PUBLISHED.model_copy(update={"probability": 0.0}), batch.case_ids, seed=0, epoch=0, dimensions=3
    )
    for parameters in (drawn, never):
        assert torch.equal(augment(batch, parameters).image, batch.image)
    only_one = replace(never, gamma=torch.tensor([1.0, 2.0]).double())
    changed = augment(batch, only_one).image
    assert torch.equal(changed[0], batch.image[0])
    assert not torch.equal(changed[1], batch.image[1])
