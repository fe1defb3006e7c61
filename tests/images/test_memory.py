"""Nothing is unpacked past what a header promises, nothing is promised past the memory that is free."""

from __future__ import annotations

import gzip
import io
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from threefold.errors import ImageError
from threefold.images import dicom_slice, memory, reading
from threefold.images.reading import read_header, read_image, read_label_map

MIB = 2**20


def peak_of(read: Callable[[], object]) -> int:
    """Bytes that were held at once while something was read."""
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 MiB of int16 voxels that are all alike: a file of 8 KiB."""
    image = nibabel.Nifti1Image(np.full((256, 256, 64), 7, np.int16), np.eye(4))
    path = tmp_path_factory.mktemp("volume") / "a.nii.gz"
    nibabel.save(image, path)
    return path


def test_a_nifti_takes_little_more_than_its_array(volume: Path, tmp_path: Path) -> None:
    read_image(volume)  # imports
    assert peak_of(lambda: read_image(volume)) < 1.3 * 8 * MIB
    assert peak_of(lambda: read_header(volume)) < MIB
    assert peak_of(lambda: read_image(volume, slice_index=60)) < 2 * MIB
    data = bytearray(gzip.decompress(volume.read_bytes()))
    data[112:120] = np.array([0.5, 1], "<f4").tobytes()  # scaled: 8 MiB become 16
    scaled = tmp_path / "scaled.nii"
    scaled.write_bytes(data)
    assert peak_of(lambda: read_image(scaled)) < 2 * 16 * MIB
    big_endian = nibabel.Nifti1Header(endianness=">")
    nibabel.save(
        nibabel.Nifti1Image(np.ones((128, 128, 64), ">i4"), np.eye(4), big_endian), tmp_path / "b.nii"
    )
    assert peak_of(lambda: read_image(tmp_path / "b.nii")) < 1.3 * 4 * MIB
    nibabel.save(nibabel.Nifti1Image(np.ones((128, 128, 64)), np.eye(4)), tmp_path / "labels.nii")
    assert peak_of(lambda: read_label_map(tmp_path / "labels.nii")) < 2 * (8 + 4) * MIB


def test_a_series_takes_little_more_than_its_array(tmp_path: Path, dicom_file: Callable[..., Path]) -> None:
    (tmp_path / "ct").mkdir()
    for z in range(16):
        dicom_file(tmp_path / "ct" / f"{z}.dcm", np.zeros((128, 128)), (0, 0, z))
    read_image(tmp_path / "ct")
    assert peak_of(lambda: read_image(tmp_path / "ct")) < 2 * MIB  # 0.5 MiB, and a slice's wide values


def bombs(folder: Path, dicom_file: Callable[..., Path], volume: Path) -> dict[str, Path]:
    """Files of a few KiB whose headers promise far more."""
    columns = 2**15
    png = io.BytesIO()
    PIL.Image.new("L", (2000, 8)).save(png, format="PNG")
    data = bytearray(png.getvalue())
    data[16:24] = columns.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    jpeg = io.BytesIO()
    PIL.Image.new("L", (64, 64)).save(jpeg, format="JPEG")
    frame = bytearray(jpeg.getvalue())
    at = frame.index(b"\xff\xc0") + 5
    frame[at : at + 4] = columns.to_bytes(2, "big") * 2
    (folder / "a.png").write_bytes(data)
    (folder / "a.jpg").write_bytes(frame)
    dicom_file(folder / "a.dcm", np.zeros((6, 8)), (0, 0, 0), Rows=columns, Columns=columns)
    return {
        "256 x 256 x 64 voxels": volume,
        f"{columns} x {columns} pixels of 1 channels": folder / "a.png",
        f"{columns} x {columns} pixels of 1 channels would": folder / "a.jpg",
        f"{columns} x {columns} pixels of 2 bytes": folder / "a.dcm",
    }


def test_what_is_larger_than_the_free_memory_is_refused_with_its_size(
    tmp_path: Path, dicom_file: Callable[..., Path], volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = bombs(tmp_path, dicom_file, volume)
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 6 * MIB)
    for size, path in found.items():

        def read(path: Path = path, size: str = size) -> None:
            with pytest.raises(ImageError, match=f"{size}.*but 6.0 MiB are free"):
                read_image(path)

        assert peak_of(read) < MIB


def test_memory_that_runs_out_all_the_same_is_an_image_error(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reading, "_finite", fails)
    for read in (read_image, read_label_map):
        with pytest.raises(ImageError, match=r"a\.nii\.gz: memory ran out"):
            read(volume)


def test_a_gzip_stream_is_read_little_further_than_the_header_says(volume: Path, tmp_path: Path) -> None:
    whole = gzip.decompress(volume.read_bytes())
    path = tmp_path / "a.nii.gz"

    def write(more: int) -> None:
        with gzip.open(path, "wb") as stream:
            stream.write(whole)
            for _ in range(more):
                stream.write(bytes(MIB))
        assert path.stat().st_size < MIB

    def refused() -> None:
        with pytest.raises(ImageError, match="more than 64 MiB lie behind the voxels"):
            read_image(path)

    write(32)
    assert peak_of(lambda: read_image(path)) < 1.3 * 8 * MIB
    write(65)
    assert peak_of(refused) < 1.3 * 8 * MIB


def test_a_deflated_dicom_is_unpacked_to_a_limit(
    tmp_path: Path, dicom_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dicom_file(tmp_path / "a.dcm", np.zeros((6, 8)), (0, 0, 0))
    dataset = pydicom.Dataset(pydicom.dcmread(path))
    dataset.add_new(0x00091010, "OB", bytes(32 * MIB))
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    assert path.stat().st_size < MIB
    assert read_image(path).array.shape == (6, 8)
    monkeypatch.setattr(dicom_slice, "_MOST_INFLATED", 16 * MIB)

    def read() -> None:
        for each in (read_image, read_header):
            with pytest.raises(ImageError, match="grows past 16 MiB"):
                each(path)

    assert peak_of(read) < 4 * MIB


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_and_profiles_of_a_png_are_not_unpacked(tmp_path: Path, name: bytes) -> None:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8)).save(stream, format="PNG")
    png = stream.getvalue()
    packed = zlib.compress(bytes(16 * MIB))
    body = b"key\0\0" + (b"\1\0\0\0" if name == b"iTXt" else b"") + packed
    chunk = len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(png[:33] + chunk + png[33:])
    read_image(path)
    assert peak_of(lambda: read_image(path)) < 2 * MIB


def test_a_megabyte_of_text_in_a_header_does_not_reach_the_error(
    tmp_path: Path, dicom_file: Callable[..., Path]
) -> None:
    long = "x" * MIB
    folder = tmp_path / "ct"
    folder.mkdir()
    for number in range(2):
        path = dicom_file(
            folder / f"{number}.dcm", np.zeros((6, 8)), (0, 0, number), SeriesInstanceUID=f"1.{number}"
        )
        dataset = pydicom.dcmread(path)
        for keyword in ("SeriesDescription", "Modality", "Manufacturer", "RescaleType"):
            dataset[keyword] = pydicom.DataElement(keyword, "UT", long)
        pydicom.dcmwrite(path, dataset)
    for number in range(200):
        (folder / f"{number}{'y' * 200}.txt").write_text("no image")
    messages = []
    with pytest.raises(ImageError) as caught:
        read_image(folder)
    messages.append(str(caught.value))
    for keyword in ("PhotometricInterpretation", "RescaleType", "ImageType", "SOPClassUID", "Modality"):
        dataset = pydicom.dcmread(dicom_file(tmp_path / "a.dcm", np.zeros((6, 8)), (0, 0, 0)))
        dataset[keyword] = pydicom.DataElement(keyword, "UT", long)
        pydicom.dcmwrite(tmp_path / "a.dcm", dataset)
        try:
            image = read_image(tmp_path / "a.dcm")
        except ImageError as error:
            messages.append(str(error))
        else:
            messages += [*image.notes, repr(image.facts)]
    assert len(messages) >= 6
    assert max(map(len, messages)) < 3000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="sparse files")
def test_a_sparse_file_of_a_terabyte_is_refused(tmp_path: Path, volume: Path) -> None:
    header = bytearray(gzip.decompress(volume.read_bytes())[:352])
    header[40:48] = np.array([3, 8192, 8192, 8192], "<i2").tobytes()
    path = tmp_path / "a.nii"
    path.write_bytes(header)
    os.truncate(path, 352 + 2 * 8192**3)
    with pytest.raises(ImageError, match="8192 x 8192 x 8192 voxels"):
        read_image(path)
    path.unlink()
