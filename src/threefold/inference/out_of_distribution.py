"""Whether an image is unlike the training images, by the encoder's features: two distances and one flag.

Both are distances of an image's pooled features to those of the training part, which a run keeps in
features.safetensors:

- Mahalanobis: sqrt((f - m)^T S^-1 (f - m)), with the mean m and the covariance S of the training features,
  shrunk towards a multiple of the identity (Ledoit and Wolf 2004; as a score Lee et al. 2018,
  arXiv 1807.03888);
- nearest neighbours: the Euclidean distance of f / |f| to its k-th nearest training image (Sun et al. 2022,
  arXiv 2204.06507).

Each is divided by its 95th percentile over the validation cases. The score is the larger of the two,
divided by the 95th percentile of that: an image with a score above 1 is less like the training images than
95 of 100 validation cases are. So of images like the validation cases about one in twenty is flagged.

A network sees only what its features keep: what training taught it to ignore is not found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from threefold.checksums import seal_tensors, verify_tensors
from threefold.errors import RunError
from threefold.evaluation.predictions import OUT_OF_DISTRIBUTION
from threefold.experiment import Spec
from threefold.run import COPY_AGAIN, write_atomically

Floats = NDArray[np.float32]
KEPT = 1000
"""Training images whose features are kept at most."""
NEIGHBOURS = 5
PERCENTILE = 0.95
FEWEST = 5
"""Validation cases, and training cases, without which nothing is said."""

UNLIKE_FEATURES = (
    "out of distribution: its features are further from the training images' than those of 95 % of the "
    "validation cases"
)


class Thresholds(Spec):
    """What the validation cases' distances to the training part are."""

    cases: int
    """Validation cases."""
    mahalanobis: float
    """95th percentile of the distance."""
    nearest: float
    score: float
    """95th percentile of the larger of the two, each by its own."""


@dataclass(frozen=True)
class Distances:
    """How far an image is from the training images.

    Attributes:
        mahalanobis, nearest: the two distances.
        score: above 1 the image is flagged.
    """

    mahalanobis: float
    nearest: float
    score: float


@dataclass(frozen=True)
class OutOfDistribution:
    """Whether an image is unlike the images that a network was trained on.

    Attributes:
        flag: True: it is, for the reasons. False: nothing was found. None: its features could not be compared
            and its header shows nothing.
        distances: of its features; None: not compared.
        reasons: in words.
    """

    flag: bool | None
    distances: Distances | None = None
    reasons: tuple[str, ...] = ()

    def columns(self) -> dict[str, Any]:
        """Return the columns of a table of predictions."""
        distances = self.distances
        found: dict[str, Any] = {OUT_OF_DISTRIBUTION: {True: "yes", False: "no", None: ""}[self.flag]}
        for name in ("score", "mahalanobis", "nearest"):
            found[f"{OUT_OF_DISTRIBUTION}_{name}"] = None if distances is None else getattr(distances, name)
        return {**found, f"{OUT_OF_DISTRIBUTION}_reasons": "; ".join(self.reasons)}


@dataclass(frozen=True)
class TrainingFeatures:
    """The features of the training part, and what is derived from them.

    Attributes:
        features: (n, F).
    """

    features: Floats

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = self.features.astype(np.float64).mean(axis=0)
        return mean

    @cached_property
    def _precision(self) -> NDArray[np.float64]:
        return np.asarray(np.linalg.pinv(shrunk_covariance(self.features), hermitian=True), np.float64)

    @cached_property
    def _directions(self) -> Floats:
        return _unit(self.features)

    def mahalanobis(self, features: Floats) -> NDArray[np.float64]:
        """Return the distance of each of (m, F) features to the mean, (m,)."""
        centred = features.astype(np.float64) - self._mean
        squared = np.einsum("mf,fg,mg->m", centred, self._precision, centred, optimize=True)
        found: NDArray[np.float64] = np.sqrt(np.maximum(squared, 0))
        return found

    def nearest(self, features: Floats) -> NDArray[np.float64]:
        """Return the distance of each of (m, F) features to its k-th nearest neighbour, (m,)."""
        cosines = _unit(features).astype(np.float64) @ self._directions.T.astype(np.float64)
        k = min(NEIGHBOURS, len(self._directions))
        nearest = np.partition(cosines, -k, axis=1)[:, -k]
        found: NDArray[np.float64] = np.sqrt(np.maximum(2 - 2 * nearest, 0))
        return found

    def thresholds(self, validation: Floats) -> Thresholds | None:
        """Return the percentiles of the validation cases' (m, F) features; None: there are too few cases."""
        if len(self.features) < FEWEST or len(validation) < FEWEST:
            return None
        both = {"mahalanobis": self.mahalanobis(validation), "nearest": self.nearest(validation)}
        ends = {name: _percentile(values) for name, values in both.items()}
        larger = np.max([values / (ends[name] or 1.0) for name, values in both.items()], axis=0)
        return Thresholds(cases=len(validation), score=_percentile(larger) or 1.0, **ends)

    def distances(self, features: Floats, thresholds: Thresholds) -> Distances:
        """Return how far an image's (F,) features are from the training part's."""
        first, second = (float(of(features[None])[0]) for of in (self.mahalanobis, self.nearest))
        ratios = first / (thresholds.mahalanobis or 1.0), second / (thresholds.nearest or 1.0)
        return Distances(first, second, max(ratios) / thresholds.score)


def shrunk_covariance(features: Floats) -> NDArray[np.float64]:
    """Return the covariance of (n, F) features, shrunk as Ledoit and Wolf (2004) do, (F, F)."""
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    count, width = centred.shape
    sample = centred.T @ centred / count
    scale = float(np.trace(sample)) / width
    target = scale * np.eye(width)
    distance = float(((sample - target) ** 2).sum())
    # Mean over images of |x x^T - S|^2 / n, without an (F, F) matrix an image.
    noise = (float(((centred**2).sum(axis=1) ** 2).sum()) / count - float((sample**2).sum())) / count
    share = 1.0 if distance == 0 else min(1.0, max(0.0, noise / distance))
    shrunk: NDArray[np.float64] = (1 - share) * sample + share * target
    return shrunk


def judge(
    training: TrainingFeatures | None,
    thresholds: Thresholds | None,
    features: Floats | None,
    header: Sequence[str],
) -> OutOfDistribution:
    """Say whether an image is out of distribution.

    Args:
        training, thresholds: of the run; None: it has none.
        features: (F,) of the image; None: the network gives none.
        header: what its header and its intensities show that no training image had.
    """
    if training is None or thresholds is None or features is None:
        return OutOfDistribution(True if header else None, None, tuple(header))
    distances = training.distances(features, thresholds)
    far = distances.score > 1
    return OutOfDistribution(far or bool(header), distances, (*header, *((UNLIKE_FEATURES,) if far else ())))


def write_features(path: Path, training: TrainingFeatures) -> None:
    """Write features.safetensors: the training cases' features, with a checksum; no case is named.

    Raises:
        RunError: the disk refuses.
    """
    write_atomically(path, seal_tensors(safetensors.numpy.save({"features": training.features})))


def read_features(path: Path) -> TrainingFeatures | None:
    """Read features.safetensors; None where there is none.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return None
    verify_tensors(path, RunError, COPY_AGAIN)
    try:
        features = safetensors.numpy.load(path.read_bytes())["features"]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise RunError(f"{path}: not the features of a training part ({error}). {COPY_AGAIN}") from error
    if features.ndim != 2 or not np.isfinite(features).all():
        raise RunError(
            f"{path}: expected a table of finite features, found shape {features.shape}. {COPY_AGAIN}"
        )
    return TrainingFeatures(features)


def _unit(features: Floats) -> Floats:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    found: Floats = np.divide(features, lengths, out=np.zeros_like(features), where=lengths > 0)
    return found


def _percentile(values: NDArray[np.float64]) -> float:
    return float(np.quantile(values, PERCENTILE, method="higher"))
