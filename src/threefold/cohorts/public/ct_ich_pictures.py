"""CT-ICH as 8-bit pictures in a brain window, taken back to HU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.public.haemorrhage import CLASSES, haemorrhage_spec
from threefold.cohorts.staging import Staging, finished, staging
from threefold.cohorts.table import read_text, split_table
from threefold.errors import CohortError, ImageError
from threefold.images.reading import read_header, read_image, read_label_map
from threefold.images.writing import write_nifti

Progress = Callable[[int, int], None]

PICTURES = "slices.csv"
"""The table of a folder of pictures."""
PICTURE_WINDOW = (-20.0, 100.0)
"""HU that the grey values 0 and 255 of the pictures are taken for: level 40, width 120."""
FIELD = 250.0
"""Field of view of a picture, mm: adult skulls in them then measure what adult skulls do."""
THICKNESS = 5.0
"""Thickness of a slice as its publication gives it, mm."""


def import_ct_ich_pictures(
    folder: Path, out: Path, *, site: str = "ct-ich", progress: Progress | None = None
) -> Cohort:
    """Make a cohort of the CT-ICH slices (PhysioNet ct-ich 1.0.0, Hssayeni et al. 2020).

    The pictures are 8-bit in a brain window, so their HU are an assumption that cohort.yaml and
    provenance.json state: grey 0..255 is -20..100 HU (what lay outside is lost), rows run towards posterior
    and columns towards the patient's left, the field of view is 250 mm, slices are 5 mm thick.

    Args:
        folder: holds slices.csv (slice, patient, slice_number, image, mask, hemorrhage, subtypes), images
            (8-bit) and masks (0 and 255), both of which may be links to another disk.
        out: the new folder, with NIfTI slices in HU and masks of 0 and 1 on the same grid.
        site: name of the hospital.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: if the folder is not laid out so, or a mask holds other values.
        ImageError: if a file can't be read.
    """
    table = Path(folder) / PICTURES
    header, records = split_table(read_text(table), table)
    for name in ("slice", "patient", "slice_number", "image", "mask", "hemorrhage", "subtypes"):
        if name not in header:
            raise CohortError(f"{table}: no column '{name}'; found {', '.join(header)}. Is it CT-ICH's?")
    assumed = (
        f"grey 0..255 of the pictures taken for {PICTURE_WINDOW[0]:g}..{PICTURE_WINDOW[1]:g} HU; field of "
        f"view taken for {FIELD:g} mm, thickness {THICKNESS:g} mm"
    )
    columns = {
        "slice_number": "number of the slice in its scan",
        "subtypes": "kinds of haemorrhage on the slice",
        "origin": "the file that the case was made of, and what was assumed",
    }
    spec = haemorrhage_spec("ct-ich", dimensions=2, columns=columns, mask_values=(1,), window=PICTURE_WINDOW)
    rows: list[dict[str, Any]] = []
    with staging(out, table.parent, linked=("images", "masks")) as stage:
        for number, cells in records:
            row: dict[str, Any] = {
                "case_id": f"{site}-{cells['slice']}",
                "patient_id": f"{site}-{cells['patient']}",
                "site": site,
                "label": _haemorrhage(cells["hemorrhage"], table, number),
                "slice_number": cells["slice_number"],
                "subtypes": cells["subtypes"],
                "origin": f"{cells['image']}; {assumed}",
            }
            with stage.sparing(row["case_id"]):
                for column in ("image", "mask"):
                    if cells[column]:
                        stage.require_inside(table.parent / cells[column])
                row |= _write_picture(stage, table.parent, cells, row["case_id"])
                rows.append(row)
            if progress is not None:
                progress(len(rows) + len(stage.failed), len(records))
        provenance = {
            "made by": "import ct-ich",
            "source": "PhysioNet ct-ich 1.0.0, Hssayeni et al. 2020, CC BY 4.0",
            "assumed": assumed,
        }
        stage.finish(spec, rows, provenance, allow_outside=False)
    return finished(out, allow_outside=False)


def _haemorrhage(value: str, table: Path, number: int) -> str:
    if value not in ("0", "1"):
        raise CohortError(f"{table}: row {number}, column hemorrhage: expected 0 or 1, found '{value}'.")
    return CLASSES[int(value)]


def _write_picture(stage: Staging, source: Path, cells: Mapping[str, str], case_id: str) -> dict[str, Path]:
    """Write a slice in HU and its mask; return their paths relative to the cohort."""
    rows = read_header(source / cells["image"]).shape[0]
    spacing = (FIELD / rows, FIELD / rows, THICKNESS)
    picture = read_image(source / cells["image"], spacing=spacing)
    low, high = PICTURE_WINDOW
    hu = (low + picture.array.astype(np.float32) * np.float32((high - low) / 255)).astype(np.float32)
    written = {"image": stage.new_file("image", case_id, ".nii.gz")}
    write_nifti(stage.folder / written["image"], hu, picture.affine)
    if not cells["mask"]:
        return written
    path = source / cells["mask"]
    mask: NDArray[Any] = read_label_map(path, spacing=spacing).array
    others = set(np.unique(mask).tolist()) - {0, 255}
    if others or mask.shape != hu.shape:
        found = f"values {sorted(others)}" if others else f"shape {mask.shape}"
        raise ImageError(f"{path}: expected 0 and 255 in shape {hu.shape}, found {found}.")
    written["mask"] = stage.new_file("mask", case_id, ".nii.gz")
    write_nifti(stage.folder / written["mask"], (mask > 0).astype(np.uint8), picture.affine)
    return written
