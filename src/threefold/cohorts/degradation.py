"""Label maps made worse by a known amount, to see how errors of labels carry into what learns from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort, fingerprint
from threefold.cohorts.staging import Staging, file_columns, finished, row_of, staging
from threefold.cohorts.targets import read_structures
from threefold.errors import CohortError
from threefold.experiment.spec import NonNegative, Positive, Seed, Spec
from threefold.images.reading import read_image
from threefold.images.writing import label_map_suffix, write_label_map


class DegradationSpec(Spec):
    """Smooth random displacement of the references."""

    displacement: NonNegative
    """Root mean square displacement of the labels in mm; 0: none."""
    scale: Positive = 8.0
    """Smoothness of the displacement field in mm (standard deviation of its Gaussian filter)."""
    seed: Seed = 0


def degrade(
    cohort: Cohort,
    out: Path,
    spec: DegradationSpec,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Make a cohort whose structures are its references, moved by smooth random fields of a known size.

    As a registration that went wrong would leave them: whole pieces displaced, vessels still vessels. A
    case's field depends on the seed and the case's name alone: with a larger displacement the same field
    is longer. The images, masks and references stay where they are; the new table refers to them. Cases that
    can't be read are left out, which provenance.json says.

    Args:
        cohort: with references.
        out: the new folder.
        spec: how far.
        progress: told after each case.

    Raises:
        CohortError: no case has a reference, none can be used, or `out` exists.
    """
    if not any(case.reference is not None for case in cohort.cases):
        raise CohortError(
            f"{cohort.folder}: no case has a reference, of which structures could be made. Name label maps "
            "known to be right in the reference column."
        )
    rows = []
    with staging(out) as stage:
        atlases = stage.place_atlases(cohort.spec, cohort.folder, copy=False)
        # In the name, so that no run on one displacement is taken for a run on another.
        how = f"moved-{spec.displacement:g}mm-over-{spec.scale:g}mm-seed{spec.seed}"
        atlases = atlases.model_copy(update={"name": f"{cohort.spec.name}-{how}"})
        for number, case in enumerate(cohort.cases, start=1):
            row = row_of(case, cohort.spec)
            with stage.sparing(case.case_id):
                for column in file_columns(cohort.spec):
                    if row.get(column) is not None:
                        row[column] = stage.place(Path(row[column]), column, case.case_id, copy=False)
                row["structures"] = None
                if case.reference is not None:
                    row["structures"] = _write(case, cohort, stage, spec)
                rows.append(row)
            if progress is not None:
                progress(number, len(cohort.cases))
        made: dict[str, Any] = {
            "made by": "degrade",
            "cohort": {"name": cohort.spec.name, "fingerprint": fingerprint(cohort)},
            "degradation": spec.model_dump(mode="json"),
        }
        stage.finish(atlases, rows, made, allow_outside=True)
    return finished(out, allow_outside=True)


def moved(
    labels: NDArray[np.uint8], spacing: tuple[float, ...], spec: DegradationSpec, name: str
) -> NDArray[np.uint8]:
    """Return a label map moved by the random field of a name, each voxel by its nearest label.

    Args:
        labels: (I, J) or (I, J, K).
        spacing: mm per voxel along each axis.
        spec: how far.
        name: of the case.
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    if spec.displacement == 0:
        return labels
    digest = hashlib.sha256(f"{spec.seed} {name}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(digest, np.uint32))
    sigmas = [spec.scale / mm for mm in spacing]
    field = np.stack(
        [gaussian_filter(generator.standard_normal(labels.shape), sigmas, mode="wrap") for _ in spacing]
    )  # (D, I, J[, K]) mm, before scaling
    field *= spec.displacement / np.sqrt((field**2).sum(axis=0).mean())
    steps = field / np.reshape(spacing, (-1, *(1,) * labels.ndim))  # (D, I, J[, K]) voxels
    return np.asarray(map_coordinates(labels, np.indices(labels.shape) + steps, order=0, mode="nearest"))


def _write(case: Case, cohort: Cohort, stage: Staging, spec: DegradationSpec) -> Path:
    assert case.reference is not None
    image = read_image(case.image, slice_index=case.slice_index, spacing=cohort.spec.spacing)
    truth = read_structures(case.reference, case.slice_index, image, cohort.spec)
    changed = moved(truth.array.astype(np.uint8), truth.spacing, spec, case.case_id)
    path = stage.new_file("structures", case.case_id, label_map_suffix(image))
    write_label_map(stage.folder / path, changed, image, labels=len(cohort.spec.structures))
    return path
