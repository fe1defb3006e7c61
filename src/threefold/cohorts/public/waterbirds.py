"""Importer of Waterbirds: photographs of birds before backgrounds that mostly go with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec
from threefold.cohorts.staging import Staging, check_case_id, finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError, ImageError
from threefold.images.decoding import decoding
from threefold.images.formats import is_folder
from threefold.images.memory import refuse_beyond_memory
from threefold.images.writing import write_png

Progress = Callable[[int, int], None]

CLASSES = ("landbird", "waterbird")
_PARTS = ("train", "validation", "test")
_AGREED = 128
"""Grey value of a segmentation from which at least half of its annotators see the bird."""


def import_waterbirds(
    folder: Path,
    out: Path,
    *,
    segmentations: Path | None = None,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of Waterbirds (Sagawa et al. 2020), its photographs in grey.

    The column `shortcut` is 1 before water, 0 before land; the split is the published one
    (`data.split.kind=column`). Each photograph is taken for another patient's.

    Args:
        folder: holds metadata.csv (img_filename, y, split, place) and the JPEGs that it names.
        out: the new folder.
        segmentations: of CUB-200-2011 (NAME.png by the photograph's path): masks of the birds.
        progress: called with the number of photographs done and of all.

    Raises:
        CohortError: naming file, row and column, if the folder is not laid out so, or no photograph can be
            used. One that can't be read, or whose segmentation is of another size, is left out.
    """
    table = Path(folder) / "metadata.csv"
    header, records = split_table(read_text(table), table)
    for name in ("img_filename", "y", "split", "place"):
        if name not in header:
            raise CohortError(f"{table}: no column '{name}'; found {', '.join(header)}. Is it Waterbirds'?")
    if not records:
        raise CohortError(f"{table}: has no rows. Get the data set again.")
    rows: list[dict[str, Any]] = []
    with staging(out, table.parent) as stage:
        for number, cells in records:
            row = _row(cells, table, number)
            with stage.sparing(row["case_id"]):
                stage.require_inside(table.parent / cells["img_filename"])
                row |= _write(stage, table.parent, segmentations, cells["img_filename"], row["case_id"])
                rows.append(row)
            if progress is not None:
                progress(len(rows) + len(stage.failed), len(records))
        spec = CohortSpec(
            name="waterbirds",
            modality="photo",
            dimensions=2,
            classes=CLASSES,
            positive=CLASSES[1],
            mask=None if segmentations is None else MaskSpec(name="bird", values=(255,)),
            intensity=IntensitySpec(unit="grey", window=(0, 255)),
            spacing=(1.0, 1.0),
            columns={"shortcut": "1 before water, 0 before land"},
        )
        provenance = {
            "made by": "import waterbirds",
            "source": "Waterbirds, Sagawa et al. 2020; CUB-200-2011 and Places",
            "assumed": "each photograph is of another patient; colours became luminance",
        }
        stage.finish(spec, rows, provenance, allow_outside=False)
    return finished(out, allow_outside=False)


def _row(cells: Mapping[str, str], table: Path, number: int) -> dict[str, Any]:
    values = {}
    for name, known in (("y", "01"), ("place", "01"), ("split", "012")):
        if len(cells[name]) != 1 or cells[name] not in known:
            raise CohortError(
                f"{table}: row {number}, column {name}: expected one of {', '.join(known)}, found "
                f"'{cells[name]}'."
            )
        values[name] = int(cells[name])
    case_id = Path(cells["img_filename"]).stem
    check_case_id(case_id)
    return {
        "case_id": case_id,
        "patient_id": case_id,
        "site": "waterbirds",
        "label": CLASSES[values["y"]],
        "split": _PARTS[values["split"]],
        "shortcut": values["place"],
    }


def _write(
    stage: Staging, source: Path, segmentations: Path | None, name: str, case_id: str
) -> dict[str, Path | None]:
    """Write a photograph in grey, and its mask; return their paths relative to the cohort."""
    picture = _grey(source / name)
    written: dict[str, Path | None] = {"image": stage.new_file("image", case_id, ".png"), "mask": None}
    write_png(stage.folder / str(written["image"]), picture)
    if segmentations is None:
        return written
    path = (Path(segmentations) / name).with_suffix(".png")
    bird = _grey(path)
    if bird.shape != picture.shape:
        raise ImageError(f"{path}: is {bird.shape}, its photograph {picture.shape} (rows, columns).")
    written["mask"] = stage.new_file("mask", case_id, ".png")
    write_png(stage.folder / str(written["mask"]), np.where(bird >= _AGREED, 255, 0).astype(np.uint8))
    return written


def _grey(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a picture's luminance, (rows, columns)."""
    if is_folder(path):
        raise ImageError(f"{path}: a folder; expected a picture.")
    with decoding(path, "a JPEG or PNG"):
        import PIL.Image

        with PIL.Image.open(path, formats=("JPEG", "PNG")) as picture:
            columns, rows = picture.size
            refuse_beyond_memory(path, f"{rows} x {columns} pixels", 8 * rows * columns)
            return np.asarray(picture.convert("L"))
