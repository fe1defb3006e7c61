"""What a file itself states of its voxels, as values that a program can compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a file states; None (or False) where it does not, nothing here is assumed or guessed.

    Attributes:
        format: nifti, dicom, nrrd, metaimage or picture, by the bytes, whatever the file is called; or that
            of a reader from outside. None: the image was not read from a file.
        modality: DICOM Modality in capitals, for example CT, MR, CR, US.
        unit: HU where the file proves it: a DICOM CT whose stored values are rescaled, to no other unit. Of a
            CT in another unit that, as DICOM spells it (Z_EFF, ED, ...). NIfTI and pictures can't state it.
        photometric: PhotometricInterpretation of a DICOM; colour mode of a picture (L, RGB, P, ...).
        bits: of a stored value that are used (DICOM BitsStored), of one channel.
        channels: stored per voxel, before equal ones were reduced to grey.
        spacing_stated: the millimetres per voxel are the file's, or were given with it; False where 1 mm
            was assumed, so that lengths are in pixels.
        place_stated: the file says where its voxels lie in the patient and how they are turned.
        manufacturer, model, kernel: as a DICOM spells them (ManufacturerModelName, ConvolutionKernel).
        field_strength: tesla (MagneticFieldStrength).
        slice_thickness: mm (SliceThickness), which may differ from the distance between slices.
    """

    format: str | None = None
    modality: str | None = None
    unit: str | None = None
    photometric: str | None = None
    bits: int | None = None
    channels: int | None = None
    spacing_stated: bool = False
    place_stated: bool = False
    manufacturer: str | None = None
    model: str | None = None
    kernel: str | None = None
    field_strength: float | None = None
    slice_thickness: float | None = None


NOTHING_STATED = Facts()


def common_facts(several: Sequence[Facts]) -> Facts:
    """Return what all of several files state alike; what differs counts as not stated."""
    first = asdict(several[0])
    alike: dict[str, Any] = {
        name: value for name, value in first.items() if all(getattr(one, name) == value for one in several)
    }
    return Facts(**alike)
