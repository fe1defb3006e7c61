"""A folder of DICOM as a PACS exports it: what fits is predicted, of the rest it is said why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydicom.uid import BasicTextSRStorage, EncapsulatedPDFStorage, SegmentationStorage

from threefold.inference.listing import find_sources
from threefold.inference.predictor import Predictor

from ..images.conftest import write_dicom
from .conftest import Threshold, make_slice

HEADER = {"PixelSpacing": [0.5, 0.5], "SliceThickness": 4, "RescaleIntercept": 0}
WITHOUT_PIXELS: dict[str, Any] = {"Rows": None, "PixelData": None, "SeriesInstanceUID": "9.9"}


def write_slice(path: Path, z: int, series: str, **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, make_slice(z), (0, 0, 4.0 * z), SeriesInstanceUID=series, **HEADER | changes)


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two patients; one series has a folder for each slice, as some archives write it."""
    folder = tmp_path / "export"
    for z in range(4):
        write_slice(folder / "A" / f"{z:02d}" / "IM1", z, "1.1", PatientID="A")
        write_slice(folder / "B" / "head" / f"{z}.dcm", z, "2.1", PatientID="B")
    write_slice(folder / "A" / "scout" / "IM1", 0, "1.2", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (folder / "B" / "rest").mkdir()
    rest = folder / "B" / "rest"
    write_dicom(rest / "sr", np.zeros((6, 8)), (0, 0, 0), SOPClassUID=BasicTextSRStorage, **WITHOUT_PIXELS)
    write_dicom(
        rest / "pdf", np.zeros((6, 8)), (0, 0, 0), SOPClassUID=EncapsulatedPDFStorage, Modality="OT",
        **WITHOUT_PIXELS,
    )  # fmt: skip
    write_dicom(rest / "seg", np.zeros((6, 8)), (0, 0, 0), SOPClassUID=SegmentationStorage)
    (folder / "DICOMDIR").write_bytes(b"not read")
    (folder / "readme.txt").write_text("viewer")
    return folder


@pytest.fixture
def predictor(run: Path, known: Threshold) -> Predictor:
    return replace(Predictor.from_run(run), network=known)


def test_a_folder_as_it_comes(predictor: Predictor, export: Path, tmp_path: Path) -> None:
    errors: list[str] = []
    out = tmp_path / "out"
    found = list(predictor.predict(export, out, on_error=lambda source, error: errors.append(str(error))))
    names = {one.case_id.rpartition("#")[0] for one in found}
    assert names == {"A/series of 00/IM1", "B/head"}
    assert len(found) == 8
    assert errors == []
    passed = pd.read_csv(out / "passed_over.csv")
    said = {Path(file).name: reason for file, reason in zip(passed["file"], passed["reason"], strict=True)}
    kind = "DICOM files without an image to predict, "
    assert said == {
        "DICOMDIR": "files of no known format",
        "IM1": f"{kind}a localizer (scout) image",
        "pdf": f"{kind}Encapsulated PDF Storage",
        "readme.txt": "files of no known format",
        "seg": f"{kind}Segmentation",
        "sr": f"{kind}Basic Text SR Storage",
    }


def test_copies_of_a_series_are_another_input(export: Path) -> None:
    for path in sorted((export / "B" / "head").iterdir()):
        target = export / "copy" / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    names = [source.name for source in find_sources(export).sources]
    assert names == ["A/series of 00/IM1", "B/head", "copy"]


def test_a_damaged_slice_of_a_joined_series_is_named_alone(predictor: Predictor, export: Path) -> None:
    path = export / "A" / "03" / "IM1"
    path.write_bytes(path.read_bytes()[:-500])
    errors: list[str] = []
    found = list(predictor.predict(export, on_error=lambda source, error: errors.append(str(error))))
    assert len(found) == 7
    assert len(errors) == 1
    assert "03/IM1" in errors[0]
