"""The history for TensorBoard, beside metrics.csv."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from threefold.training.history import Row


class TensorboardLog:
    """Writes each epoch's row to RUN/tensorboard; a resumed run hides what was logged past its start."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        """Open the log; `first_epoch` is the first (1-based) that will be written."""
        with warnings.catch_warnings():
            # It imports parts of TensorBoard that warn of their own dependencies.
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch.utils.tensorboard.writer import SummaryWriter
        self._writer: Any = SummaryWriter(str(folder), purge_step=first_epoch)

    def write(self, row: Row) -> None:
        """Write an epoch's row."""
        for name, value in row.items():
            if name != "epoch":
                part, _, rest = name.partition("_")
                grouped = part in ("train", "validation", "seconds", "weight") and rest
                self._writer.add_scalar(
                    f"{part}/{rest}" if grouped else f"train/{name}", value, int(row["epoch"])
                )
        self._writer.flush()
