"""PSNR and SSIM against scikit-image, a window by hand, and what has no value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio

from threefold.evaluation.reconstruction import psnr, ssim


def pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = gaussian_filter(rng.random(shape), [0, *[2] * (len(shape) - 1)])
    return truth, np.clip(truth + 0.05 * rng.normal(size=shape), 0, 1)


def ssim_by_hand(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """Equation 13 of Wang et al. 2004 in each window that lies inside the image, averaged."""

    def mean(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, truncate=3.5, mode="reflect")

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    index = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(index[tuple(slice(5, -5) for _ in a.shape)].mean())


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_is_scikit_images(data_range: float) -> None:
    a, b = (x * data_range for x in pair((1, 20, 24)))
    assert psnr(a, b, data_range) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=data_range))


@pytest.mark.parametrize("shape", [(1, 24, 30), (3, 24, 30), (1, 14, 12, 16)])
@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_ssim_is_that_of_its_paper(shape: tuple[int, ...], data_range: float) -> None:
    a, b = (x * data_range for x in pair(shape))
    by_hand = np.mean([ssim_by_hand(x, y, data_range) for x, y in zip(a, b, strict=True)])
    assert 0 < by_hand < 0.99
    assert ssim(a, b, data_range) == pytest.approx(by_hand, abs=1e-9)


def test_single_precision_changes_nothing_that_is_seen() -> None:
    a, b = pair((1, 24, 24))
    assert ssim(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(ssim(a, b), abs=1e-5)
    assert psnr(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(psnr(a, b), abs=1e-4)


def test_an_image_is_like_itself() -> None:
    a, _ = pair((1, 16, 16))
    assert psnr(a, a) == math.inf
    assert ssim(a, a) == pytest.approx(1)


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    assert math.isnan(ssim(np.zeros((1, 10, 30)), np.zeros((1, 10, 30))))
    assert not math.isnan(ssim(np.zeros((1, 11, 11)), np.ones((1, 11, 11))))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_what_is_no_pair_of_images_is_refused(metric: object) -> None:
    assert callable(metric)
    for a, b in (((1, 16, 16), (1, 16, 17)), ((0, 16, 16), (0, 16, 16))):
        with pytest.raises(ValueError, match="two images of one shape"):
            metric(np.zeros(a), np.zeros(b))
    with pytest.raises(ValueError, match=r"expects \(C, \*S\)"):
        ssim(np.zeros((16, 16)), np.zeros((16, 16)))
