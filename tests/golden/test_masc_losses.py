"""The aortic-arch paper's losses against the numbers of its published implementation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from threefold.core.batch import Batch
from threefold.core.outputs import Outputs

from ..tasks.makers import batch_of, everywhere, region, segmentation

LABELS = 12


def golden_batch(structures: Tensor, mask: Tensor) -> Batch:
    targets = {"structures": structures, "mask": mask}
    image = torch.zeros(len(mask), 1, *mask.shape[1:])
    return batch_of(image, **{name: everywhere(of.to(torch.uint8)) for name, of in targets.items()})


def test_the_published_losses(masc_losses: dict[str, Tensor]) -> None:
    outputs = Outputs({"segmentation": masc_losses["logits"]})
    batch = golden_batch(masc_losses["propagated"][:, 0], masc_losses["manual"][:, 0])
    multi = segmentation(LABELS, target="structures").losses(outputs, batch)
    binary = region().losses(outputs, batch)
    assert float(multi) == pytest.approx(float(masc_losses["multi_class_loss"]), abs=1e-4)
    assert float(binary) == pytest.approx(float(masc_losses["binary_loss"]), abs=1e-4)
    assert float(multi) == pytest.approx(4.9022, abs=1e-4)
    assert float(binary) == pytest.approx(3.0941, abs=1e-4)


def test_a_batch_is_the_mean_of_its_cases(masc_losses: dict[str, Tensor]) -> None:
    golden = masc_losses
    # The published loss is right for one case only: it holds every case against the whole batch's target.
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat([golden["logits"], torch.randn(2, *golden["logits"].shape[1:], generator=generator)])
    structures = torch.cat([golden["propagated"][:, 0], golden["propagated"][:, 0].roll(3, 2).flip(1)])
    structures = torch.cat([structures, structures[:1].roll(5, 1)])
    mask = torch.cat([golden["manual"][:, 0]] * 3).roll(1, 0)
    mask[1] = mask[1].flip(0)
    for task in (segmentation(LABELS, target="structures"), region()):
        together = task.losses(Outputs({"segmentation": logits}), golden_batch(structures, mask))
        alone = [
            task.losses(
                Outputs({"segmentation": logits[i : i + 1]}),
                golden_batch(structures[i : i + 1], mask[i : i + 1]),
            )
            for i in range(3)
        ]
        torch.testing.assert_close(together, torch.cat(alone))
        assert len({round(float(value), 3) for value in together}) == 3
