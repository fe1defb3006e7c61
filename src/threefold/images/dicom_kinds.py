"""What kind of object a DICOM file holds: a slice, a volume of frames, or no image at all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.errors import ImageError
from threefold.images.decoding import decoding, short

if TYPE_CHECKING:
    from pydicom import Dataset

_NOT_SLICES = {
    "1.2.840.10008.5.1.4.1.1.30": "Parametric Map",
    "1.2.840.10008.5.1.4.1.1.66.4": "Segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "RT Dose",
}
"""SOP classes that have pixels and are no images."""
_STANDARD = "1.2.840.10008."
"""What every UID begins with that DICOM itself gave."""
_ENHANCED = (
    "1.2.840.10008.5.1.4.1.1.2.1",  # CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # CT, converted from single slices
    "1.2.840.10008.5.1.4.1.1.4.1",  # MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # MR, converted
    "1.2.840.10008.5.1.4.1.1.130",  # PET
    "1.2.840.10008.5.1.4.1.1.128.1",  # PET, converted
)
"""SOP classes whose frames are slices with places, as the functional groups say."""


def is_enhanced(path: Path, dataset: Dataset) -> bool:
    """Whether a file's frames are slices, each with functional groups."""
    with decoding(path, "a DICOM image"):
        return _class_of(dataset) in _ENHANCED and "PerFrameFunctionalGroupsSequence" in dataset


def other_object(path: Path, dataset: Dataset) -> str | None:
    """Return what a file is that is no image of slices and passes for none (a report, a scout); None: it is.

    Raises:
        ImageError: an image that was cut off before its size; to pass it over would leave a gap.
    """
    with decoding(path, "a DICOM image"):
        found = no_slice(dataset)
        if found is None:
            refuse_other_objects(path, dataset)
    return found


def no_slice(dataset: Dataset) -> str | None:
    """Return what a data set is that is no image of slices; None: it is one, or was before it was cut."""
    uid, name = _class_of(dataset), object_name(dataset)
    is_image = " Image Storage" in name and "Non-" not in name
    cut = _STANDARD.startswith(uid) or (uid.startswith(_STANDARD) and name == uid)  # a class, or half of one
    if uid in _NOT_SLICES or ("Rows" not in dataset and not is_image and not cut):
        return name
    return "a localizer (scout) image" if is_localizer(dataset) else None


def is_localizer(dataset: Dataset) -> bool:
    """Whether a CT is a projection, from which its slices were planned, by its ImageType (or FrameType)."""
    types = [one for name in ("ImageType", "FrameType") for one in several_of(dataset, name)]
    is_ct = str(dataset.get("Modality")).strip().upper() == "CT"
    return is_ct and "LOCALIZER" in (str(one).upper() for one in types)


def several_of(dataset: Dataset, keyword: str) -> list[Any]:
    """Return the values of an attribute, however many there are."""
    value = dataset.get(keyword)
    if value is None:
        return []
    return list(value) if not isinstance(value, str) and hasattr(value, "__iter__") else [value]


def refuse_other_objects(path: Path, dataset: Dataset) -> None:
    """Raise an ImageError, with the name of what it is, unless a file holds an image of slices."""
    if _class_of(dataset) in _NOT_SLICES or "Rows" not in dataset:
        raise ImageError(
            f"{path}: a DICOM file, but no image with rows and columns: {object_name(dataset)}. Give the "
            "images that it belongs to; copy it again if it was cut off."
        )


def object_name(dataset: Dataset) -> str:
    """Return the name of a file's kind, for example "Basic Text SR Storage"; its UID where that has none."""
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    uid = _class_of(dataset)
    name = _NOT_SLICES.get(uid) or UID(uid, validation_mode=IGNORE).name
    return short(name, 80) if uid else "of a kind that it does not state"


def _class_of(dataset: Dataset) -> str:
    meta = getattr(dataset, "file_meta", None) or {}
    return str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
