"""What a case's predicted label map is like: its structures measured, and what it says of the arch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.targets import read_label_map_of, read_mask, read_structures
from threefold.core.targets import MaskTarget
from threefold.errors import ImageError
from threefold.evaluation.arch import find_arch, knows_arch
from threefold.evaluation.structure_measures import structure_rows, union_row
from threefold.evaluation.structures import PIXEL_NUMBERS
from threefold.evaluation.vessel_graph import graph_edits, vessel_graph
from threefold.images.geometry import Image
from threefold.images.preprocessing import Placement, canonical

Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """What a case's prediction is held against, on its image's own grid.

    Attributes:
        structures: labels; None: not known.
        region: where the binary mask is; None: not known.
        source: the column of the table that `foreground` comes from; empty: the case has none.
    """

    structures: Labels | None
    region: NDArray[np.bool_] | None
    source: str

    @property
    def foreground(self) -> NDArray[np.bool_] | None:
        """Where there is any structure or mask; None: not known."""
        return self.region if self.structures is None else self.structures > 0


def read_truth(case: Case, image: Image, spec: CohortSpec, target: str) -> Truth:
    """Read what a case's prediction of a target is held against.

    For structures that is the reference where the case has one (structures that were propagated, and
    trained on, may be wrong), else its structures; for its region its mask. With target mask the structures
    are the reference's alone, whose foreground is better known than that of a mask drawn by hand. Another
    target is held against itself.

    Raises:
        ImageError: naming the case.
    """
    try:
        if target not in ("mask", "structures"):
            return _read_own(case, image, spec, target)
        region = None
        if case.mask is not None:
            region = read_mask(case.mask, case.slice_index, image, spec).array != 0
        path = case.reference or (case.structures if target == "structures" else None)
        if path is None:
            return Truth(None, region, "" if region is None else "mask")
        labels = read_structures(path, case.slice_index, image, spec).array
    except ImageError as error:
        raise ImageError(f"case {case.case_id}: {error}") from error
    source = "reference" if path == case.reference else "structures"
    return Truth(labels.astype(np.uint8), region, source)


def _read_own(case: Case, image: Image, spec: CohortSpec, target: str) -> Truth:
    """Read a label map of a further target."""
    path = case.label_maps.get(target)
    if path is None:
        return Truth(None, None, "")
    labels = read_label_map_of(target, path, case.slice_index, image, spec).array
    if isinstance(spec.all_targets[target], MaskTarget):
        return Truth(None, labels != 0, target)
    return Truth(labels.astype(np.uint8), None, target)


def measure_structures(
    case_id: str,
    predicted: Labels,
    truth: Truth,
    names: Sequence[str],
    *,
    placement: Placement,
    image: Image,
) -> list[dict[str, Any]]:
    """Return a case's rows of structures.csv.

    They are measured in the canonical order of axes: thinning to a centreline goes by the axes, and a file
    that is stored in another order is to have the same numbers.

    Args:
        case_id: the case.
        predicted: labels on the image's own grid.
        truth: on the same grid.
        names: of labels 1, 2, ...; none: a binary mask was predicted, which has the row of the union alone.
        placement, image: where the grid lies.
    """
    turned = np.ascontiguousarray(canonical(predicted, placement))
    structures, region = (
        None if known is None else np.ascontiguousarray(canonical(known, placement))
        for known in (truth.structures, truth.region if truth.structures is None else None)
    )
    spacing = _stated_spacing(image, placement)
    if names:
        rows = structure_rows(structures, turned, names, spacing, region=region)
    else:
        rows = [union_row(region if structures is None else structures, turned, spacing)]
    found = [{"case_id": case_id, **asdict(row), "truth_source": truth.source} for row in rows]
    unused = () if spacing is None else PIXEL_NUMBERS
    return [{name: value for name, value in row.items() if name not in unused} for row in found]


def _stated_spacing(image: Image, placement: Placement) -> list[float] | None:
    """Return the mm of a voxel along the canonical axes; None where the file does not state them.

    An image that was not read from a file has the spacing that it was given.
    """
    if image.facts.format is not None and not image.facts.spacing_stated:
        return None
    return [image.spacing[axis] for axis in placement.axes]


def topology_columns(
    predicted: Labels,
    truth: Labels | None,
    *,
    names: Sequence[str],
    classes: Sequence[str],
    placement: Placement,
    image: Image,
    probabilities: Mapping[str, float],
) -> dict[str, Any]:
    """Return what a label map's topology says, as columns of predictions.csv.

    Where the structures have the names that the arch room knows: `arch`, `topology_class` (the class that
    the arch speaks for) and `agrees` (yes or no: whether it is the most probable class; empty where either
    says nothing). Where the true structures are known: `graph_edits`, the edits that turn the predicted
    graph of touching structures into the true one.

    Args:
        predicted, truth: labels on the image's own grid.
        names: of the structures.
        classes: that the network tells apart.
        placement, image: where the grid lies.
        probabilities: by class; empty without a classifier.
    """
    columns: dict[str, Any] = {}
    if truth is not None:
        columns["graph_edits"] = graph_edits(vessel_graph(predicted, names), vessel_graph(truth, names)).count
    spacing = _stated_spacing(image, placement)
    if not (knows_arch(names) and predicted.ndim == 3) or spacing is None:
        return columns
    finding = find_arch(canonical(predicted, placement), names, spacing)
    spoken = finding.diagnosis if finding.diagnosis in classes else ""
    columns |= {"arch": finding.arch, "topology_class": spoken, "agrees": ""}
    if probabilities and spoken:
        decided = max(probabilities, key=probabilities.__getitem__)
        columns["agrees"] = "yes" if spoken == decided else "no"
    return columns
