"""Linear probes: what a frozen representation tells of a case beside the diagnosis it was trained for.

A probe (Alain and Bengio 2016, arXiv 1610.01644) is a linear classifier on frozen features. That it tells a
column apart says that the column is in the features, in a form that a linear head could use; not that the
network's own head does.

The probe is a multinomial logistic regression with a ridge: it minimises

    -sum_i log softmax(x_i W + b)[y_i] + (penalty / 2) |W|^2

on features of mean 0 and standard deviation 1. The penalty is fixed beforehand, so nothing is chosen on the
cases that it is tested on. Each case is scored by a probe that was fitted without any case of its patient.
Scores of different probes are on different scales, so the AUC counts pairs of cases within a fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from threefold.evaluation.classification import weighted_auc, weighted_mean
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import Group, SampleUnits, natural_order, plain_units, wide_groups
from threefold.evaluation.metrics import metric_of
from threefold.evaluation.predictions import Predictions
from threefold.experiment import EvaluationSpec

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

FOLDS = 5
PENALTY = 1.0
FEWEST_PATIENTS = 5
"""Patients that a value needs, for a probe to learn and be tested on it."""


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe of K values on F features.

    Attributes:
        weights: (F, K).
        bias: (K,).
        mean, scale: (F,) what features are standardised by.
    """

    weights: Floats
    bias: Floats
    mean: Floats
    scale: Floats

    def log_probabilities(self, features: Floats) -> Floats:
        """Return the logarithm of each value's probability, (n, K), for features (n, F)."""
        standard = (features - self.mean) / self.scale
        scores: Floats = log_softmax(standard @ self.weights + self.bias, axis=1)
        return scores


@dataclass(frozen=True)
class Probe:
    """What a probe of one column came to in one group of cases.

    Attributes:
        target: the column.
        auc: rows of the metric; with more than two values their mean first, then each against the rest.
        accuracy: share of cases whose value the probe tells.
        majority: the share that always naming the commonest value would tell.
        note: values that were left out; empty where none was.
    """

    target: str
    auc: tuple[Estimate, ...]
    accuracy: Estimate
    majority: Estimate
    note: str


def fit_probe(features: Floats, classes: Ints, count: int, penalty: float = PENALTY) -> LinearProbe:
    """Fit a probe.

    Args:
        features: (n, F).
        classes: (n,) 0..count-1.
        count: K.
        penalty: of the squared weights; the bias has none.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    scale = np.where(spread > 1e-8 * max(float(spread.max(initial=0)), 1e-300), spread, 1.0)
    standard = (features - mean) / scale
    truth = np.eye(count)[classes]  # (n, K)
    width = features.shape[1]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights, bias = flat[: width * count].reshape(width, count), flat[width * count :]
        log = log_softmax(standard @ weights + bias, axis=1)
        error = np.exp(log) - truth
        slope = standard.T @ error + penalty * weights
        value = -(truth * log).sum() + penalty / 2 * (weights**2).sum()
        return float(value), np.concatenate([slope.ravel(), error.sum(axis=0)])

    start = np.zeros((width + 1) * count)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "gtol": 1e-6}).x
    return LinearProbe(
        found[: width * count].reshape(width, count), found[width * count :], mean, scale
    )  # (F, K), (K,)


def patient_folds(patients: Ints, classes: Ints, folds: int, seed: int) -> Ints:
    """Return the fold of each case, (n,): a patient's cases together, each fold with its share of each class.

    Args:
        patients: (n,) numbered without gaps.
        classes: (n,) a patient goes by its commonest.
        folds: how many, or as many as there are patients.
        seed: of the draw.
    """
    count = int(patients.max()) + 1
    votes = np.zeros((count, int(classes.max()) + 1))
    np.add.at(votes, (patients, classes), 1)
    drawn = np.random.default_rng(seed).permutation(count)
    dealt = drawn[np.argsort(votes.argmax(axis=1)[drawn], kind="stable")]
    fold = np.empty(count, np.int64)
    fold[dealt] = np.arange(count) % folds
    return fold[patients]


def cross_validated(
    features: Floats, classes: Ints, folds: Ints, count: int, penalty: float = PENALTY
) -> Floats:
    """Return the log probability of each value for each case, (n, K), by a probe fitted on the other folds.

    Args:
        features: (n, F).
        classes: (n,) 0..count-1.
        folds: (n,) of each case.
        count: K.
        penalty: as for `fit_probe`.
    """
    scores = np.empty((len(features), count))
    for fold in np.unique(folds):
        held_out = folds == fold
        probe = fit_probe(features[~held_out], classes[~held_out], count, penalty)
        scores[held_out] = probe.log_probabilities(features[held_out])
    return scores


def auc_within_folds(positive: Bools, scores: Floats, folds: Ints, weights: Floats) -> Floats:
    """Return the AUC over pairs of a positive and a negative case of the same fold, (R,).

    Args:
        positive, scores, folds: (n,).
        weights: (R, n).

    Returns:
        NaN where no fold has both.
    """
    wins, pairs = np.zeros((2, len(weights)))
    for fold in np.unique(folds):
        of = folds == fold
        there, absent = (weights[:, of] * chosen for chosen in (positive[of], ~positive[of]))
        count = there.sum(axis=1) * absent.sum(axis=1)
        wins += np.nan_to_num(weighted_auc(positive[of], scores[of], weights[:, of])) * count
        pairs += count
    return np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0)


def probe_column(
    predictions: Predictions, features: ArrayLike, column: str, spec: EvaluationSpec
) -> Iterator[Probe]:
    """Yield what features of the test cases tell of a column: over all of them, and in each site group.

    A group has a probe of its own. Cases without a value, and values of fewer than five patients, are left
    out.

    Args:
        predictions: has the column.
        features: (n, F) of the test cases, in their order.
        column: its name.
        spec: replicates, confidence and seed, which draws the folds as well.
    """
    test = predictions.part("test").reset_index(drop=True)
    values = np.asarray(features, np.float64)
    for group in wide_groups(test):
        at = group.rows.index.to_numpy()
        found = _probe(Place("case", group, spec, predictions.leaks), group, values[at], column)
        if found is not None:
            yield found


def _probe(place: Place, group: Group, features: Floats, column: str) -> Probe | None:
    """Return a group's probe; None where no case of it has a value."""
    cells = group.rows[column].astype(str).to_numpy(str)
    people = group.rows["patient_id"].to_numpy(str)
    there = set(cells) - {""}
    names = [name for name in natural_order(there) if len({*people[cells == name]}) >= FEWEST_PATIENTS]
    if not there:
        return None
    left_out = natural_order(there - {*names})
    note = f"left out, fewer than {FEWEST_PATIENTS} patients: {', '.join(left_out)}" if left_out else ""
    chosen = np.isin(cells, names if len(names) > 1 else natural_order(there))
    units = plain_units(np.unique(people[chosen], return_inverse=True)[1].astype(np.int64))
    if len(names) < 2:
        why = f"fewer than two values with {FEWEST_PATIENTS} patients" if len(there) > 1 else "one value"
        missing = [_missing(place, units, name, why) for name in ("auc", "accuracy", "accuracy")]
        return Probe(column, (missing[0],), missing[1], missing[2], "")
    classes = np.array([names.index(cell) for cell in cells[chosen]], np.int64)
    folds = patient_folds(units.patients, classes, FOLDS, place.spec.seed)
    scores = cross_validated(features[chosen], classes, folds, len(names))
    return _numbers(place, units.patients, column, names, classes, folds, scores, note)


def _numbers(
    place: Place,
    patients: Ints,
    column: str,
    names: Sequence[str],
    classes: Ints,
    folds: Ints,
    scores: Floats,
    note: str,
) -> Probe:
    units = plain_units(patients)
    right = (scores.argmax(axis=1) == classes).astype(np.float64)
    commonest = int(np.bincount(classes).argmax())
    common = (classes == commonest).astype(np.float64)
    of_pair = len(names) == 2

    def measured(weights: Floats) -> dict[str, Floats]:
        each = [
            auc_within_folds(classes == k, scores[:, k], folds, weights)
            for k in ((1,) if of_pair else range(len(names)))
        ]
        of_values = {} if of_pair else {f"auc {k}": value for k, value in enumerate(each)}
        return {
            "auc": np.mean(each, axis=0),
            "accuracy": weighted_mean(right, weights),
            "majority": weighted_mean(common, weights),
            **of_values,
        }

    points, intervals = measured(np.ones((1, len(units)))), place.bootstrap(measured, units)
    everyone = np.ones(len(units), np.bool_)

    def row(key: str, metric: str, class_name: str = "", positives: int | None = None) -> Estimate:
        return place.estimate(
            metric_of(metric),
            float(points[key][0]),
            intervals.get(key),
            units,
            needed=everyone,
            class_name=class_name,
            positives=positives,
            is_mean=metric == "auc",
            why="no fold has a case with the value and one without",
        )

    counts = np.bincount(classes)
    return Probe(
        target=column,
        auc=(
            row("auc", "auc", names[1] if of_pair else "", int(counts[1]) if of_pair else None),
            *(row(f"auc {k}", "auc", name, int(counts[k])) for k, name in enumerate(names) if not of_pair),
        ),
        accuracy=row("accuracy", "accuracy", positives=int(right.sum())),
        majority=row("majority", "accuracy", names[commonest], int(common.sum())),
        note=note,
    )


def _missing(place: Place, units: SampleUnits, metric: str, why: str) -> Estimate:
    none = np.zeros(len(units), np.bool_)
    return place.estimate(metric_of(metric), np.nan, None, units, needed=none, why=why)
