"""A case in memory (Sample) and several of them on a device (Batch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One preprocessed case on the network's grid.

    Attributes:
        case_id: the case's name in its cohort.
        image: (C, *S) float32, 0..1.
        mask: (*S) uint8, 0 or 1; None where the case has no mask.
        structures: (*S) uint8 labels, 0 background; None where the case has none.
        label: class index; None where the case has none.
    """

    case_id: str
    image: NDArray[np.float32]
    mask: NDArray[np.uint8] | None = None
    structures: NDArray[np.uint8] | None = None
    label: int | None = None


@dataclass(frozen=True)
class Batch:
    """B samples, with a presence flag per case for each target.

    Where a target is absent its tensor holds zeros, which no loss or metric may look at.

    Attributes:
        case_ids: B names.
        image: (B, C, *S) float32.
        label: (B,) int64 class index; has_label: (B,) bool.
        mask: (B, *S) uint8, 0 or 1; has_mask: (B,) bool.
        structures: (B, *S) uint8 labels; has_structures: (B,) bool.
    """

    case_ids: tuple[str, ...]
    image: Tensor
    label: Tensor
    has_label: Tensor
    mask: Tensor
    has_mask: Tensor
    structures: Tensor
    has_structures: Tensor

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.case_ids)

    def label_maps(self, target: Literal["mask", "structures"]) -> tuple[Tensor, Tensor]:
        """Return the label maps of a target (B, *S), and which cases carry it (B,)."""
        return (self.mask, self.has_mask) if target == "mask" else (self.structures, self.has_structures)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return the batch with every tensor on `device`."""
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory (called by the data loader before a GPU copy)."""
        tensors: dict[str, Any] = {
            name: v.pin_memory() for name, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **tensors)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one shape into a batch on the CPU.

    Raises:
        ValueError: if `samples` is empty or the images differ in shape.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    shapes = {sample.image.shape for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"samples of one batch must share a shape, found {sorted(shapes)}")
    labels = [sample.label for sample in samples]
    return Batch(
        case_ids=tuple(sample.case_id for sample in samples),
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        label=torch.tensor([0 if label is None else label for label in labels]),
        has_label=torch.tensor([label is not None for label in labels]),
        mask=_stack_targets([sample.mask for sample in samples], samples[0].image.shape[1:]),
        has_mask=torch.tensor([sample.mask is not None for sample in samples]),
        structures=_stack_targets([sample.structures for sample in samples], samples[0].image.shape[1:]),
        has_structures=torch.tensor([sample.structures is not None for sample in samples]),
    )


def _stack_targets(targets: Sequence[NDArray[np.uint8] | None], shape: tuple[int, ...]) -> Tensor:
    empty = np.zeros(shape, np.uint8)
    return torch.from_numpy(np.stack([empty if target is None else target for target in targets]))
