"""What `explain` measures: where attention lies, what turns a decision, and their means by group.

A number about one map says little: a large lesion in the middle of the image is hit by anything. So the same
is measured of two maps that know nothing of the image: a random one and a blob in the middle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from threefold.evaluation.classification import weighted_mean
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import Group, groups_of, plain_units
from threefold.evaluation.metrics import metric_of
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec
from threefold.images.preprocessing import resize

Floats = NDArray[np.float64]

ZERO_MAP = "zero_map"


def evidence_rows(
    evidence: pd.DataFrame, predictions: Predictions, spec: EvaluationSpec, metrics: Sequence[str]
) -> tuple[Estimate, ...]:
    """Return the mean of each column over all test cases, each site group and each site.

    Args:
        evidence: by case id; NaN where a case has none.
        predictions: say which patient, site and site group a case is of.
        spec: replicates, confidence and seed.
        metrics: the columns; those without any number are left out.
    """
    rows = predictions.part("test").set_index("case_id", drop=False)
    columns = evidence.reindex(index=rows.index, columns=list(metrics))
    groups = groups_of(pd.concat([rows[[*_IDENTITY]], columns], axis=1))
    measured = [name for name in metrics if columns[name].notna().any()]
    return tuple(row for group in groups for row in _of_group(group, measured, predictions.leaks, spec))


_IDENTITY = ("case_id", "patient_id", "site", "site_group")


def _of_group(group: Group, metrics: Sequence[str], leaks: bool, spec: EvaluationSpec) -> Iterator[Estimate]:
    place = Place("case", group, spec, leaks)
    patients = np.unique(group.rows["patient_id"].to_numpy(str), return_inverse=True)[1].astype(np.int64)
    for name in metrics:
        values = group.rows[name].to_numpy(np.float64)
        there = ~np.isnan(values)
        yield _mean(place, name, values[there], patients[there])


def _mean(place: Place, name: str, values: Floats, patients: NDArray[np.int64]) -> Estimate:
    units = plain_units(patients)
    found = place.bootstrap(lambda weights: {name: weighted_mean(values, weights)}, units)
    return place.estimate(
        metric_of(name),
        float(values.mean()) if len(values) else np.nan,
        found.get(name),
        units,
        needed=np.ones(len(values), np.bool_),
        why="no such case",
    )


QUANTILE = 0.9
"""Of a map's values; what lies above is held against the lesion by `attention_iou`."""
DRAWS = 10
"""Random maps that a case's baseline is the mean of."""
BLOB = 1 / 6
"""Standard deviation of the centred blob, by the image's sides."""

Map = NDArray[np.floating]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Localisation:
    """How well a map meets a lesion; NaN where the map is all zero or there is no lesion.

    Attributes:
        share_inside: share of the map's sum that lies inside the lesion (Wang et al. 2020, arXiv 1910.01279,
            call it the energy-based pointing game).
        attention_iou: intersection over union of the lesion and the map's highest values.
        pointing: 1 where the map's maximum lies in the lesion (Zhang et al. 2016, arXiv 1608.00507, without
            tolerance), 0 where it does not; of several equal maxima, the share that does.
    """

    share_inside: float
    attention_iou: float
    pointing: float


NOWHERE = Localisation(np.nan, np.nan, np.nan)


def localise(attention: Map, lesion: Bools, *, quantile: float = QUANTILE) -> Localisation:
    """Hold a map against a lesion.

    Args:
        attention: (*S), not negative; its scale does not matter.
        lesion: (*S).
        quantile: the map's values above this quantile of all of them, and above zero, are its region.

    Raises:
        ValueError: the shapes differ, or the map has a negative or not finite value.
    """
    if attention.shape != lesion.shape:
        raise ValueError(f"the map has shape {attention.shape}, the lesion {lesion.shape}; expected one grid")
    if not (np.isfinite(attention).all() and (attention >= 0).all()):
        raise ValueError("expected an attention map of finite numbers that are not negative")
    total = attention.sum(dtype=np.float64)
    if total == 0 or not lesion.any():
        return NOWHERE
    region = (attention >= np.quantile(attention, quantile)) & (attention > 0)
    peak = attention == attention.max()
    return Localisation(
        share_inside=float(attention[lesion].sum(dtype=np.float64) / total),
        attention_iou=float((region & lesion).sum() / (region | lesion).sum()),
        pointing=float(lesion[peak].mean()),
    )


def localise_random(grid: Sequence[int], lesion: Bools, *, seed: int, draws: int = DRAWS) -> Localisation:
    """Return what random maps have, on average: uniform noise on the layer's grid, brought to the image's.

    The maps are as coarse as the network's own. Their expected share inside is the lesion's share of the
    image.

    Args:
        grid: size of the layer's own map, as many axes as the lesion.
        lesion: (*S).
        seed: of the draws.
        draws: number of maps.
    """
    generator = np.random.default_rng(seed)
    found = [localise(resize(generator.random(tuple(grid)), lesion.shape), lesion) for _ in range(draws)]
    return Localisation(*(float(mean) for mean in np.mean([astuple(one) for one in found], axis=0)))


def centred_blob(shape: Sequence[int]) -> NDArray[np.float64]:
    """Return a (*S) Gaussian in the middle of the image, whose deviation is a sixth of each side."""
    blob = np.ones(tuple(shape))
    for axis, side in enumerate(shape):
        places = (np.arange(side) + 0.5) / side - 0.5
        line = np.exp(-0.5 * (places / BLOB) ** 2)
        blob *= line.reshape([-1 if other == axis else 1 for other in range(len(shape))])  # (1.., side, ..1)
    return blob


def attention_columns(attention: Map, grid: Sequence[int], lesion: Bools, *, seed: int) -> dict[str, float]:
    """Return a case's columns of the table of evidence: the map's, the random maps' and the blob's.

    Of a map that is zero everywhere the baselines are NaN as well: means of all three are of the same cases.
    `zero_map` says which those are: 1 or 0, NaN without a lesion.

    Args:
        attention: (*S) map of the network.
        grid: size of the layer's own map.
        lesion: (*S).
        seed: of the random maps.
    """
    is_zero = not attention.any()
    maps = {
        "": localise(attention, lesion),
        "_random": NOWHERE if is_zero else localise_random(grid, lesion, seed=seed),
        "_centred": NOWHERE if is_zero else localise(centred_blob(lesion.shape), lesion),
    }
    columns = {name: value for end, one in maps.items() for name, value in _named(one, end)}
    return columns | {"zero_map": float(is_zero) if lesion.any() else np.nan}


def _named(one: Localisation, end: str) -> Iterator[tuple[str, float]]:
    yield f"share_inside{end}", one.share_inside
    yield f"attention_iou{end}", one.attention_iou
    yield f"pointing{end}", one.pointing


def flips(with_it: Floats, without: Floats, threshold: float) -> Floats:
    """Return 1 where the decision is another one with the thing than without it, else 0.

    Args:
        with_it, without: (n,) probability of the positive class; NaN where there is no such image.
        threshold: a case is positive where its probability reaches it.

    Returns:
        (n,); NaN where either is.
    """
    changed = (with_it >= threshold) != (without >= threshold)
    return np.where(np.isnan(with_it) | np.isnan(without), np.nan, changed.astype(np.float64))


def changes(with_it: Floats, without: Floats) -> Floats:
    """Return by how much the thing raises the probability of the positive class, (n,); NaN where unknown."""
    return with_it - without
