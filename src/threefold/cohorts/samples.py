"""From a case (paths) to a sample (arrays on the network's grid), checked on the way."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.channels import read_case_image
from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.targets import read_label_map_of
from threefold.core.batch import Sample
from threefold.errors import ImageError
from threefold.experiment import PreprocessingSpec
from threefold.images.geometry import Image
from threefold.images.preprocessing import Placement, centre_of, prepare_image, prepare_labels
from threefold.images.reading import Uneven, read_image


def read_sample(case: Case, spec: CohortSpec, preprocessing: PreprocessingSpec) -> Sample:
    """Read a case's image and targets, check them against each other and prepare them.

    Raises:
        ImageError: naming the case: a file that can't be read, a target on another grid than the image,
            a value that cohort.yaml does not know.
    """
    return read_placed(case, spec, preprocessing)[0]


def read_placed(case: Case, spec: CohortSpec, preprocessing: PreprocessingSpec) -> tuple[Sample, Placement]:
    """As `read_sample`, with the placement that takes arrays back to the image's own grid."""
    try:
        image = _checked(read_case_image(case, spec), case.image, spec)
        maps = {
            name: read_label_map_of(name, path, case.slice_index, image, spec)
            for name, path in case.label_maps.items()
        }
        array, placement = prepare_image(
            image,
            preprocessing,
            unit=spec.intensity.unit,
            window=spec.intensity.window,
            focus=None if preprocessing.spacing is None else _focus(maps.values()),
        )
        prepared = {name: prepare_labels(target, placement) for name, target in maps.items()}
    except ImageError as error:
        raise ImageError(f"case {case.case_id}: {error}") from error
    return Sample(case.case_id, array, {**case.targets, **prepared}), placement


def _focus(targets: Iterable[Image]) -> tuple[float, ...] | None:
    """Return the centre of the first target that has a foreground."""
    return next((centre for target in targets if (centre := centre_of(target.array))), None)


def read_image_only(
    path: Path,
    slice_index: int | None,
    spec: CohortSpec,
    preprocessing: PreprocessingSpec,
    *,
    uneven: Uneven = "refuse",
) -> tuple[NDArray[np.float32], Placement, Image]:
    """Read and prepare an image that has no targets.

    Args:
        path: a file, or a folder with a DICOM series.
        slice_index: the slice of a volume; None: the whole.
        spec: what the voxels mean: the cohort that a network was trained on.
        preprocessing: size and windows.
        uneven: see `read_image`.

    Returns:
        (C, *S) float32 in 0..1, where it lies, and the image as read.

    Raises:
        ImageError: if it can't be read, or has another number of axes than the cohort's cases.
    """
    image = read_image(path, slice_index=slice_index, spacing=spec.spacing, uneven=uneven)
    image = _checked(image, path, spec)
    array, placement = prepare_image(
        image, preprocessing, unit=spec.intensity.unit, window=spec.intensity.window
    )
    return array, placement, image


def _checked(image: Image, path: Path, spec: CohortSpec) -> Image:
    if image.array.ndim != spec.dimensions:
        advice = (
            "name the slice in the `slice` column"
            if image.array.ndim > spec.dimensions
            else "give the volume, not a slice of it"
        )
        raise ImageError(
            f"{path}: has shape {image.array.shape}; expected {spec.dimensions} axes, as cohort "
            f"'{spec.name}' has (dimensions: {spec.dimensions}): {advice}."
        )
    return image
