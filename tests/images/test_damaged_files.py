"""Whatever happened to a file, reading it works or raises an ImageError that names it: nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from threefold.errors import ImageError
from threefold.images.geometry import Image
from threefold.images.reading import read_header, read_image, read_label_map

DAMAGE = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("set"), st.floats(0, 1, exclude_max=True), st.integers(0, 255)),
        # headers are small and decide everything, so most damage goes there
        st.tuples(st.just("set"), st.floats(0, 0.02), st.integers(0, 255)),
        st.tuples(st.just("insert"), st.floats(0, 0.1), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(data: bytes, damage: list[tuple[str, float, int]]) -> bytes:
    for what, where, value in damage:
        place = int(where * len(data))
        if what == "cut":
            data = data[:place]
        elif what == "insert":
            data = data[:place] + bytes([value]) + data[place:]
        elif place < len(data):
            data = data[:place] + bytes([value]) + data[place + 1 :]
    return data


def image_or_error(read: Callable[[Path], Any], path: Path) -> Any:
    """Read; None where that raised an ImageError with the path in it."""
    try:
        return read(path)
    except ImageError as error:
        if str(path) not in str(error):
            raise
        return None


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, dicom_file: Callable[..., Path]) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("originals")
    array = np.random.default_rng(0).normal(0, 50, (16, 12, 5)).astype(np.float32)
    volume = nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 2, 1]))
    nibabel.save(volume, folder / "a.nii.gz")
    grey = PIL.Image.fromarray((array[..., 0] * 0.5 + 100).astype(np.uint8))
    png, jpg = io.BytesIO(), io.BytesIO()
    grey.save(png, format="PNG")
    grey.convert("RGB").save(jpg, format="JPEG")
    return {
        "a.nii": volume.to_bytes(),
        "a.nii.gz": (folder / "a.nii.gz").read_bytes(),
        "a.png": png.getvalue(),
        "a.jpg": jpg.getvalue(),
        "a.dcm": dicom_file(folder / "a.dcm", array[..., 0], (0, 0, 0)).read_bytes(),
        "a.mha": b"ObjectType = Image\nDimSize = 16 12 5\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
        + array.tobytes(order="F"),
        "a.nrrd": b"NRRD0004\ntype: float\nsizes: 16 12 5\nencoding: raw\nspacings: 1 1 2\n\n"
        + array.tobytes(order="F"),
    }


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.jpg", "a.dcm", "a.nrrd"])
@given(damage=DAMAGE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_gives_an_image_or_an_image_error(
    originals: dict[str, bytes], tmp_path: Path, name: str, damage: list[tuple[str, float, int]]
) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(originals[name], damage))
    for read in (read_image, read_label_map, read_header):
        found = image_or_error(read, path)
        if found is not None:
            assert np.isfinite(found.affine).all()
        if isinstance(found, Image):
            assert found.array.ndim in (2, 3)
            assert np.isfinite(found.array).all()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.png", "a.dcm", "a.mha", "a.nrrd"])
def test_every_truncation_of_the_voxels_is_refused(
    originals: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    whole = originals[name]
    path = tmp_path / name
    unread = 5 if name == "a.png" else 1  # a PNG ends with a checksum of nothing
    for keep in np.linspace(1, len(whole) - unread, 40).astype(int):
        path.write_bytes(whole[:keep])
        with pytest.raises(ImageError, match=name):
            read_image(path)


def test_a_jpeg_cut_in_half_is_refused(originals: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(originals["a.jpg"][: len(originals["a.jpg"]) // 2])
    with pytest.raises(ImageError, match="truncated"):
        read_image(path)


@given(damage=DAMAGE)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_series_with_one_damaged_file(
    originals: dict[str, bytes],
    tmp_path: Path,
    dicom_file: Callable[..., Path],
    damage: list[tuple[str, float, int]],
) -> None:
    folder = tmp_path / "series"
    folder.mkdir(exist_ok=True)
    (folder / "0.dcm").write_bytes(damaged(originals["a.dcm"], damage))
    if not (folder / "1.dcm").exists():
        dicom_file(folder / "1.dcm", np.zeros((16, 12)), (0, 0, 5))
        dicom_file(folder / "2.dcm", np.zeros((16, 12)), (0, 0, 10))
    for uneven in ("refuse", "resample"):
        image = image_or_error(partial(read_image, uneven=uneven), folder)
        assert image is None or image.array.shape[2] >= 2
