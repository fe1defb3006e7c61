"""Small files that expand to gigabytes are refused before they take the memory: measured from outside."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from threefold.images.cache import read_entry

from .conftest import write_dicom

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX alone tells the largest memory")

GIB = 2**30
READING = """
import json, resource, sys
from pathlib import Path
from threefold.errors import ImageError
from threefold.images import memory, preprocessing
from threefold.images.reading import read_image

def peak():  # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

folder, free = Path(sys.argv[1]), int(sys.argv[2])
memory.available_memory_bytes = lambda: free
for name in ("small.nii.gz", "small.png", "small.dcm"):  # imports
    read_image(folder / name)
before, said = peak(), {}
for path in sorted(folder.glob("bomb*")):
    try:
        read_image(path)
    except ImageError as error:
        said[path.name] = str(error)
print(json.dumps({"said": said, "taken": peak() - before}))
"""


def nifti_bomb(path: Path) -> None:
    """4 GiB of zeros: one part of 64 MiB, again and again."""
    header = np.zeros(352, np.uint8)
    header[:4] = np.array([348], "<i4").view(np.uint8)
    header[40:56] = np.array([3, 1024, 1024, 2048, 1, 1, 1, 1], "<i2").view(np.uint8)
    header[70:74] = np.array([4, 16], "<i2").view(np.uint8)
    header[76:108] = np.ones(8, "<f4").view(np.uint8)
    header[108:112] = np.array([352], "<f4").view(np.uint8)
    header[254:256] = np.array([1], "<i2").view(np.uint8)
    header[280:328] = np.eye(4, dtype="<f4")[:3].ravel().view(np.uint8)
    header[344:348] = np.frombuffer(b"n+1\0", np.uint8)
    part = gzip.compress(bytes(64 * 2**20), 1)
    path.write_bytes(gzip.compress(header.tobytes()) + part * 64)


def png_bomb(path: Path) -> None:
    """32,768 x 32,768 pixels of 16 bits, 2 GiB; what its stream expands to is not even needed."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    size = (2**15).to_bytes(4, "big") * 2
    body = zlib.compress(bytes(2**24), 1)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x10\0\0\0\0")
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def dicom_bomb(path: Path) -> None:
    """A deflated data set with 512 MiB of a private element behind a slice."""
    write_dicom(path, np.zeros((6, 8)), (0, 0, 0))
    dataset = pydicom.Dataset(pydicom.dcmread(path))
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    plain = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(b"\x09\0\x10\x10OB\0\0" + (2**29).to_bytes(4, "little"))
    zeros = bytes(2**24)
    packed += b"".join(packer.compress(zeros) for _ in range(32))
    packed += packer.compress(plain) + packer.flush()
    path.write_bytes(data[:start] + packed)


def test_what_expands_to_gigabytes_is_refused_before_it_takes_them(tmp_path: Path) -> None:
    import nibabel
    import PIL.Image

    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "small.nii.gz")
    PIL.Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "small.png")
    write_dicom(tmp_path / "small.dcm", np.zeros((6, 8)), (0, 0, 0))
    nifti_bomb(tmp_path / "bomb.nii.gz")
    png_bomb(tmp_path / "bomb.png")
    dicom_bomb(tmp_path / "bomb.dcm")
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("bomb*")}
    assert max(sizes.values()) < 25 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", READING, str(tmp_path), str(GIB)], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout)
    assert {*found["said"]} == {"bomb.nii.gz", "bomb.png", "bomb.dcm"}
    assert "6.0 GiB of memory to read, but 1.0 GiB" in found["said"]["bomb.nii.gz"]
    assert "of memory to read, but 1.0 GiB" in found["said"]["bomb.png"]
    assert "grows past 256 MiB" in found["said"]["bomb.dcm"]
    assert found["taken"] < 200 * 2**20  # the largest file is held as it is


def test_a_cache_entry_that_is_compressed_is_made_anew(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, image=np.zeros((512, 512, 64), np.float32))
    data = stream.getvalue()
    (tmp_path / "entry").write_bytes(hashlib.sha256(data).digest() + data)
    assert read_entry(tmp_path / "entry") is None
