"""A network's table of predictions for the cases of a cohort."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
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
from threefold.errors import ImageError
from threefold.evaluation.predictions import NOT_MEASURED, probability_column
from threefold.evaluation.reconstruction import psnr, ssim
from threefold.experiment import CascadeSpec, Experiment, Part
from threefold.file_names import case_stem
from threefold.images.writing import label_map_suffix, write_label_map
from threefold.inference.engine import Prepared, Result, run_network
from threefold.inference.listing import Source
from threefold.inference.sources import Asked, prepare, refuse_other_question
from threefold.inference.structures import Truth, measure_structures, read_truth, topology_columns
from threefold.run import make_folder

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
    """

    cases: pd.DataFrame
    structures: pd.DataFrame


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
    waiting: deque[tuple[str, Future[_Measured]]] = deque()
    names = structure_names(experiment, trained)

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
            device=device,
            batch_size=batch_size,
            on_failure=None if failed is None else partial(_keep, failed),
        ):
            case, truth = chosen[one.case_id], None
            if result.labels is not None:
                with nullcontext() if failed is None else sparing_others(failed, case.case_id):
                    truth = read_truth(case, one.image, cohort.spec, "structures" if names else "mask")
                if failed is not None and case.case_id in failed:
                    continue
            if masks is not None and result.labels is not None:
                make_folder(masks)
                write_case_mask(masks, one, result.labels, label_count(experiment, trained))
            identity = case_identity(case, cohort.spec, _part(case, split))
            if one.remarks:
                identity["prediction_notes"] = "; ".join(one.remarks)
            measuring = pool.submit(_measure, case, identity, one, result, truth, trained, names)
            waiting.append((case.case_id, measuring))
            if len(waiting) > _WAITING:
                collect()
        while waiting:
            collect()
    return CaseTables(pd.DataFrame(rows), pd.DataFrame(structures))


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
        source = Source(case.case_id, str(case.image), case.slice_index, spec)
        with nullcontext() if failed is None else sparing_others(failed, case.case_id):
            try:
                yield from prepare(source, asked, uneven="refuse")
            except ImageError as error:
                raise ImageError(f"case {case.case_id}: {error}") from error


def _keep(failed: Failures, one: Prepared, error: Exception) -> None:
    failed[one.case_id] = str(error)


def case_identity(case: Case, spec: CohortSpec, part: Part) -> dict[str, Any]:
    """Return the columns that say which case a row is of."""
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "site": case.site,
        "site_group": spec.site_group(case.site) or "",
        "part": part,
        "label": "" if case.label is None else spec.classes[case.label],
    }


def _measure(
    case: Case,
    identity: Mapping[str, Any],
    one: Prepared,
    result: Result,
    truth: Truth | None,
    trained: CohortSpec,
    names: Sequence[str],
) -> _Measured:
    """Return a case's row of predictions and its rows of structures.

    Args:
        case, identity: the case, and the columns that say which it is.
        one, result: its image as the network saw it, and what the network said.
        truth: what the labels are held against; None: the network predicts none.
        trained: names classes and structures.
        names: of the labels; none: they are a binary mask.
    """
    row: dict[str, Any] = {**identity}
    lines: list[dict[str, Any]] = []
    problems: list[str] = []
    probabilities: dict[str, float] = {}
    if result.probabilities is not None:
        probabilities = dict(zip(trained.classes, result.probabilities.tolist(), strict=True))
        row |= {probability_column(name): value for name, value in probabilities.items()}
    if result.labels is not None and truth is not None:
        row |= mask_columns(result.labels, truth.foreground if names else truth.region)
        with _noted(problems, "structures"):
            lines = measure_structures(
                case.case_id, result.labels, truth, names, placement=one.placement, image=one.image
            )
        if names:
            with _noted(problems, "topology"):
                row |= topology_columns(
                    result.labels,
                    truth.structures,
                    trained=trained,
                    placement=one.placement,
                    image=one.image,
                    probabilities=probabilities,
                )
    if result.reconstruction is not None:
        for name, similarity in (("psnr", psnr), ("ssim", ssim)):
            with _noted(problems, name):
                row[name] = similarity(one.array, result.reconstruction)
    if problems:
        row[NOT_MEASURED] = "; ".join(problems)
    return {**row, **{name: text for name, text in case.extra.items() if name not in row}}, lines


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


def write_case_mask(folder: Path, one: Prepared, labels: NDArray[np.uint8], count: int) -> None:
    """Write a case's label map of `count` labels on its image's own grid, NIfTI or PNG."""
    path = folder / f"{case_stem(one.case_id)}{label_map_suffix(one.image)}"
    write_label_map(path, labels, one.image, labels=count)


def structure_names(experiment: Experiment, trained: CohortSpec) -> tuple[str, ...]:
    """Return the structures that the experiment's network tells apart; empty: a mask, or nothing."""
    segmentation = experiment.tasks.segmentation
    if segmentation is None:
        return trained.structures if isinstance(experiment.network, CascadeSpec) else ()
    return () if segmentation.target == "mask" else trained.structures


def label_count(experiment: Experiment, trained: CohortSpec) -> int:
    """Return the number of labels beside the background that the experiment's network tells apart."""
    return len(structure_names(experiment, trained)) or 1
