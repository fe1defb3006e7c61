"""A folder of predictions: one table, and a label map for each image on the image's own grid."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import RunError
from threefold.evaluation.predictions import probability_column, write_predictions
from threefold.file_names import portable
from threefold.images.geometry import Image
from threefold.images.writing import label_map_suffix, write_label_map
from threefold.run import make_folder

WRITE_EVERY = 20.0
"""Seconds after which the table is written again while rows are added."""


@dataclass(frozen=True)
class Prediction:
    """What a run's network says of one image.

    Attributes:
        case_id: the case's name; NAME#k for slice k of a volume that a 2D network was given.
        probabilities: by class name; empty without classification.
        decision: the class decided for. Two classes: the positive one where its probability reaches the
            run's threshold. Otherwise, and where the run has no threshold, the most probable one. None
            without classification.
        mask: uint8 labels on the image's own grid and axis order, 0 background; None without segmentation.
        image: the image as read.
        slice_index, volume: the volume that the image is a slice of, and which; None for other images.
        note: how an image larger than the network's was predicted; empty for others.
        topology: what the label map says of the aortic arch (arch, topology_class, agrees), where its
            structures have the names for it; a diagnosis that it contradicts wants a reader's eye.
        mask_file: where the mask is written (that of a volume's slice: with the volume's last one); None
            without a folder.
    """

    case_id: str
    probabilities: Mapping[str, float]
    decision: str | None
    mask: NDArray[np.uint8] | None = field(repr=False)
    image: Image = field(repr=False)
    slice_index: int | None = None
    volume: Image | None = field(default=None, repr=False)
    note: str = ""
    topology: Mapping[str, str] = field(default_factory=dict)
    mask_file: Path | None = None


class PredictionFolder:
    """Writes predictions.csv and masks/.

    The masks of a volume's slices become one label map of the volume, written when all are there. The
    table is written by `write`, and now and then while rows are added, so that a process that is killed
    leaves what it had done.
    """

    def __init__(self, path: Path, *, labels: int, same: Mapping[str, Any]) -> None:
        """Make the folder.

        Args:
            path: must not exist, or be empty.
            labels: number of labels beside the background.
            same: further columns, the same for each row (run, version, threshold).

        Raises:
            RunError: if there is something in it, or it can't be made.
        """
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise RunError(
                f"{path}: exists already; predictions are never overwritten. Choose another --out."
            )
        make_folder(path)
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._labels, self._same = labels, dict(same)
        self._used: set[str] = set()
        self._volume: Image | None = None
        self._slices: dict[int, NDArray[np.uint8]] = {}
        self._volume_mask = ""
        self._written = time.monotonic()

    def add(self, prediction: Prediction) -> Prediction:
        """Write a prediction's mask and keep its row.

        Returns:
            The prediction, with its mask's file.

        Raises:
            ImageError: if the mask can't be written.
        """
        row: dict[str, Any] = {
            "case_id": prediction.case_id,
            "image": str(prediction.image.source),
            "slice": "" if prediction.slice_index is None else prediction.slice_index,
            **{probability_column(name): p for name, p in prediction.probabilities.items()},
        }
        if prediction.decision is not None:
            row["decision"] = prediction.decision
        row |= prediction.topology
        if prediction.mask is not None:
            row["mask_predicted_voxels"] = int((prediction.mask > 0).sum())
            row["mask"] = self._write_mask(prediction, prediction.mask)
        notes = (*prediction.image.notes, *((prediction.note,) if prediction.note else ()))
        self.rows.append({**row, **self._same, "notes": "; ".join(notes)})
        if time.monotonic() - self._written > WRITE_EVERY:
            self.write()
        return replace(prediction, mask_file=self.path / row["mask"]) if row.get("mask") else prediction

    def write(self) -> None:
        """Write the table as far as it goes, in one step, if there is a row.

        The slices of a volume whose label map is not whole yet have no mask's file in it.

        Raises:
            RunError: if it can't be written.
        """
        import pandas as pd

        if not self.rows:
            return
        rows = [
            {**row, "mask": ""} if self._slices and row.get("mask") == self._volume_mask else row
            for row in self.rows
        ]
        write_predictions(pd.DataFrame(rows), self.path / "predictions.csv")
        self._written = time.monotonic()

    def _write_mask(self, prediction: Prediction, mask: NDArray[np.uint8]) -> str:
        """Write a mask, or keep it until its volume is whole; return its path within the folder."""
        if prediction.volume is None or prediction.slice_index is None:
            name = self._mask_name(prediction.case_id, prediction.image)
            write_label_map(self.path / name, mask, prediction.image, labels=self._labels)
            return name
        volume = prediction.volume
        if volume is not self._volume:
            self._volume, self._slices = volume, {}
            self._volume_mask = self._mask_name(prediction.case_id.rpartition("#")[0], volume)
        self._slices[prediction.slice_index] = mask
        if len(self._slices) == volume.array.shape[2]:
            whole = np.stack([self._slices[k] for k in range(len(self._slices))], axis=-1)  # (I, J, K)
            write_label_map(self.path / self._volume_mask, whole, volume, labels=self._labels)
            self._volume, self._slices = None, {}
        return self._volume_mask

    def _mask_name(self, case_id: str, image: Image) -> str:
        """Return a path within the folder for a mask, told apart from those that are used."""
        make_folder(self.path / "masks")
        stem = portable(re.sub(r"[^\w.+=@# -]+", "_", case_id).lstrip("._") or "image")
        suffix, number, name = label_map_suffix(image), 2, stem
        while name.casefold() in self._used:
            name, number = f"{stem}_{number}", number + 1
        self._used.add(name.casefold())
        return f"masks/{name}{suffix}"
