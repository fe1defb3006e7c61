"""Sums of a softmax over the labels: values and gradients against the plain formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from threefold.cohorts.cohort import CohortSpec
from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs
from threefold.core.targets import MaskSpec
from threefold.experiment import Experiment
from threefold.tasks import label_sums
from threefold.tasks.build import build_tasks
from threefold.tasks.label_sums import LabelSums, softmax_sums

from .makers import batch_of, case_losses, names, region, segmentation

FIELDS = ("cross_entropy", "overlap", "size")


def plain(probabilities: Tensor, labels: Tensor) -> LabelSums:
    """Return the sums by one-hot tensors: (B, L, *S) and (B, *S)."""
    truth = F.one_hot(labels.long(), probabilities.shape[1]).movedim(-1, 1).to(probabilities)
    entropy = -(truth * probabilities.log()).sum(1).flatten(1).mean(1)
    overlap, size, true = (value.flatten(2).sum(2) for value in (truth * probabilities, probabilities, truth))
    return LabelSums(entropy, overlap, size, true)


def binary(probabilities: Tensor) -> Tensor:
    return torch.stack([probabilities[:, 0], probabilities[:, 1:].sum(1)], dim=1)


def example(
    seed: int, cases: int = 2, labels: int = 4, shape: tuple[int, ...] = (3, 4, 5), spread: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(cases, labels, *shape, generator=generator, dtype=torch.float64) * spread
    truth = torch.randint(labels, (cases, *shape), generator=generator, dtype=torch.uint8)
    inside = torch.randint(2, (cases, *shape), generator=generator, dtype=torch.uint8)
    return logits.requires_grad_(), truth, inside


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 1000),
    cases=st.integers(1, 3),
    labels=st.integers(2, 6),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    spread=st.sampled_from([0.1, 3.0, 20.0]),
)
def test_sums_and_gradients_are_those_of_the_plain_formula(
    seed: int, cases: int, labels: int, shape: list[int], spread: float
) -> None:
    logits, truth, inside = example(seed, cases, labels, tuple(shape), spread)
    found = softmax_sums(logits, truth, inside)
    probabilities = logits.softmax(1)
    expected = plain(probabilities, truth), plain(binary(probabilities), inside)
    generator = torch.Generator().manual_seed(seed)
    values, plain_values = logits.new_zeros(()), logits.new_zeros(())
    for own, reference in zip(found, expected, strict=True):
        assert own is not None
        assert torch.equal(own.true_size, reference.true_size)
        torch.testing.assert_close(own.dice_loss(), reference.dice_loss())
        for field in FIELDS:
            a, b = getattr(own, field), getattr(reference, field)
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            weight = torch.randn(a.shape, generator=generator, dtype=torch.float64)
            values, plain_values = values + (weight * a).sum(), plain_values + (weight * b).sum()
    (gradient,) = torch.autograd.grad(values, logits)
    (reference_gradient,) = torch.autograd.grad(plain_values, logits)
    torch.testing.assert_close(gradient, reference_gradient, rtol=1e-8, atol=1e-10)


def test_the_analytic_gradient_is_that_of_finite_differences() -> None:
    logits, truth, inside = example(0)

    def sums(logits: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            getattr(part, field)
            for part in softmax_sums(logits, truth, inside)
            if part is not None
            for field in FIELDS
        )

    assert torch.autograd.gradcheck(sums, (logits,))
    assert torch.autograd.gradcheck(lambda z: softmax_sums(z, truth)[0].dice_loss(), (logits,))


def test_the_parts_of_the_volume_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, truth, inside = example(1, shape=(7, 6, 5))
    whole = softmax_sums(logits, truth, inside)[0].dice_loss().sum()
    (gradient,) = torch.autograd.grad(whole, logits)
    monkeypatch.setattr(label_sums, "_PART", 11)
    parts = softmax_sums(logits, truth, inside)[0].dice_loss().sum()
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, logits)[0], gradient)


def test_any_memory_layout_gives_the_same() -> None:
    logits, truth, inside = example(2)
    last = logits.detach().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    for task in (0, 1):
        losses = [softmax_sums(z, truth, inside)[task] for z in (logits, last)]
        first, second = (loss.dice_loss() + loss.cross_entropy for loss in losses if loss is not None)
        torch.testing.assert_close(first, second)
        gradients = [torch.autograd.grad(loss.sum(), z)[0] for loss, z in ((first, logits), (second, last))]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("sure", [50.0, 120.0, 1e4])
def test_a_network_that_is_sure_and_wrong_still_learns(sure: float) -> None:
    # In float32 the foreground's probability itself is 0 here, and log(0) would have no gradient.
    logits = torch.zeros(1, 3, 4)
    logits[:, 0], logits[:, 1] = sure, 1.0
    logits.requires_grad_()
    truth = torch.full((1, 4), 2, dtype=torch.uint8)
    of_labels, of_region = softmax_sums(logits, truth, torch.ones_like(truth))
    assert of_region is not None
    share = torch.tensor([1.0, 0.0]).softmax(0)  # of the structures, given the foreground
    assert of_labels.cross_entropy.item() == pytest.approx(sure, rel=1e-6)
    assert of_region.cross_entropy.item() == pytest.approx(sure - float(torch.tensor(1.0).exp().add(1).log()))
    (gradient,) = torch.autograd.grad(of_region.cross_entropy.sum(), logits, retain_graph=True)
    torch.testing.assert_close(gradient[0, :, 0] * 4, torch.cat([torch.ones(1), -share]))
    (gradient,) = torch.autograd.grad(of_labels.cross_entropy.sum(), logits)
    torch.testing.assert_close(gradient[0, :, 0] * 4, torch.tensor([1.0, 0.0, -1.0]))


def test_a_label_that_the_head_does_not_know_is_refused() -> None:
    logits, truth, _ = example(3)
    truth[1, 0, 0, 0] = 9
    with pytest.raises(IndexError, match="labels go up to 9, but the head has 4 outputs"):
        softmax_sums(logits, truth)


def make_batch(truth: Tensor, inside: Tensor) -> Batch:
    here = torch.tensor([True, False])
    targets = {"structures": Target(truth, here), "mask": Target(inside, ~here)}
    return batch_of(torch.zeros(2, 1, *truth.shape[1:]), **targets)


def test_two_tasks_share_one_pass_and_are_what_they_are_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment.model_validate(
        {
            "name": "both",
            "network": {"kind": "attention-unet"},
            "tasks": {"segmentation": {"target": "structures"}, "region": {"cross_entropy": 0.5}},
        }
    )
    cohort = CohortSpec(name="c", modality="mri", dimensions=3, mask=MaskSpec(), structures=names(3))
    shared = build_tasks(experiment, cohort)
    alone = segmentation(4, target="structures"), region(cross_entropy=0.5)
    passes = []
    real = label_sums.softmax_sums
    monkeypatch.setattr(label_sums, "softmax_sums", lambda *given: passes.append(0) or real(*given))
    for seed in (4, 5):
        logits, truth, inside = example(seed)
        logits = logits.float().detach().requires_grad_()
        outputs, batch = Outputs({"segmentation": logits}), make_batch(truth, inside)
        gradients = []
        for number, tasks in enumerate((shared, alone), start=1):
            passes.clear()
            losses = [case_losses(task, outputs, batch) for task in tasks]
            assert len(passes) == number
            assert [task.present(batch).tolist() for task in tasks] == [[True, False], [False, True]]
            total = losses[0].sum() + 3 * losses[1].sum()
            gradients.append(torch.autograd.grad(total, logits)[0])
        torch.testing.assert_close(*gradients)
        assert gradients[0][0].abs().sum() > 0
        assert gradients[0][1].abs().sum() > 0


def test_shared_sums_are_never_those_of_something_else() -> None:
    logits, truth, inside = example(6)
    sums = label_sums.SharedSums("segmentation", "structures", "mask")
    outputs, batch = Outputs({"segmentation": logits}), make_batch(truth, inside)
    with torch.no_grad():
        first = sums.of(outputs, batch)
    assert sums.of(outputs, batch)[0].overlap.requires_grad  # not the one without a gradient
    other = sums.of(outputs, make_batch(truth.flip(1), inside))
    assert not torch.equal(other[0].overlap, first[0].overlap)
    again = sums.of(outputs, batch)
    assert sums.of(outputs, batch) is again
    assert sums.of(outputs, batch) is not again  # a graph is given away once to each
