"""Several images of one case as the channels of one image, all on one grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.targets import target_difference
from threefold.errors import ImageError
from threefold.images.geometry import Header, Image
from threefold.images.reading import Uneven, read_image


def read_case_image(case: Case, spec: CohortSpec, *, uneven: Uneven = "refuse") -> Image:
    """Read a case's image, or its channels as one.

    Raises:
        ImageError: as `read_image`; of several channels, naming the one.
    """
    if not case.channels:
        return read_image(case.image, slice_index=case.slice_index, spacing=spec.spacing, uneven=uneven)
    return read_channels(
        case.channels,
        tuple(spec.channels),
        slice_index=case.slice_index,
        spacing=spec.spacing,
        uneven=uneven,
    )


def read_channels(
    paths: Mapping[str, Path],
    names: Sequence[str],
    *,
    slice_index: int | None = None,
    spacing: tuple[float, ...] | None = None,
    uneven: Uneven = "refuse",
) -> Image:
    """Read several images of one grid as the channels of one.

    Args:
        paths: the file or folder of each channel that is there, by name; at least one.
        names: of all channels, in the network's order.
        slice_index, spacing, uneven: as for `read_image`.

    Returns:
        The first channel that is there, with all of them in `channels`.

    Raises:
        ImageError: naming the channel: it can't be read, or lies on another grid than the first one.
    """
    channels: dict[str, Image | None] = dict.fromkeys(names)
    for name in names:
        if name in paths:
            try:
                one = read_image(paths[name], slice_index=slice_index, spacing=spacing, uneven=uneven)
            except ImageError as error:
                raise ImageError(f"channel {name}: {error}") from error
            channels[name] = one
    there = {name: one for name, one in channels.items() if one is not None}
    first = next(iter(there))
    notes: dict[str, None] = {}
    for name, one in there.items():
        difference = target_difference(
            there[first].source, one.source, *(Header(x.array.shape, x.affine) for x in (there[first], one))
        )
        if difference is not None:
            raise ImageError(
                f"channel {name}: {one.source}: not on the grid of channel {first} ({there[first].source}): "
                f"{difference}. Resample one onto the other, or correct the table."
            )
        notes |= dict.fromkeys(one.notes)
    return replace(there[first], channels=channels, notes=(*notes,))
