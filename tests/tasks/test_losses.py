"""Per-case losses, against torch's own and the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs
from threefold.tasks.classification import balanced_class_weights
from threefold.tasks.task import Task

from .makers import (
    batch_of,
    case_losses,
    classification,
    everywhere,
    multilabel,
    reconstruction,
    regression,
    segmentation,
)

GOLDEN = Path(__file__).parents[1] / "golden"
PRESENT = torch.tensor([True, False, True, False])
PARTLY = torch.tensor([[True, False, True], [False] * 3, [False, True, False], [False] * 3])
"""Findings that are known of the cases that are present."""


def mean(task: Task, outputs: Outputs, batch: Batch) -> Tensor:
    """Mean over the cases that carry the target."""
    return case_losses(task, outputs, batch).sum() / task.present(batch).sum().clamp(min=1)


def make_batch(shape: tuple[int, ...] = (9, 7), labels: int = 2, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(4, 1, *shape, generator=generator)
    label = torch.randint(classes, (4,), generator=generator)
    mask = torch.randint(2, (4, *shape), generator=generator, dtype=torch.uint8)
    structures = torch.randint(labels, (4, *shape), generator=generator, dtype=torch.uint8)
    findings = torch.randint(2, (4, 3), generator=generator).float()
    age = 280 + 9 * torch.randn(4, generator=generator)
    return batch_of(
        image,
        label=Target(label, PRESENT),
        mask=Target(mask, PRESENT),
        structures=Target(structures, PRESENT),
        findings=Target(findings, PARTLY),
        age=Target(age, PRESENT),
    )


def make_outputs(batch: Batch, labels: int = 2, classes: int = 3) -> Outputs:
    generator = torch.Generator().manual_seed(4)
    shape = batch.image.shape[2:]
    heads = {
        "classification": torch.randn(4, classes, generator=generator),
        "segmentation": torch.randn(4, labels, *shape, generator=generator),
        "reconstruction": torch.rand(4, 1, *shape, generator=generator),
        "multilabel": torch.randn(4, 3, generator=generator),
        "regression": 280 + 9 * torch.randn(4, 1, generator=generator),
    }
    return Outputs({name: head.requires_grad_() for name, head in heads.items()})


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
    # n / 3 n_k, of 8, 3 and 1 training cases.
    weights = torch.tensor([0.5, 4 / 3, 4.0]) if weighted else None
    options = {"values": [0] * 8 + [1] * 3 + [2], "class_weights": "balanced"} if weighted else {}
    task = classification(label_smoothing=smoothing, **options)
    losses = case_losses(task, outputs, batch)
    expected = F.cross_entropy(
        outputs.heads["classification"][PRESENT],
        batch.targets["label"].values[PRESENT],
        weight=weights,
        label_smoothing=smoothing,
        reduction="none",
    )
    torch.testing.assert_close(losses[PRESENT], expected)


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
    logits, truth = outputs.heads["segmentation"], batch.targets[target].values
    task = segmentation(labels, target=target)
    losses = case_losses(task, outputs, batch)
    expected = torch.stack([reference_segmentation_loss(logits[i], truth[i]) for i in (0, 2)])
    torch.testing.assert_close(losses[PRESENT], expected)
    (gradient,) = torch.autograd.grad(mean(task, outputs, batch), logits)
    (expected_gradient,) = torch.autograd.grad(expected.mean(), logits)
    torch.testing.assert_close(gradient, expected_gradient)


def reference_dice(logits: Tensor, target: Tensor) -> Tensor:
    """Dice loss over the foreground labels that (B, *S) targets have, of (B, L, *S) logits."""
    probabilities, found = logits.softmax(1), []
    for label in range(1, logits.shape[1]):
        truth = (target == label).float()
        if truth.any():
            p = probabilities[:, label]
            found.append(1 - (2 * (p * truth).sum() + 1e-5) / (p.sum() + truth.sum() + 1e-5))
    return torch.stack(found).mean() if found else torch.zeros(())


def test_dice_is_of_each_foreground_or_of_the_whole_batch_where_asked() -> None:
    batch = make_batch(labels=4)
    truth = batch.targets["structures"].values
    truth[2] = 0  # of the present cases 0 and 2, one has no foreground
    truth[0][truth[0] == 3] = 0  # and nobody has label 3
    outputs = make_outputs(batch, 4)
    logits = outputs.heads["segmentation"]
    each = segmentation(4, target="structures", cross_entropy=0, dice_over="foreground")
    losses = case_losses(each, outputs, batch)
    torch.testing.assert_close(losses, torch.stack([reference_dice(logits[:1], truth[:1]), *torch.zeros(3)]))
    whole = segmentation(4, target="structures", cross_entropy=0, dice_over="batch")
    expected = reference_dice(logits[[0, 2]], truth[[0, 2]])
    torch.testing.assert_close(case_losses(whole, outputs, batch), expected * PRESENT)
    (gradient,) = torch.autograd.grad(mean(whole, outputs, batch), logits, retain_graph=True)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0])


def test_segmentation_weighs_its_two_terms() -> None:
    batch = make_batch()
    outputs = make_outputs(batch)
    losses, entropy, dice = (
        case_losses(segmentation(cross_entropy=share, dice=1 - share), outputs, batch)
        for share in (0.4, 1, 0)
    )
    torch.testing.assert_close(losses, 0.4 * entropy + 0.6 * dice)


def test_segmentation_loss_is_the_published_number() -> None:
    golden = load_file(GOLDEN / "masc_losses.safetensors")
    logits, target = golden["logits"], golden["propagated"][:, 0]
    other_logits, other_target = logits.flip(1), target.flip(2)
    structures = torch.cat([target, other_target]).to(torch.uint8)
    batch = batch_of(torch.zeros(2, 1, 16, 16, 16), structures=everywhere(structures))
    outputs = Outputs({"segmentation": torch.cat([logits, other_logits])})
    task = segmentation(logits.shape[1], target="structures")
    losses = case_losses(task, outputs, batch)
    assert losses[0].item() == pytest.approx(golden["multi_class_loss"].item(), abs=1e-5)
    assert losses[0].item() == pytest.approx(4.9022, abs=5e-5)
    other = reference_segmentation_loss(other_logits[0], other_target[0]).item()
    assert mean(task, outputs, batch).item() == pytest.approx((4.9021735 + other) / 2, abs=1e-5)


@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_reconstruction_is_against_the_image_of_every_case(loss: str) -> None:
    batch = make_batch()
    outputs = make_outputs(batch)
    task = reconstruction(loss=loss)
    losses = case_losses(task, outputs, batch)
    reference = F.mse_loss if loss == "mse" else F.l1_loss
    assert task.present(batch).all()
    for i in range(4):
        restored = outputs.heads["reconstruction"][i]
        torch.testing.assert_close(losses[i], reference(restored, batch.image[i]))


TASKS: list[Task] = [
    classification(3, [0, 0, 1, 2], label_smoothing=0.1, class_weights="balanced"),
    segmentation(),
    segmentation(target="structures"),
    multilabel(3, [(True, False, None), (False, True, True)], class_weights="balanced"),
    regression([270.0, 290.0], loss="l2"),
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize("any_present", [True, False])
def test_an_absent_target_is_never_looked_at(task: Task, any_present: bool) -> None:
    batch = make_batch()
    assert task.target is not None
    of = batch.targets[task.target]
    known = of.present & any_present
    rubbish = {torch.int64: -(2**60), torch.uint8: 255, torch.float32: 1e6}[of.values.dtype]
    absent = known if known.ndim == of.values.ndim else known.view(4, *[1] * (of.values.ndim - 1))
    values = of.values.where(absent, torch.tensor(rubbish, dtype=of.values.dtype))
    garbage = batch_of(batch.image, **{task.target: Target(values, known)})
    outputs, present = make_outputs(batch), PRESENT & any_present
    assert torch.equal(task.present(garbage), present)
    assert task.losses(outputs, garbage).isfinite().all()
    losses = case_losses(task, outputs, garbage)
    assert torch.equal(losses, case_losses(task, outputs, batch).where(present, 0.0))
    assert torch.equal(losses[~present], torch.zeros(int((~present).sum())))
    mean(task, outputs, garbage).backward()
    gradients = [head.grad for head in outputs.heads.values() if head.grad is not None]
    assert len(gradients) == 1
    assert torch.equal(gradients[0][~present], torch.zeros_like(gradients[0][~present]))
    assert bool((gradients[0][present] != 0).any()) == any_present
    if not any_present:
        assert mean(task, outputs, garbage).item() == 0


def test_bf16_outputs_are_summed_in_float32() -> None:
    batch = make_batch((64, 64))
    exact = make_outputs(batch)
    rounded = exact.heads["segmentation"].detach().bfloat16()
    half, full = (
        segmentation().losses(Outputs({"segmentation": logits}), batch)
        for logits in (rounded, rounded.float())
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_certain_and_wrong_logits_stay_finite() -> None:
    batch = make_batch()
    logits = torch.tensor([1e4, -1e4])[None, :, None, None].expand(4, 2, 9, 7).clone().requires_grad_()
    loss = mean(segmentation(), Outputs({"segmentation": logits}), batch)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("task", [*TASKS, reconstruction()], ids=lambda t: t.name)
def test_a_network_without_the_head_is_refused_by_name(task: Task) -> None:
    with pytest.raises(ValueError, match=f"the {task.name} task needs a network with a head"):
        task.losses(Outputs(), make_batch())
