"""The makers of DICOM files of the tests of images."""

from __future__ import annotations

from ..images.conftest import dicom_file

__all__ = ["dicom_file"]
