"""A network's table of predictions for the cases of a cohort."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from threefold.cohorts.alike_ids import refuse_alike_ids
from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.failures import Failures, sparing_others
from threefold.cohorts.splits import Split
from threefold.cohorts.trained_on import TrainedOn
from threefold.core.targets import ClassTarget
from threefold.errors import ImageError
from threefold.evaluation.predictions import NOT_MEASURED, VOLUME_COLUMNS
from threefold.evaluation.reconstruction import psnr, ssim
from threefold.experiment import Experiment, Part
from threefold.file_names import case_stem
from threefold.images.geometry import Image, voxel_volume
from threefold.images.writing import label_map_suffix, write_label_map
from threefold.inference.engine import Prepared, Result, run_network
from threefold.inference.listing import Source
from threefold.inference.out_of_distribution import KEPT
from threefold.inference.sources import Asked, prepare, refuse_other_question
from threefold.inference.structures import Truth, measure_structures, read_truth, topology_columns
from threefold.run import make_folder
from threefold.tasks.questions import Question, questions_of, the_only

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]
"""Called with the number of cases that are done and the number of all."""

_Measured = tuple[dict[str, Any], list[dict[str, Any]]]  # a row of predictions, rows of structures
_MEASURING = 2  # cases at a time
_WAITING = 4  # cases whose labels and truth are held until they are measured


@dataclass(frozen=True)
class CaseTables:
    """A network's answers for the cases of a cohort.

    Attributes:
        cases: one row a case, as `threefold.evaluation.predictions` defines the columns.
        structures: one row a case and structure, as `threefold.evaluation.structures` does; of a mask the
            union's alone; empty without a segmentation.
        features: (F,) the encoder's pooled features of each case, by id; empty where the network gives none.
        unlike: by id, what shows that an image is unlike the training images; cases without are left out.
    """

    cases: pd.DataFrame
    structures: pd.DataFrame
    features: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    unlike: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def predict_cases(
    network: nn.Module,
    experiment: Experiment,
    cohort: Cohort,
    split: Split | None,
    *,
    parts: Sequence[Part] | None = None,
    trained: CohortSpec | None = None,
    seen: TrainedOn | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    masks: Path | None = None,
    failed: Failures | None = None,
    progress: Progress | None = None,
) -> CaseTables:
    """Predict cases and hold the answers against what is known of them.

    Masks and structures are measured on each image's own grid, where the true ones are: the predicted one
    is brought back to it. The region of structures is where a voxel has any label. PSNR and SSIM are of the
    network's grid, between the network's input (0..1, padding included) and its reconstruction. Columns
    that the network has no head for are left out; further columns of the cohort's table are kept. A measure
    that fails leaves its cells of that case empty, and `not_measured` says why.

    Args:
        network: left on `device` and in evaluation mode.
        experiment: gives the network's grid and tasks.
        cohort: whose cases to predict.
        split: which case is in which part; None: all are test cases.
        parts: predict the cases of these parts only; None: all.
        trained: the cohort that the network was trained on, where it is another one: its classes name the
            probabilities, its window prepares the images, and each image is held against it.
        seen: what the images that the network was trained on were; None: not known.
        device: for the network.
        batch_size: cases a pass.
        masks: folder (made if absent) for the predicted label map of each case, named by `case_stem`.
        failed: gets each case that can't be predicted, and why; the others are. None: the first one raises.
        progress: told after each case.

    Raises:
        CohortError: the cohort's axes, modality, unit or classes are not those trained on; two cases' masks
            would be one file.
        ImageError: naming the case: its image or mask can't be read (unless `failed` is given), or a mask
            can't be written.
    """
    import pandas as pd

    trained = trained or cohort.spec
    refuse_other_question(trained, cohort.spec)
    if masks is not None:
        refuse_alike_ids(cohort)
    chosen = {case.case_id: case for case in cohort.cases if parts is None or _part(case, split) in parts}
    asked = Asked(trained, experiment.data.preprocessing, seen, judged=trained is not cohort.spec)
    prepared = prepare_cases(chosen.values(), cohort.spec, asked, failed)
    rows: list[dict[str, Any]] = []
    structures: list[dict[str, Any]] = []
    features: dict[str, NDArray[np.float32]] = {}
    unlike: dict[str, tuple[str, ...]] = {}
    waiting: deque[tuple[str, Future[_Measured]]] = deque()
    questions = questions_of(experiment, trained)

    def collect() -> None:
        name, measuring = waiting.popleft()
        with nullcontext() if failed is None else sparing_others(failed, name):
            row, lines = measuring.result()
            rows.append(row)
            structures.extend(lines)
        if progress is not None:
            progress(len(rows), len(chosen))

    # Measuring is mostly numpy's, and goes on beside the network's next cases.
    with ThreadPoolExecutor(max_workers=_MEASURING) as pool:
        for one, result in run_network(
            network,
            prepared,
            questions,
            device=device,
            batch_size=batch_size,
            on_failure=None if failed is None else partial(_keep, failed),
        ):
            case = chosen[one.case_id]
            truths: dict[str, Truth] = {}
            with nullcontext() if failed is None else sparing_others(failed, case.case_id):
                truths = {
                    question.head: read_truth(case, one.image, cohort.spec, target_of_labels(question))
                    for question in questions
                    if question.kind == "labels"
                }
            if failed is not None and case.case_id in failed:
                continue
            if result.features is not None:
                features[case.case_id] = result.features
            if one.unlike:
                unlike[case.case_id] = one.unlike
            if masks is not None:
                write_case_masks(masks, one, result, questions)
            identity = case_identity(case, cohort.spec, _part(case, split), questions)
            if one.remarks or result.remarks:
                identity["prediction_notes"] = "; ".join((*one.remarks, *result.remarks))
            measuring = pool.submit(_measure, case, identity, one, result, truths, questions)
            waiting.append((case.case_id, measuring))
            if len(waiting) > _WAITING:
                collect()
        while waiting:
            collect()
    return CaseTables(pd.DataFrame(rows), pd.DataFrame(structures), features, unlike)


def training_features(
    network: nn.Module,
    experiment: Experiment,
    spec: CohortSpec,
    cases: Sequence[Case],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[NDArray[np.float32]]:
    """Return the encoder's pooled features (F,) of training cases, at most `KEPT` of them, evenly spread.

    Args:
        network: left on `device` and in evaluation mode.
        experiment: gives the network's grid.
        spec: of the cohort.
        cases: of the training part; one that can't be read any more is left out.
        device: for the network.
        batch_size: cases a pass.
        progress: told after each case.

    Returns:
        An empty list for a network that gives no features.
    """
    failed: Failures = {}
    ordered = sorted(cases, key=lambda case: case.case_id)
    places = np.linspace(0, len(ordered) - 1, min(len(ordered), KEPT)).round().astype(int)
    asked = Asked(spec, experiment.data.preprocessing, judged=False)
    prepared = prepare_cases((ordered[i] for i in places), spec, asked, failed)
    found = []
    for number, (_, result) in enumerate(
        run_network(
            network,
            prepared,
            (),
            device=device,
            batch_size=batch_size,
            on_failure=partial(_keep, failed),
        ),
        start=1,
    ):
        if result.features is not None:
            found.append(result.features)
        if progress is not None:
            progress(number, len(places))
    return found


def _part(case: Case, split: Split | None) -> Part:
    return "test" if split is None else split.parts[case.case_id]


def prepare_cases(
    cases: Iterable[Case], spec: CohortSpec, asked: Asked, failed: Failures | None = None
) -> Iterator[Prepared]:
    """Yield each case's image on the network's grid.

    Args:
        cases: to be read, one at a time.
        spec: of their cohort.
        asked: the network.
        failed: gets each case that can't be read, or is not what the network was trained on, and why.

    Raises:
        ImageError: naming such a case, where `failed` is None.
    """
    for case in cases:
        source = Source.of(case, spec)
        with nullcontext() if failed is None else sparing_others(failed, case.case_id):
            try:
                yield from prepare(source, asked, uneven="refuse")
            except ImageError as error:
                raise ImageError(f"case {case.case_id}: {error}") from error


def _keep(failed: Failures, one: Prepared, error: Exception) -> None:
    failed[one.case_id] = str(error)


def target_of_labels(question: Question) -> str:
    """Return the target that a question's label map is held against."""
    return question.target or ("structures" if question.names else "mask")


def case_identity(
    case: Case, spec: CohortSpec, part: Part, questions: Sequence[Question] = ()
) -> dict[str, Any]:
    """Return the columns that say which case a row is of; its class is that of the only class question."""
    asked = the_only(questions, "class")
    target = "label" if asked is None or asked.target is None else asked.target
    known = spec.all_targets.get(target)
    value = case.targets.get(target)
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "site": case.site,
        "site_group": spec.site_group(case.site) or "",
        "part": part,
        "label": known.classes[value] if isinstance(known, ClassTarget) and value is not None else "",
    }


def _measure(
    case: Case,
    identity: Mapping[str, Any],
    one: Prepared,
    result: Result,
    truths: Mapping[str, Truth],
    questions: Sequence[Question],
) -> _Measured:
    """Return a case's row of predictions and its rows of structures.

    Args:
        case, identity: the case, and the columns that say which it is.
        one, result: its image as the network saw it, and what the network said.
        truths: what the label maps are held against, by head.
        questions: what the network was asked.
    """
    row: dict[str, Any] = {**identity}
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    for question in questions:
        found, measured = _answered(case, one, result, truths, question, questions, problems)
        named = {f"{question.prefix}{name}": value for name, value in found.items()}
        row |= {name: value for name, value in named.items() if name not in identity}
        structures = [{**line, "structure": f"{question.prefix}{line['structure']}"} for line in measured]
        lines += structures
    row |= result.members
    if problems:
        row[NOT_MEASURED] = "; ".join(problems)
    return {**row, **{name: text for name, text in case.extra.items() if name not in row}}, lines


def _answered(
    case: Case,
    one: Prepared,
    result: Result,
    truths: Mapping[str, Truth],
    question: Question,
    questions: Sequence[Question],
    problems: list[str],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what one question adds to a case's row, and its rows of structures."""
    head, names = question.head, question.names
    if question.kind in ("class", "other"):
        assert question.task is not None
        truth_of = None if question.target is None else case.targets.get(question.target)
        return question.task.columns(result.pooled[head], truth_of), []
    row: dict[str, Any] = {}
    if question.kind == "image":
        restored = result.images.get(head)  # none of an ensemble whose members don't all restore it
        for name, similarity in (("psnr", psnr), ("ssim", ssim)):
            with _noted(problems, f"{question.prefix}{name}"):
                if restored is not None:
                    row[name] = similarity(one.array, restored)
        return row, []
    labels, truth = result.labels[head], truths[head]
    known = truth.foreground if names else truth.region
    row |= mask_columns(labels, known) | volume_columns(labels, known, one.image)
    lines: list[dict[str, Any]] = []
    with _noted(problems, f"{question.prefix}structures"):
        lines = measure_structures(
            case.case_id, labels, truth, names, placement=one.placement, image=one.image
        )
    if names:
        asked = the_only(questions, "class")
        with _noted(problems, f"{question.prefix}topology"):
            row |= topology_columns(
                labels,
                truth.structures,
                names=names,
                classes=() if asked is None else asked.classes,
                placement=one.placement,
                image=one.image,
                probabilities={} if asked is None else probabilities_of(asked, result),
            )
    return row, lines


def probabilities_of(question: Question, result: Result) -> dict[str, float]:
    """Return the probability of each class of a question; empty where it was not answered."""
    if question.head not in result.pooled:
        return {}
    return dict(zip(question.classes, result.pooled[question.head].tolist(), strict=True))


@contextmanager
def _noted(problems: list[str], what: str) -> Iterator[None]:
    """Write down what a measure fails with: one case's cells stay empty, the other cases keep theirs."""
    try:
        yield
    except Exception as error:
        problems.append(f"{what}: {error or type(error).__name__}")


def mask_columns(predicted: NDArray[np.uint8], known: NDArray[np.bool_] | None) -> dict[str, Any]:
    """Return the voxels of the true region (None: not known), of any predicted label, and of both."""
    found = predicted > 0
    return {
        "mask_truth_voxels": np.nan if known is None else int(known.sum()),
        "mask_predicted_voxels": int(found.sum()),
        "mask_overlap_voxels": np.nan if known is None else int((known & found).sum()),
    }


def volume_columns(
    predicted: NDArray[np.uint8], known: NDArray[np.bool_] | None, image: Image
) -> dict[str, Any]:
    """Return the volume of any predicted label and of the true region (None: not known), and their unit."""
    size, unit = voxel_volume(image)
    volumes = (None if mask is None else int((mask > 0).sum()) * size for mask in (predicted, known))
    return dict(zip(VOLUME_COLUMNS, (*volumes, unit), strict=True))


def write_case_masks(folder: Path, one: Prepared, result: Result, questions: Sequence[Question]) -> None:
    """Write a case's label maps on its image's own grid, NIfTI or PNG; of several tasks each into its folder.

    Raises:
        ImageError: if one can't be written.
    """
    for question in questions:
        if question.kind == "labels":
            into = folder / question.prefix.removesuffix(".")
            make_folder(into)
            path = into / f"{case_stem(one.case_id)}{label_map_suffix(one.image)}"
            labels = result.labels[question.head]
            write_label_map(path, labels, one.image, labels=len(question.names) or 1)
