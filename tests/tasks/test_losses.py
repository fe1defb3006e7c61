"""Per-case losses, against torch's own and the published numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from threefold.experiment import ClassificationSpec, ReconstructionSpec, SegmentationSpec
from threefold.images.batch import Batch
from threefold.networks.outputs import Outputs
from threefold.tasks.classification import ClassificationTask, balanced_class_weights
from threefold.tasks.reconstruction import ReconstructionTask
from threefold.tasks.segmentation import SegmentationTask
from threefold.tasks.task import CaseLosses, Task

GOLDEN = Path(__file__).parents[1] / "golden"
PRESENT = torch.tensor([True, False, True, False])


def mean(losses: CaseLosses) -> torch.Tensor:
    """Mean over the cases that carry the target."""
    return losses.values.sum() / losses.present.sum().clamp(min=1)


def make_batch(shape: tuple[int, ...] = (9, 7), labels: int = 2, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(3)
    return Batch(
        case_ids=tuple("abcd"),
        image=torch.rand(4, 1, *shape, generator=generator),
        label=torch.randint(classes, (4,), generator=generator),
        has_label=PRESENT,
        mask=torch.randint(2, (4, *shape), generator=generator, dtype=torch.uint8),
        has_mask=PRESENT,
        structures=torch.randint(labels, (4, *shape), generator=generator, dtype=torch.uint8),
        has_structures=PRESENT,
    )


def make_outputs(batch: Batch, labels: int = 2, classes: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(4)
    shape = batch.image.shape[2:]
    return Outputs(
        classes=torch.randn(4, classes, generator=generator, requires_grad=True),
        segmentation=torch.randn(4, labels, *shape, generator=generator, requires_grad=True),
        reconstruction=torch.rand(4, 1, *shape, generator=generator, requires_grad=True),
    )


def reference_segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """CE + soft Dice of one case with a full one-hot: logits (L, *S), target (*S)."""
    probabilities = logits.softmax(0)
    truth = F.one_hot(target.long(), len(logits)).movedim(-1, 0).to(logits)
    axes = tuple(range(1, logits.dim()))
    dice = (2 * (probabilities * truth).sum(axes) + 1e-5) / (probabilities.sum(axes) + truth.sum(axes) + 1e-5)
    return F.cross_entropy(logits[None], target[None].long()) + (1 - dice).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_classification_is_torchs_cross_entropy_on_present_cases(smoothing: float, weighted: bool) -> None:
    batch = make_batch()
    outputs = make_outputs(batch)
    assert outputs.classes is not None
    weights = torch.tensor([0.5, 2.0, 1.0]) if weighted else None
    task = ClassificationTask(ClassificationSpec(label_smoothing=smoothing), weights)
    losses = task.losses(outputs, batch)
    expected = F.cross_entropy(
        outputs.classes[PRESENT],
        batch.label[PRESENT],
        weight=weights,
        label_smoothing=smoothing,
        reduction="none",
    )
    torch.testing.assert_close(losses.values[PRESENT], expected)


def test_balanced_weights_average_to_one_over_the_cases_and_give_each_class_the_same_say() -> None:
    counts = [90, 10, 0, 25]
    weights = balanced_class_weights(counts)
    cases = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    assert weights[cases].mean().item() == pytest.approx(1)
    shares = (weights * torch.tensor(counts))[[0, 1, 3]]
    torch.testing.assert_close(shares, torch.full((3,), 125 / 3))
    assert torch.equal(balanced_class_weights([0, 0]), torch.ones(2))


@pytest.mark.parametrize("shape", [(9, 7), (5, 6, 4)])
@pytest.mark.parametrize("target", ["mask", "structures"])
def test_segmentation_of_a_batch_is_each_case_alone(shape: tuple[int, ...], target: str) -> None:
    labels = 2 if target == "mask" else 5
    batch = make_batch(shape, labels)
    outputs = make_outputs(batch, labels)
    assert outputs.segmentation is not None
    truth = batch.mask if target == "mask" else batch.structures
    task = SegmentationTask(SegmentationSpec.model_validate({"target": target}))
    losses = task.losses(outputs, batch)
    expected = torch.stack([reference_segmentation_loss(outputs.segmentation[i], truth[i]) for i in (0, 2)])
    torch.testing.assert_close(losses.values[PRESENT], expected)
    (gradient,) = torch.autograd.grad(mean(losses), outputs.segmentation, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected.mean(), outputs.segmentation)
    torch.testing.assert_close(gradient, expected_gradient)


def test_segmentation_weighs_its_two_terms() -> None:
    batch = make_batch()
    outputs = make_outputs(batch)
    losses = SegmentationTask(SegmentationSpec(cross_entropy=0.4, dice=0.6)).losses(outputs, batch)
    each = [
        SegmentationTask(SegmentationSpec(cross_entropy=entropy, dice=1 - entropy)).losses(outputs, batch)
        for entropy in (1, 0)
    ]
    torch.testing.assert_close(losses.values, 0.4 * each[0].values + 0.6 * each[1].values)


def test_segmentation_loss_is_the_published_number() -> None:
    golden = load_file(GOLDEN / "masc_losses.safetensors")
    logits, target = golden["logits"], golden["propagated"][:, 0]
    other_logits, other_target = logits.flip(1), target.flip(2)
    everywhere = torch.ones(2, dtype=torch.bool)
    batch = Batch(
        case_ids=("golden", "other"),
        image=torch.zeros(2, 1, 16, 16, 16),
        label=torch.zeros(2, dtype=torch.int64),
        has_label=~everywhere,
        mask=torch.zeros(2, 16, 16, 16, dtype=torch.uint8),
        has_mask=~everywhere,
        structures=torch.cat([target, other_target]).to(torch.uint8),
        has_structures=everywhere,
    )
    outputs = Outputs(segmentation=torch.cat([logits, other_logits]))
    losses = SegmentationTask(SegmentationSpec(target="structures")).losses(outputs, batch)
    assert losses.values[0].item() == pytest.approx(golden["multi_class_loss"].item(), abs=1e-5)
    assert losses.values[0].item() == pytest.approx(4.9022, abs=5e-5)
    other = reference_segmentation_loss(other_logits[0], other_target[0]).item()
    assert mean(losses).item() == pytest.approx((4.9021735 + other) / 2, abs=1e-5)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_reconstruction_is_against_the_image_of_every_case(loss: str) -> None:
    batch = make_batch()
    outputs = make_outputs(batch)
    assert outputs.reconstruction is not None
    losses = ReconstructionTask(ReconstructionSpec.model_validate({"loss": loss})).losses(outputs, batch)
    reference = F.mse_loss if loss == "mse" else F.l1_loss
    assert losses.present.all()
    for i in range(4):
        torch.testing.assert_close(losses.values[i], reference(outputs.reconstruction[i], batch.image[i]))


TASKS: list[Task] = [
    ClassificationTask(ClassificationSpec(label_smoothing=0.1), torch.tensor([1.0, 2.0, 3.0])),
    SegmentationTask(SegmentationSpec()),
    SegmentationTask(SegmentationSpec(target="structures")),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("any_present", [True, False])
def test_an_absent_target_is_never_looked_at(task: Task, any_present: bool) -> None:
    batch = make_batch()
    present = PRESENT & any_present
    garbage = replace(
        batch,
        label=batch.label.where(present, -(2**60)),
        mask=batch.mask.where(present[:, None, None], 255),
        structures=batch.structures.where(present[:, None, None], 255),
        has_label=present,
        has_mask=present,
        has_structures=present,
    )
    outputs = make_outputs(batch)
    losses = task.losses(outputs, garbage)
    assert torch.equal(losses.present, present)
    assert torch.equal(losses.values[~present], torch.zeros(int((~present).sum())))
    assert losses.values.isfinite().all()
    mean(losses).backward()
    gradients = [output.grad for output in (outputs.classes, outputs.segmentation) if output is not None]
    gradients = [gradient for gradient in gradients if gradient is not None]
    assert len(gradients) == 1
    assert torch.equal(gradients[0][~present], torch.zeros_like(gradients[0][~present]))
    assert bool((gradients[0][present] != 0).any()) == any_present
    if not any_present:
        assert mean(losses).item() == 0


def test_bf16_outputs_are_summed_in_float32() -> None:
    batch = make_batch((64, 64))
    exact = make_outputs(batch)
    assert exact.segmentation is not None
    rounded = exact.segmentation.detach().bfloat16()
    task = SegmentationTask(SegmentationSpec())
    half = task.losses(Outputs(segmentation=rounded), batch).values
    full = task.losses(Outputs(segmentation=rounded.float()), batch).values
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_certain_and_wrong_logits_stay_finite() -> None:
    batch = make_batch()
    logits = torch.tensor([1e4, -1e4])[None, :, None, None].expand(4, 2, 9, 7).clone().requires_grad_()
    loss = mean(SegmentationTask(SegmentationSpec()).losses(Outputs(segmentation=logits), batch))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("task", [*TASKS, ReconstructionTask(ReconstructionSpec())], ids=lambda t: t.name)
def test_a_network_without_the_head_is_refused_by_name(task: Task) -> None:
    with pytest.raises(ValueError, match=f"the {task.name} task needs a network with a head"):
        task.losses(Outputs(), make_batch())
