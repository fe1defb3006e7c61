"""A network's table of predictions for the cases of a cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from threefold.cohorts.cohort import Case, Cohort, CohortSpec
from threefold.cohorts.splits import Split
from threefold.cohorts.targets import read_mask, read_structures
from threefold.errors import ImageError
from threefold.evaluation.predictions import probability_column
from threefold.evaluation.reconstruction import psnr, ssim
from threefold.experiment import Experiment, Part
from threefold.images.writing import label_map_suffix, write_label_map
from threefold.inference.engine import Prepared, Result, run_network
from threefold.inference.output import make_folder
from threefold.inference.sources import Source, prepare, refuse_other_question

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]
"""Called with the number of cases that are done and the number of all."""


def predict_cases(
    network: nn.Module,
    experiment: Experiment,
    cohort: Cohort,
    split: Split | None,
    *,
    parts: Sequence[Part] | None = None,
    trained: CohortSpec | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 16,
    masks: Path | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Return the table of predictions, as `threefold.evaluation.predictions` defines its columns.

    Voxels of masks are counted on each image's own grid, where the true mask is: the predicted one is
    brought back to it. For structures, a voxel counts where it has any label. PSNR and SSIM are of the
    network's grid, between the network's input (0..1, padding included) and its reconstruction. Columns
    that the network has no head for are left out; further columns of the cohort's table are kept.

    Args:
        network: left on `device` and in evaluation mode.
        experiment: gives the network's grid and tasks.
        cohort: whose cases to predict.
        split: which case is in which part; None: all are test cases.
        parts: predict the cases of these parts only; None: all.
        trained: the cohort that the network was trained on, where it is another one: its classes name the
            probabilities, its window prepares the images.
        device: for the network.
        batch_size: cases a pass.
        masks: folder (made if absent) for the predicted label map of each case, `<case_id>.nii.gz` or .png.
        progress: told after each case.

    Raises:
        CohortError: the cohort's axes, unit or classes are not those trained on.
        ImageError: naming the case: its image or mask can't be read, or a mask can't be written.
    """
    import pandas as pd

    trained = trained or cohort.spec
    refuse_other_question(trained, cohort.spec)
    chosen = {case.case_id: case for case in cohort.cases if parts is None or _part(case, split) in parts}
    if masks is not None:
        make_folder(masks)
    prepared = _prepared(chosen.values(), cohort.spec, trained, experiment)
    rows = []
    for one, result in run_network(network, prepared, device=device, batch_size=batch_size):
        case = chosen[one.case_id]
        row = _identity(case, cohort.spec, _part(case, split)) | _outcome(
            one, result, case, experiment, cohort.spec, trained
        )
        rows.append({**row, **{name: text for name, text in case.extra.items() if name not in row}})
        if masks is not None and result.labels is not None:
            write_case_mask(masks, one, result.labels, label_count(experiment, trained))
        if progress is not None:
            progress(len(rows), len(chosen))
    return pd.DataFrame(rows)


def _part(case: Case, split: Split | None) -> Part:
    return "test" if split is None else split.parts[case.case_id]


def _prepared(
    cases: Iterable[Case], spec: CohortSpec, trained: CohortSpec, experiment: Experiment
) -> Iterator[Prepared]:
    preprocessing = experiment.data.preprocessing
    for case in cases:
        source = Source(case.case_id, case.image, case.slice_index, spec)
        try:
            yield from prepare(source, trained, preprocessing, uneven="refuse")
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error


def _identity(case: Case, spec: CohortSpec, part: Part) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "site": case.site,
        "site_group": spec.site_group(case.site) or "",
        "part": part,
        "label": "" if case.label is None else spec.classes[case.label],
    }


def _outcome(
    one: Prepared, result: Result, case: Case, experiment: Experiment, spec: CohortSpec, trained: CohortSpec
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if result.probabilities is not None:
        names = (probability_column(name) for name in trained.classes)
        row |= dict(zip(names, result.probabilities.tolist(), strict=True))
    if result.labels is not None:
        predicted = result.labels > 0
        truth = _truth(one, case, experiment, spec)
        row["mask_truth_voxels"] = np.nan if truth is None else int(truth.sum())
        row["mask_predicted_voxels"] = int(predicted.sum())
        row["mask_overlap_voxels"] = np.nan if truth is None else int((truth & predicted).sum())
    if result.reconstruction is not None:
        row["psnr"] = psnr(one.array, result.reconstruction)
        row["ssim"] = ssim(one.array, result.reconstruction)
    return row


def _truth(one: Prepared, case: Case, experiment: Experiment, spec: CohortSpec) -> NDArray[np.bool_] | None:
    """Return where the case's true foreground is, on the image's own grid; None where it has no target."""
    assert experiment.tasks.segmentation is not None
    masks = experiment.tasks.segmentation.target == "mask"
    path = case.mask if masks else case.structures
    if path is None:
        return None
    read = read_mask if masks else read_structures
    try:
        target = read(path, case.slice_index, one.image, spec)
    except ImageError as error:
        raise ImageError(f"case {case.case_id}: {error}") from error
    foreground: NDArray[np.bool_] = target.array != 0
    return foreground


def write_case_mask(folder: Path, one: Prepared, labels: NDArray[np.uint8], count: int) -> None:
    """Write a case's label map of `count` labels on its image's own grid: <case_id>.nii.gz, or .png."""
    path = folder / f"{one.case_id}{label_map_suffix(one.image)}"
    write_label_map(path, labels, one.image, labels=count)


def label_count(experiment: Experiment, trained: CohortSpec) -> int:
    """Return the number of labels beside the background that the experiment's network tells apart."""
    segmentation = experiment.tasks.segmentation
    return 1 if segmentation is None or segmentation.target == "mask" else len(trained.structures)
