"""A preprocessed case (Sample) and several of them on a device (Batch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from threefold.core.targets import ClassTarget, MultilabelTarget, NumberTarget, TargetSpec, TargetValue


@dataclass(frozen=True)
class Sample:
    """One preprocessed case on the network's grid.

    Attributes:
        case_id: the case's name in its cohort.
        image: (C, *S) float32, 0..1.
        targets: the case's known targets, by name: class index, findings (tuple of True, False or None),
            number, or a label map (*S) uint8: 0 or 1 for a mask, else 0 is background.
    """

    case_id: str
    image: NDArray[np.float32]
    targets: Mapping[str, TargetValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One target of B cases. Absent values are zero and must not be used by any loss or metric.

    Attributes:
        values: (B,) int64 class index; (B, K) float32 findings, 0 or 1; (B,) float32 number; or (B, *S) uint8
            label maps.
        present: (B,) bool; for findings (B, K).
    """

    values: Tensor
    present: Tensor

    def known(self) -> Tensor:
        """Return (B,) bool: the cases with the target, or with at least one known finding."""
        return self.present if self.present.ndim == 1 else self.present.any(dim=1)

    def map(self, change: Callable[[Tensor], Tensor]) -> Target:
        """Return the target with both tensors changed."""
        return Target(change(self.values), change(self.present))


@dataclass(frozen=True)
class Batch:
    """B samples on one device.

    Attributes:
        case_ids: B names.
        image: (B, C, *S) float32.
        targets: targets by name; the same names for all batches of a cohort.
    """

    case_ids: tuple[str, ...]
    image: Tensor
    targets: Mapping[str, Target] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of cases."""
        return len(self.case_ids)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed."""
        targets = {name: target.map(change) for name, target in self.targets.items()}
        return Batch(self.case_ids, change(self.image), targets)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by the data loader before a GPU copy)."""
        return self.map(Tensor.pin_memory)

    def as_plain(self) -> dict[str, Any]:
        """Return the batch as nested plain containers, as required by multi-process wrappers."""
        targets = {name: (target.values, target.present) for name, target in self.targets.items()}
        return {"case_ids": self.case_ids, "image": self.image, "targets": targets}

    @classmethod
    def from_plain(
        cls, case_ids: tuple[str, ...], image: Tensor, targets: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Batch:
        """Return the batch from the result of `as_plain`."""
        return cls(case_ids, image, {name: Target(*pair) for name, pair in targets.items()})


def collate(samples: Sequence[Sample], targets: Mapping[str, TargetSpec]) -> Batch:
    """Stack samples of one shape into a batch on the CPU.

    Args:
        samples: of one cohort.
        targets: of the cohort, by name; each becomes a target of the batch.

    Raises:
        ValueError: if `samples` is empty or the images differ in shape.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    shapes = {sample.image.shape for sample in samples}
    if len(shapes) > 1:
        raise ValueError(f"samples of one batch must share a shape, found {sorted(shapes)}")
    return Batch(
        case_ids=tuple(sample.case_id for sample in samples),
        image=torch.from_numpy(np.stack([sample.image for sample in samples])),
        targets={
            name: _stack([sample.targets.get(name) for sample in samples], spec, samples[0].image.shape[1:])
            for name, spec in targets.items()
        },
    )


def _stack(values: Sequence[TargetValue | None], spec: TargetSpec, shape: tuple[int, ...]) -> Target:
    present = torch.tensor([value is not None for value in values])
    if isinstance(spec, ClassTarget):
        return Target(torch.tensor([0 if value is None else value for value in values]), present)
    if isinstance(spec, NumberTarget):
        numbers = [0.0 if value is None else value for value in values]
        return Target(torch.tensor(numbers, dtype=torch.float32), present)
    if isinstance(spec, MultilabelTarget):
        rows = [(None,) * len(spec.classes) if value is None else value for value in values]
        return Target(
            torch.tensor([[float(bool(one)) for one in row] for row in rows]),
            torch.tensor([[one is not None for one in row] for row in rows]),
        )
    empty = np.zeros(shape, np.uint8)
    return Target(
        torch.from_numpy(np.stack([empty if value is None else value for value in values])), present
    )
