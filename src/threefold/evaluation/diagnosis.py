"""The metrics of a diagnosis, by the probabilities of its classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from threefold.evaluation.classification import OneClass, SeveralClasses, WeightedClass, WeightedClasses
from threefold.evaluation.estimate import Estimate, Place
from threefold.evaluation.groups import SampleUnits
from threefold.evaluation.metrics import Metric, diagnosis_metrics, metric_of
from threefold.evaluation.predictions import Predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
OfClass = tuple[str, int | None]
"""A metric, and the class that it is of against the rest; None: the metric itself."""


def diagnosis(
    labels: Ints,
    probabilities: Floats,
    *,
    positive: int | None,
    threshold: float,
    names: Collection[str] | None = None,
) -> Callable[[Floats], Mapping[OfClass, Floats]]:
    """Return the metrics of the diagnosis as a function of weights; what no weight changes is done once.

    Args:
        labels: (n,) class indices.
        probabilities: (n, K).
        positive: index of the positive class of two; None: every class against the rest, and their mean.
        threshold: two classes: positive where p >= threshold. More: the most probable class is decided.
        names: the metrics that are wanted; None: all.

    Returns:
        From weights (R, n) to (R,) values by (metric, class); class None is the metric itself: of the
        positive class with two classes, else the mean over the classes (NaN where it does not exist for one
        of them), or what the metric says of several classes itself.
    """
    wanted = diagnosis_metrics() if names is None else {name: metric_of(name) for name in names}
    if positive is not None:
        scores = probabilities[:, positive]
        cases = OneClass(labels == positive, scores, scores >= threshold)
        return lambda weights: {
            (name, None): value for name, value in _of_class(WeightedClass(cases, weights), wanted).items()
        }
    several = SeveralClasses(labels, probabilities)
    each = {name: metric for name, metric in wanted.items() if metric.of_classes is None}

    def values(weights: Floats) -> Mapping[OfClass, Floats]:
        weighted = WeightedClasses(several, weights)
        per_class = [_of_class(one, each) for one in weighted.each]
        found: dict[OfClass, Floats] = {
            (name, None): np.mean([values[name] for values in per_class], axis=0) for name in each
        }
        for name, metric in wanted.items():
            if metric.of_classes is not None:
                found[name, None] = metric.of_classes(weighted)
        for name in each:
            found |= {(name, k): values[name] for k, values in enumerate(per_class)}
        return found

    return values


def _of_class(one: WeightedClass, wanted: Mapping[str, Metric]) -> dict[str, Floats]:
    return {name: metric.of_class(one) for name, metric in wanted.items() if metric.of_class is not None}


_SORTED_FROM = 10_000
"""Cases; of more, each resample is gathered in the order of the scores, and not gathered again to rank it."""


def diagnosis_estimates(
    place: Place, units: SampleUnits, predictions: Predictions, threshold: float
) -> Iterator[Estimate]:
    """Yield every metric of the diagnosis over the labelled ones of some units.

    Args:
        place: where the numbers belong.
        units: cases or patients.
        predictions: names the classes.
        threshold: two classes: positive where p >= threshold.
    """
    units = units.where(units.labels >= 0)
    positive = predictions.positive_index
    if positive is not None and len(units) > _SORTED_FROM:
        units = units.where(np.argsort(units.probabilities[:, positive], kind="stable"))

    known = diagnosis_metrics(place.spec.metrics)
    of = diagnosis(units.labels, units.probabilities, positive=positive, threshold=threshold, names=known)
    counts = np.bincount(units.labels, minlength=len(predictions.classes))
    points = of(np.ones((1, len(units))))
    intervals = place.bootstrap(of, units)
    for name, index in points:
        whose = positive if index is None else index
        needs = known[name].needs
        needed = units.labels >= 0
        if whose is not None and needs != "cases":
            needed = units.labels == whose if needs == "positives" else units.labels != whose
        yield place.estimate(
            known[name],
            float(points[name, index][0]),
            intervals.get((name, index)),
            units,
            needed=needed,
            is_mean=whose is None and needs != "cases",
            class_name="" if index is None else predictions.classes[index],
            positives=None if whose is None else int(counts[whose]),
            why=_why(known[name], len(units), counts, whose, predictions.classes),
        )


def _why(
    metric: Metric, n: int, counts: NDArray[np.int64], positive: int | None, classes: Sequence[str]
) -> str:
    """Say why a metric of the diagnosis does not exist, given the cases of each class."""
    if n == 0:
        return "no labelled case"
    if positive is None:
        absent = [name for name, count in zip(classes, counts, strict=True) if count == 0]
        return f"no case of class {', '.join(absent)}"
    positives = int(counts[positive])
    if metric.needs == "both":
        return "one class"
    return "no positive case" if positives == 0 else "no negative case"
