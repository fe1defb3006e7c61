from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

from threefold.images.facts import NOTHING_STATED, Facts
from threefold.images.reading import read_header, read_image


def test_a_dicom_states_what_it_is(
    tmp_path: Path, dicom_file: Callable[..., Path], dicom_series: Callable[..., np.ndarray]
) -> None:
    stated = {"Manufacturer": "ACME", "ManufacturerModelName": "One", "ConvolutionKernel": "H30s"}
    path = dicom_file(tmp_path / "a.dcm", np.zeros((6, 8)), (0, 0, 0), RescaleType="HU", **stated)
    expected = Facts(
        "dicom", "CT", "HU", "MONOCHROME2", 16, 1, True, True, "ACME", "One", "H30s", slice_thickness=5
    )
    assert read_image(path).facts == read_header(path).facts == expected
    dicom_series(tmp_path / "mr", [(0, 0, z) for z in range(3)], Modality="MR", MagneticFieldStrength=1.5)
    facts = read_image(tmp_path / "mr").facts
    assert (facts.modality, facts.unit, facts.field_strength) == ("MR", None, 1.5)
    assert read_image(tmp_path / "mr", slice_index=1).facts == read_header(tmp_path / "mr").facts == facts


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (0, 0)])
def test_a_nifti_states_its_place_where_a_code_is_set(tmp_path: Path, sform: int, qform: int) -> None:
    image = nibabel.Nifti1Image(np.zeros((5, 4, 3), np.int16), np.eye(4))
    image.set_sform(np.eye(4), code=sform)
    image.set_qform(np.eye(4), code=qform)
    nibabel.save(image, tmp_path / "a.nii.gz")
    facts = read_image(tmp_path / "a.nii.gz").facts
    stated = bool(sform or qform)
    assert facts == Facts("nifti", bits=16, channels=1, spacing_stated=True, place_stated=stated)
    assert read_header(tmp_path / "a.nii.gz").facts == facts


def test_a_picture_states_neither_place_nor_spacing(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "a.png")
    facts = read_image(tmp_path / "a.png").facts
    assert (facts.format, facts.bits, facts.channels) == ("picture", 16, 1)
    assert not facts.spacing_stated
    assert not facts.place_stated
    assert read_image(tmp_path / "a.png", spacing=(0.5, 0.5)).facts.spacing_stated


def test_an_image_that_was_not_read_states_nothing() -> None:
    assert Facts() == NOTHING_STATED
    assert NOTHING_STATED.format is None
