"""The bytes of a file say what it is, not its name; what is no file is never opened."""

from __future__ import annotations

import gzip
import os
import shutil
import socket
from collections.abc import Callable
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest
from numpy.testing import assert_array_equal

from threefold.errors import ImageError
from threefold.images.cache import ContentHashes
from threefold.images.formats import format_of
from threefold.images.reading import read_header, read_image, read_label_map

NAMES = ("a.nii", "a.nii.gz", "A.NII.GZ", "a.gz", "a.png", "a.dcm", "a.jpg", "a.txt", "IM1")


@pytest.fixture(scope="module")
def contents(
    tmp_path_factory: pytest.TempPathFactory, dicom_file: Callable[..., Path]
) -> dict[str, tuple[str, bytes, np.ndarray]]:
    """The same values in every format: what it is, its bytes, its array."""
    folder = tmp_path_factory.mktemp("contents")
    values = np.arange(48).reshape(6, 8)
    nifti = nibabel.Nifti1Image(values.astype(np.int16), np.eye(4)).to_bytes()
    grey = PIL.Image.fromarray(values.astype(np.uint8))
    for name in ("a.png", "a.jpg"):
        grey.save(folder / name)
    dicom_file(folder / "a.dcm", values, (0, 0, 0), RescaleIntercept=0)
    decoded = np.asarray(PIL.Image.open(folder / "a.jpg"))
    return {
        "nifti": ("nifti", nifti, values),
        "gzipped nifti": ("nifti", gzip.compress(nifti), values),
        "png": ("picture", (folder / "a.png").read_bytes(), values),
        "jpeg": ("picture", (folder / "a.jpg").read_bytes(), decoded),
        "dicom": ("dicom", (folder / "a.dcm").read_bytes(), values),
    }


@pytest.mark.parametrize("content", ["nifti", "gzipped nifti", "png", "jpeg", "dicom"])
def test_every_format_under_every_name(
    contents: dict[str, tuple[str, bytes, np.ndarray]], tmp_path: Path, content: str
) -> None:
    kind, data, values = contents[content]
    for name in NAMES:
        path = tmp_path / name
        path.write_bytes(data)
        assert format_of(path) == kind
        image = read_image(path)
        assert_array_equal(image.array, values)
        assert image.facts.format == kind
        assert_array_equal(read_label_map(path).array, values)
        assert read_header(path).shape == values.shape


def test_other_formats_are_refused_by_their_names(
    contents: dict[str, tuple[str, bytes, np.ndarray]], tmp_path: Path
) -> None:
    found = {
        "it begins as a TIFF file.*with a picture editor": b"II*\0" + bytes(600),
        "it begins as a FreeSurfer MGH file.*with mri_convert": b"\0\0\0\x01\0\0\1\0" + bytes(600),
        "gzipped, and it begins as a FreeSurfer MGH": gzip.compress(b"\0\0\0\x01\0\0\1\0" + bytes(600)),
        "it begins as a ZIP file": b"PK\3\4" + bytes(600),
        "it begins as a HDF5": b"\x89HDF" + bytes(600),
        "it begins with b'hello'": b"hello",
        "gzipped, and it begins with b'hello'": gzip.compress(b"hello"),
        "a gzipped dicom file": gzip.compress(contents["dicom"][1]),
        "a gzipped picture file": gzip.compress(contents["png"][1]),
        "truncated or damaged gzip": b"\x1f\x8b" + bytes(5),
    }
    for (says, data), name in product(found.items(), ("a.nii.gz", "a.dcm", "a.png")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=says) as caught:
            read_image(tmp_path / name)
        assert len(str(caught.value)) < 600


def test_pairs_of_header_and_voxels_are_named_by_either(tmp_path: Path) -> None:
    image = nibabel.Nifti1Pair(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    nibabel.save(image, tmp_path / "a.img")
    nibabel.save(nibabel.Spm2AnalyzeImage(np.ones((2, 3, 4), np.int16), np.eye(4)), tmp_path / "b.img")
    (tmp_path / "c.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
    (tmp_path / "c.hdr").write_bytes((tmp_path / "a.hdr").read_bytes())
    found = {
        "a.hdr": r"the header of a \.hdr/\.img pair\. Convert the pair to one \.nii\.gz",
        "a.img": r"the voxels of a \.hdr/\.img pair, whose header is a\.hdr\. .*Convert the pair to one",
        "b.hdr": r"ANALYZE 7\.5 header, which does not say left from right",
        "b.img": r"whose header is b\.hdr",
        "c.img.gz": r"gzipped, and it holds the voxels of a \.hdr/\.img pair, whose header is c\.hdr",
    }
    for name, says in found.items():
        for read in (read_image, read_header):
            with pytest.raises(ImageError, match=says) as caught:
                read(tmp_path / name)
            assert str(tmp_path / name) in str(caught.value)


def make(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(str(path))
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "dangling link":
        path.symlink_to(path.with_name("gone"))
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()


@pytest.mark.skipif(
    not hasattr(os, "mkfifo") or not Path("/dev/zero").exists(), reason="POSIX alone has these"
)
@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("pipe", r"a named pipe \(FIFO\), not a file"),
        ("socket", "a socket, not a file"),
        ("device", "a device, not a file"),
        ("dangling link", "a link to .*gone, which does not exist"),
        ("loop", "Too many levels of symbolic links"),
        ("folder", "a folder; expected one DICOM series in it"),
    ],
)
def test_what_is_no_file_is_named_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may not be long
    path = Path("a.nii")
    make(kind, path)
    for read in (format_of, read_image, read_header, read_label_map):
        if (read, kind) != (format_of, "folder"):
            with pytest.raises(ImageError, match=says) as caught:
                read(path)
            assert "a.nii" in str(caught.value)
    if kind != "folder":
        with pytest.raises(ImageError, match=r"a\.nii"):
            ContentHashes().of(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX alone has pipes")
def test_pipes_and_links_among_slices_are_passed_over_and_named(
    tmp_path: Path, dicom_series: Callable[..., np.ndarray]
) -> None:
    dicom_series(tmp_path / "ct", [(0, 0, z) for z in range(3)])
    os.mkfifo(tmp_path / "ct" / "pipe.dcm")
    (tmp_path / "ct" / "link.dcm").symlink_to("gone")
    (tmp_path / "ct" / "empty").touch()
    image = read_image(tmp_path / "ct")
    assert image.array.shape == (6, 8, 3)
    assert image.notes == ("passed over, not DICOM images: empty, link.dcm, pipe.dcm",)
    ContentHashes().of(tmp_path / "ct")
    shutil.rmtree(tmp_path / "ct")


@pytest.mark.parametrize("name", ["a" * 300, "a\0b"])
def test_a_name_that_can_not_be_is_an_image_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="can't be read"):
        read_image(tmp_path / name)
