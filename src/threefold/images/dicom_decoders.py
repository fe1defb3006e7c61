"""Decoders of compressed DICOM pixels: which packages bring them, and the one that pydicom does not know."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from threefold.errors import ImageError
from threefold.images.decoding import short

if TYPE_CHECKING:
    from pydicom import Dataset

_EXTENDED = "1.2.840.10008.1.2.4.51"
_READ_BY_GDCM = (_EXTENDED, "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
_END, _PADDING = b"\xff\xd9", b"\0\xff"
_GDCM, _JPEG_LS, _OPENJPEG = "python-gdcm", "pyjpegls", "pylibjpeg and pylibjpeg-openjpeg"
_PACKAGES = {
    _EXTENDED: _GDCM,
    "1.2.840.10008.1.2.4.57": _GDCM,  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.70": _GDCM,  # and its first-order prediction
    "1.2.840.10008.1.2.4.80": _JPEG_LS,
    "1.2.840.10008.1.2.4.81": _JPEG_LS,
    "1.2.840.10008.1.2.4.201": _OPENJPEG,  # HTJ2K
    "1.2.840.10008.1.2.4.202": _OPENJPEG,
    "1.2.840.10008.1.2.4.203": _OPENJPEG,
}
"""What the extra `dicom` brings for each transfer syntax that is not read without it."""


def refuse_undecodable(path: Path, dataset: Dataset) -> None:
    """Raise an ImageError, with the name of the compression and the package, where there is no decoder."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    uid = UID(_syntax(dataset))
    try:
        available = get_decoder(uid).is_available
    except NotImplementedError:
        available = False
    if available and not (needs_gdcm_itself(dataset) and find_spec("gdcm") is None):
        return
    how = "Decompress it (for example with dcmdjpeg, dcmdjpls or gdcmconv --raw)."
    if uid in _PACKAGES:
        how = f"Install {_PACKAGES[uid]}: pip install -c constraints.txt '.[dicom]'"
    raise ImageError(
        f"{path}: its pixels are compressed as {short(uid.name, 80)} ({short(uid, 64)}), for which there "
        f"is no decoder here. {how}"
    )


def refuse_cut_off(dataset: Dataset, frame: int | None) -> None:
    """Raise a ValueError where a frame ends within its JPEG: GDCM would return what it has of it."""
    if _syntax(dataset) not in _READ_BY_GDCM:
        return
    if not _encoded(dataset, frame).rstrip(_PADDING).endswith(_END):
        raise ValueError("the JPEG in it ends early")


def needs_gdcm_itself(dataset: Dataset) -> bool:
    """Whether a file is a JPEG Extended of more than 8 bits, which pydicom refuses though GDCM reads it."""
    return _syntax(dataset) == _EXTENDED and int(dataset.get("BitsStored") or 8) > 8


def extended_jpeg(dataset: Dataset, frame: int | None) -> NDArray[np.uint16]:
    """Decode a frame, from 0 (None: the only one), of a grey JPEG Extended of 12 bits, (rows, columns).

    Raises:
        ValueError: its bytes are damaged.
    """
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(_encoded(dataset, frame))
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((int(dataset.Columns), int(dataset.Rows), 1))
    image.SetDataElement(element)
    grey = gdcm.PhotometricInterpretation.GetPIType("MONOCHROME2")
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(grey))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(_EXTENDED)))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, 12, 11, 0))
    pixels = image.GetBuffer()
    if pixels is None:
        raise ValueError("a damaged JPEG")
    cells = np.frombuffer(pixels.encode("utf-8", "surrogateescape"), np.uint16)  # GDCM's bytes come as text
    return cells.reshape(int(dataset.Rows), int(dataset.Columns))


def _encoded(dataset: Dataset, frame: int | None) -> bytes:
    from pydicom.encaps import get_frame

    frames = int(dataset.get("NumberOfFrames") or 1)
    return get_frame(dataset.PixelData, frame or 0, number_of_frames=frames)


def _syntax(dataset: Dataset) -> str:
    return str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
