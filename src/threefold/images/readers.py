"""Formats that others read: of installed packages, and those that THREEFOLD_READERS names."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from threefold.core.registry import Plugin, find, listed
from threefold.errors import ExperimentError, ImageError, bounded
from threefold.images.facts import NOTHING_STATED, Facts
from threefold.images.geometry import Image

KNOWN = ("nifti", "dicom", "dicom series", "nrrd", "metaimage", "picture")
"""Formats that the program reads itself; no file of theirs goes to a reader from outside."""
READERS = "THREEFOLD_READERS"
"""Environment variable: readers of one's own, MODULE:NAME, separated by commas."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How files of a format that the program does not know are read.

    Attributes:
        name: of the format, in messages and in what a run says of its training images.
        read: from the path to the image: (I, J) or (I, J, K) voxels and the affine to RAS+ mm. What it raises
            is that file's error.
        suffixes: that names of such files end with, in small letters.
        magic: what such files hold at a place, as (place, bytes), in the first 544 bytes; of a gzipped file
            in what is unpacked. Any one of them is enough.
        states_place: the files say where their voxels lie and how large they are; False for pictures.
    """

    name: str
    read: Callable[[Path], Image]
    suffixes: tuple[str, ...] = ()
    magic: tuple[tuple[int, bytes], ...] = ()
    states_place: bool = True

    def knows(self, path: Path, head: bytes) -> bool:
        """Whether a file is of the format, by its first bytes or its name."""
        by_bytes = any(head[at:].startswith(mark) for at, mark in self.magic)
        return by_bytes or path.name.lower().endswith(self.suffixes or ("\0",))


def readers() -> tuple[Reader, ...]:
    """Return the readers from outside, those of THREEFOLD_READERS first.

    Raises:
        ExperimentError: one that is named there can't be imported. Those of packages that can't be are passed
            over; `threefold plugins` says why.
    """
    named = [name.strip() for name in os.environ.get(READERS, "").split(",")]
    return _readers(tuple(filter(None, named)), tuple(listed("readers")))


@lru_cache(maxsize=8)
def _readers(named: tuple[str, ...], of_packages: tuple[Plugin, ...]) -> tuple[Reader, ...]:
    found = [_reader(name) for name in named]
    for one in of_packages:
        with suppress(ExperimentError):
            found.append(_reader(one.name))
    return tuple(found)


def _reader(name: str) -> Reader:
    found, _ = find("readers", name)
    if not isinstance(found, Reader):
        raise ExperimentError(f"reader '{name}': expected a threefold Reader, found {type(found).__name__}.")
    if found.name in KNOWN:
        raise ExperimentError(
            f"reader '{name}': the program reads {found.name} itself. Give it another name."
        )
    return found


def reader_of(path: Path, head: bytes) -> Reader | None:
    """Return the reader from outside that knows a file; None: there is none."""
    return next((one for one in readers() if one.knows(path, head)), None)


def read_foreign(path: Path, reader: Reader) -> Image:
    """Read a file with a reader from outside.

    Raises:
        ImageError: the reader failed, or gave no image of 2 or 3 axes with a grid.
    """
    try:
        image = reader.read(path)
    except (OSError, MemoryError, ImageError):
        raise
    except Exception as error:  # whatever someone's reader raises
        raise ImageError(
            f"{path}: the reader of {reader.name} can't read it ({type(error).__name__}: "
            f"{bounded(str(error))})."
        ) from error
    problem = _problem(image)
    if problem:
        raise ImageError(f"{path}: the reader of {reader.name} gave {problem}. Correct the reader.")
    stated = Facts(spacing_stated=reader.states_place, place_stated=reader.states_place)
    facts = stated if image.facts == NOTHING_STATED else image.facts
    return replace(image, source=path, facts=replace(facts, format=reader.name))


def _problem(image: Any) -> str:
    """Return what is wrong with what a reader gave; empty where nothing is."""
    if not isinstance(image, Image):
        return f"{type(image).__name__}; expected a threefold Image"
    if image.array.ndim not in (2, 3) or image.array.dtype.kind not in "iufb":
        return f"{image.array.dtype} of shape {image.array.shape}; expected numbers of 2 or 3 axes"
    affine = np.asarray(image.affine)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.linalg.det(affine):
        return "no affine of 4 x 4 that can be inverted"
    return ""
