"""How near a reconstruction is to its image."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Wang et al. 2004: a Gaussian window with sigma 1.5, cut at 3.5 sigma.
_SSIM_WINDOW = 11


def psnr(truth: ArrayLike, restored: ArrayLike, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio of one case, 10 log10(data_range^2 / mean squared error), in dB.

    Args:
        truth, restored: arrays of one shape.
        data_range: largest minus smallest possible value.

    Returns:
        dB; infinite where the two are equal.

    Raises:
        ValueError: if the shapes differ or there is no voxel.
    """
    a, b = _pair(truth, restored)
    error = float(np.mean((a - b) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def ssim(truth: ArrayLike, restored: ArrayLike, data_range: float = 1.0) -> float:
    """Structural similarity (Wang et al. 2004) of one case, mean over voxels and channels.

    Gaussian window of sigma 1.5 (11 voxels along each axis), K1 = 0.01, K2 = 0.03, population covariance.

    Args:
        truth, restored: (C, *S) arrays of one shape, channels first, 2 or 3 spatial axes.
        data_range: largest minus smallest possible value.

    Returns:
        -1..1; NaN (not estimable) where an axis is shorter than the window.

    Raises:
        ValueError: if the shapes differ or there is no voxel.
    """
    from skimage.metrics import structural_similarity  # slow to import

    a, b = _pair(truth, restored)
    if a.ndim < 3:
        raise ValueError(f"ssim expects (C, *S) arrays, found shape {a.shape}")
    if min(a.shape[1:]) < _SSIM_WINDOW:
        return float("nan")
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            a,
            b,
            data_range=data_range,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _pair(truth: ArrayLike, restored: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(truth, np.float64), np.asarray(restored, np.float64)
    if a.shape != b.shape or not a.size:
        raise ValueError(f"expected two images of one shape, found {a.shape} and {b.shape}")
    return a, b
