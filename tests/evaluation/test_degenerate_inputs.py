"""Every measure has an answer for the inputs at the edge: a number, or that there is none; never an error.

Swept here are all functions of the rooms that measure masks, labels and probabilities; one that is added to
such a room and neither swept nor named in `HELPERS` fails a test.
"""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from threefold import topology
from threefold.errors import PredictionsError
from threefold.evaluation import (
    arch,
    by_value,
    calibration,
    centrelines,
    classification,
    curves,
    delong,
    diagnosis,
    evaluate,
    evidence,
    overlap,
    probes,
    reconstruction,
    shift,
    similarity,
    structure_measures,
    surfaces,
    vessel_graph,
    winding,
)
from threefold.evaluation.predictions import validate
from threefold.experiment import EvaluationSpec

Mask = NDArray[np.uint8]
SPEC = EvaluationSpec(replicates=3)
SHAPES = ((1, 1), (5, 6), (1, 5, 6), (5, 6, 1), (2, 2, 2), (4, 5, 6))


def masks(shape: tuple[int, ...]) -> dict[str, Mask]:
    """Return masks at the edge of what a mask can be."""
    corner, border = np.zeros((2, *shape), np.uint8)
    corner[(0,) * len(shape)] = 1
    border[0] = 1
    inner = np.zeros(shape, np.uint8)
    inner[tuple(slice(side // 4, side // 4 + max(1, side // 2)) for side in shape)] = 1
    return {
        "empty": np.zeros(shape, np.uint8),
        "full": np.ones(shape, np.uint8),
        "one voxel": corner,
        "at the border": border,
        "inner": inner,
        "checkered": (np.indices(shape).sum(axis=0) % 2).astype(np.uint8),
    }


PAIRS = [
    pytest.param(shape, true, found, id=f"{'x'.join(map(str, shape))} {true} {found}")
    for shape in SHAPES
    for true, found in itertools.product(("empty", "full", "one voxel", "at the border", "inner"), repeat=2)
]


def in_space(
    truth: Mask, found: Mask, both: Mask, names: Sequence[str], spacing: Sequence[float]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each measure that needs a spacing."""
    yield "structure_rows", lambda: structure_measures.structure_rows(truth, found, names, spacing)
    yield "union_row", lambda: structure_measures.union_row(truth, found, spacing)
    yield "structure_rows", lambda: structure_measures.structure_rows(None, found, names, spacing)
    yield (
        "surface_distances",
        lambda: [
            None if one is None else (one.average(), one.hausdorff())
            for one in surfaces.surface_distances(truth, found, 2, spacing)
        ],
    )
    if truth.ndim == 3:
        yield "find_arch", lambda: arch.find_arch(both, names, spacing)
        yield "find_arch", lambda: arch.find_arch(both, names, spacing, trachea=found)


def of_masks(truth: Mask, found: Mask) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each measure of a pair of masks."""
    axes, names = truth.ndim, ("AO", "DAO")
    both = np.where(truth > 0, 1, 2 * found).astype(np.uint8)
    yield from in_space(truth, found, both, names, (1.0,) * axes)
    yield from in_space(truth, found, both, names, (0.3, 1.0, 7.0)[:axes])
    yield "voxel_counts", lambda: surfaces.voxel_counts(truth, found, 1)
    yield "cl_dice", lambda: centrelines.cl_dice(truth, found, 2)
    yield "skeletons", lambda: centrelines.skeletons(topology.as_label_map(both, 2))
    yield "vessel_graph", lambda: vessel_graph.vessel_graph(both, names)
    yield (
        "graph_edits",
        lambda: vessel_graph.graph_edits(
            vessel_graph.vessel_graph(truth, names), vessel_graph.vessel_graph(both, names)
        ),
    )
    for measure in (topology.betti_numbers, topology.contact_counts):
        yield measure.__name__, lambda measure=measure: measure(both, 2)
    sizes = (int(truth.sum()), int(found.sum()), int((truth & found).sum()))
    yield "dice", lambda: overlap.dice(*sizes)
    yield "missed_lesions", lambda: overlap.missed_lesions(sizes[0], sizes[2])
    yield "false_alarms", lambda: overlap.false_alarms(sizes[0], sizes[1])
    heat, lesion = found.astype(np.float64), truth > 0
    yield "localise", lambda: evidence.localise(heat, lesion)
    yield "localise_random", lambda: evidence.localise_random([2] * axes, lesion, seed=0)
    yield "attention_columns", lambda: evidence.attention_columns(heat, [2] * axes, lesion, seed=0)
    yield "psnr", lambda: reconstruction.psnr(truth, found)
    yield "ssim", lambda: reconstruction.ssim(truth[None], found[None])


@pytest.mark.parametrize(("shape", "true", "found"), PAIRS)
def test_pairs_of_masks(shape: tuple[int, ...], true: str, found: str) -> None:
    one, other = masks(shape)[true], masks(shape)[found]
    same = np.array_equal(one, other)
    for name, measure in of_masks(one, other):
        for value in _numbers(_answer(name, measure)):
            assert math.isfinite(value) or math.isnan(value) or (name == "psnr" and same), (name, value)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", masks((1, 1)))
def test_a_prediction_that_is_the_truth_is_perfect(shape: tuple[int, ...], name: str) -> None:
    mask = masks(shape)[name]
    row = structure_measures.union_row(mask, mask, (1.0,) * len(shape))
    perfect = (0.0, 0.0, 1.0) if mask.any() else (None, None, None)
    assert (row.asd_mm, row.hd95_mm, row.cl_dice) == perfect
    assert overlap.dice(*[mask.sum()] * 3)[0] == 1 or not mask.any()


def test_an_empty_mask_against_an_empty_one_is_outside_every_mean() -> None:
    empty = np.zeros((4, 5), np.uint8)
    row = structure_measures.union_row(empty, empty, (1.0, 1.0))
    assert (row.truth_voxels, row.predicted_voxels, row.overlap_voxels) == (0, 0, 0)
    assert (row.asd_mm, row.hd95_mm, row.cl_dice) == (None, None, None)
    assert math.isnan(overlap.dice(0, 0, 0)[0])
    assert overlap.false_alarms(0, 0)[0] == 0


SCORES = {
    "tied": lambda n: np.full(n, 0.5),
    "zero": np.zeros,
    "one": np.ones,
    "zero and one": lambda n: np.arange(n) % 2 * 1.0,
    "spread": lambda n: np.linspace(0.01, 0.99, n) if n else np.zeros(0),
}
LABELS = {
    "negatives": lambda n: np.zeros(n, np.int64),
    "positives": lambda n: np.ones(n, np.int64),
    "both": lambda n: np.arange(n) % 2,
}
TABLES = [
    pytest.param(n, score, label, id=f"{n} {score} {label}")
    for n in (0, 1, 2, 7)
    for score, label in itertools.product(SCORES, LABELS)
]


def of_probabilities(
    labels: NDArray[np.int64], scores: NDArray[np.float64], patients: NDArray[np.int64]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each measure of a diagnosis."""
    n, positive = len(labels), labels == 1
    two = np.stack([1 - scores, scores], axis=1)
    three = np.stack([1 - scores, scores, 0 * scores], axis=1)
    weights = np.ones((2, n))
    weights[1] = 0  # a resample that no case is in
    counts = classification.confusion(positive, scores >= 0.5, weights)
    for measure in (
        classification.sensitivity,
        classification.specificity,
        classification.balanced_accuracy,
        classification.f1,
        classification.accuracy,
    ):
        yield measure.__name__, lambda measure=measure: measure(counts)
    for ranked in (
        classification.weighted_auc,
        classification.weighted_average_precision,
        classification.calibration_error,
    ):
        yield ranked.__name__, lambda ranked=ranked: ranked(positive, scores, weights)
    for plain in (classification.auc, classification.average_precision):
        yield plain.__name__, lambda plain=plain: plain(positive, scores)
    yield "confusion", lambda: classification.confusion(positive, scores >= 0.5, weights)
    yield "brier", lambda: classification.brier(positive * 1.0, scores, weights)
    yield "weighted_mean", lambda: classification.weighted_mean(scores, weights)
    yield "confusion_shares", lambda: classification.confusion_shares(labels, labels, weights, classes=2)
    for rule in ("youden", "f1", "0.5"):
        yield "choose_threshold", lambda rule=rule: classification.choose_threshold(positive, scores, rule)
    for chances, index in ((two, 1), (three, None)):
        yield (
            "diagnosis",
            lambda chances=chances, index=index: diagnosis.diagnosis(
                labels, chances, positive=index, threshold=0.5
            )(weights),
        )
    yield "with_temperature", lambda: calibration.with_temperature(two, 2.0)
    yield "fit_temperatures", lambda: calibration.fit_temperatures(labels, two, weights)
    yield "fit_temperature", lambda: calibration.fit_temperature(labels, two)[0]
    yield "roc_curve", lambda: curves.roc_curve(positive, scores, patients, SPEC)
    yield "reliability_curve", lambda: curves.reliability_curve(positive, scores, patients, SPEC)
    yield "compare_auc", lambda: delong.compare_auc(positive, scores, scores[::-1], patients.astype(str))
    yield "similarity", lambda: similarity.similarity(two, three, patients.astype(str).tolist(), SPEC)
    yield "flips", lambda: evidence.flips(scores, scores[::-1], 0.5)
    yield "changes", lambda: evidence.changes(scores, scores[::-1])


def of_table(
    labels: NDArray[np.int64], two: NDArray[np.float64], patients: NDArray[np.int64]
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each measure of a table of predictions; every third case has no label, masks are all empty."""
    n = len(labels)
    table = pd.DataFrame(
        {
            "case_id": [f"c{i}" for i in range(n)],
            "patient_id": [f"p{patient}" for patient in patients],
            "site": [f"s{i % 2}" for i in range(n)],
            "site_group": ["internal", "external"][: 1 + n % 2] * n if n % 2 == 0 else "internal",
            "part": "test",
            "label": ["" if i % 3 == 2 else "ab"[label] for i, label in enumerate(labels)],
            "probability_a": two[:, 0],
            "probability_b": two[:, 1],
            **dict.fromkeys(("mask_truth_voxels", "mask_predicted_voxels", "mask_overlap_voxels"), 0),
            "psnr": np.inf,
            "kind": [str(i % 2) for i in range(n)],
        }
    )
    whole = validate(table)
    halves = validate(table.assign(part=["validation" if i % 2 else "test" for i in range(n)]))
    for predictions in (whole, halves):
        yield "evaluate", lambda predictions=predictions: evaluate.evaluate(predictions, SPEC).rows
        yield "temperature_of", lambda predictions=predictions: calibration.temperature_of(predictions, SPEC)
        yield (
            "calibration_changes",
            lambda predictions=predictions: list(calibration.calibration_changes(predictions, 2.0, SPEC)),
        )
        yield "shifts", lambda predictions=predictions: shift.shifts(predictions, SPEC)
        yield "by_value", lambda predictions=predictions: by_value.by_value(predictions, "kind", SPEC).rows
        yield (
            "probe_column",
            lambda predictions=predictions: list(
                probes.probe_column(predictions, np.ones((len(predictions.part("test")), 2)), "kind", SPEC)
            ),
        )


@pytest.mark.parametrize("alone", [True, False], ids=["each a patient", "one patient"])
@pytest.mark.parametrize(("n", "score", "label"), TABLES)
def test_probabilities(n: int, score: str, label: str, alone: bool) -> None:
    patients = np.arange(n) if alone else np.zeros(n, np.int64)
    for name, measure in of_probabilities(LABELS[label](n), SCORES[score](n), patients):
        for value in _numbers(_answer(name, measure)):
            assert math.isfinite(value) or math.isnan(value), (name, value)


@pytest.mark.parametrize("alone", [True, False], ids=["each a patient", "one patient"])
@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_tables(n: int, label: str, alone: bool) -> None:
    patients = np.arange(n) if alone else np.zeros(n, np.int64)
    chances = np.full((n, 2), 0.5)
    for name, measure in of_table(LABELS[label](n), chances, patients):
        for value in _numbers(_answer(name, measure)):
            # The PSNR of an image that came back as it was is infinite.
            assert math.isfinite(value) or math.isnan(value) or name in ("evaluate", "shifts"), (name, value)


HELPERS = {
    topology: {"label_components", "as_label_map", "bounding_box"},
    arch: {"knows_arch"},
    evidence: {"centred_blob", "evidence_rows"},  # tables by group of what is swept
    winding: {"mask_line", "widened", "holes_along_body", "winds_around"},  # asked by find_arch
    classification: {"calibration_bins", "auc_of", "average_precision_of", "from_the_highest", "ratio"},
    diagnosis: {"diagnosis_estimates"},  # within evaluate
    by_value: {"require_column"},
    evaluate: {"decision_threshold", "confusion_name"},  # within evaluate
    probes: {"fit_probe", "patient_folds", "cross_validated", "auc_within_folds"},  # within probe_column
    similarity: {"linear_cka", "hsic", "minibatches"},  # within similarity
}
ROOMS: Sequence[ModuleType] = (
    *HELPERS,
    calibration,
    centrelines,
    curves,
    delong,
    overlap,
    reconstruction,
    shift,
    structure_measures,
    surfaces,
    vessel_graph,
)


def test_every_measure_is_swept() -> None:
    mask = np.ones((4, 5, 6), np.uint8)
    swept = {name for name, _ in of_masks(mask, mask)}
    four = np.arange(4)
    swept |= {name for name, _ in of_probabilities(four % 2, np.full(4, 0.5), four)}
    swept |= {name for name, _ in of_table(four % 2, np.full((4, 2), 0.5), four)}
    for room in ROOMS:
        public = {
            name
            for name, one in inspect.getmembers(room, inspect.isfunction)
            if one.__module__ == room.__name__ and not name.startswith("_")
        }
        missing = public - swept - HELPERS.get(room, set())
        assert not missing, f"{room.__name__}: {missing} meet no degenerate input"


def _answer(name: str, measure: Callable[[], Any]) -> Any:
    """Return a measure's answer; a warning is an error, and a table may have nothing to measure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return measure()
        except PredictionsError:
            assert name in ("evaluate", "by_value"), name
            return None


def _numbers(answer: Any) -> Iterator[float]:
    """Yield every number in an answer."""
    if is_dataclass(answer) and not isinstance(answer, type):
        answer = asdict(answer)
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, np.ndarray):
        yield from answer.ravel().astype(float).tolist()
    elif isinstance(answer, list | tuple | set | frozenset):
        for one in answer:
            yield from _numbers(one)
    elif isinstance(answer, int | float):
        yield float(answer)
