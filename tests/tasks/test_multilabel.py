"""Findings: masked binary cross-entropy, balanced weights, and metrics, against torch and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from threefold.core.batch import Batch, Target
from threefold.core.outputs import Head, Outputs

from .makers import batch_of, case_losses, multilabel

CASES, FINDINGS = 8, 3
KNOWN = torch.ones(CASES, FINDINGS, dtype=torch.bool)
KNOWN[1, 0] = KNOWN[2, 1:] = KNOWN[5] = False


def example() -> tuple[Outputs, Batch]:
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]] * 2).float()
    logits = torch.randn(CASES, FINDINGS, generator=generator, requires_grad=True)
    batch = batch_of(torch.zeros(CASES, 1, 2, 2), findings=Target(values * KNOWN, KNOWN))
    return Outputs({"multilabel": logits}), batch


def reference(logits: Tensor, batch: Batch, weights: Tensor) -> Tensor:
    """Mean over the known findings of each case, one by one; weights (2, K) of absent and there."""
    truth = batch.targets["findings"].values
    losses = []
    for i in range(CASES):
        terms = [
            weights[int(truth[i, k]), k] * F.binary_cross_entropy_with_logits(logits[i, k], truth[i, k])
            for k in range(FINDINGS)
            if KNOWN[i, k]
        ]
        losses.append(torch.stack(terms).mean() if terms else torch.zeros(()))
    return torch.stack(losses)


def test_the_loss_is_the_mean_over_the_known_findings() -> None:
    outputs, batch = example()
    logits = outputs.heads["multilabel"]
    losses = case_losses(multilabel(), outputs, batch)
    expected = reference(logits, batch, torch.ones(2, FINDINGS))
    torch.testing.assert_close(losses, expected)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])
    assert torch.equal(gradient != 0, KNOWN)
    assert multilabel().present(batch).tolist() == [i != 5 for i in range(CASES)]
    assert multilabel().head == Head("pooled", FINDINGS)


def test_balanced_cases_with_a_finding_weigh_as_much_as_those_without() -> None:
    outputs, batch = example()
    # The first: 2 of 8; the second: 3 of 4, where the rest is not known; the third never occurs.
    training = [(i < 2, None if i > 3 else i > 0, False) for i in range(8)]
    task = multilabel(values=training, class_weights="balanced")
    weights = torch.tensor([[8 / 12, 4 / 2, 1.0], [8 / 4, 4 / 6, 1.0]])
    expected = reference(outputs.heads["multilabel"], batch, weights)
    torch.testing.assert_close(case_losses(task, outputs, batch), expected)
    for k, counts in enumerate([(6, 2), (1, 3)]):
        absent, there = (weights[side, k].item() * n for side, n in enumerate(counts))
        assert absent == pytest.approx(there)
        assert absent + there == pytest.approx(sum(counts))  # the mean weight is 1


def test_metrics_are_scikit_learns_means_over_the_findings() -> None:
    outputs, batch = example()
    task = multilabel()
    records = [
        record
        for record, there in zip(task.record(outputs, batch), task.present(batch), strict=True)
        if there
    ]
    found = task.measure(records)
    truth, scores = batch.targets["findings"].values.numpy(), outputs.heads["multilabel"].detach().numpy()
    known = KNOWN.numpy()
    for name, metric in (("auc", roc_auc_score), ("average_precision", average_precision_score)):
        each = [metric(truth[known[:, k], k], scores[known[:, k], k]) for k in range(FINDINGS)]
        assert found[name] == pytest.approx(np.mean(each))
    assert set(found) == set(task.metrics)


def test_a_finding_that_none_or_all_have_is_left_out_of_the_mean() -> None:
    records = [((1.0, 1.0, math.nan), (0.9, 0.1, 0.5)), ((0.0, 1.0, math.nan), (0.2, 0.3, 0.5))]
    assert multilabel().measure(records) == {"auc": 1.0, "average_precision": 1.0}
    for nothing in ([], [((1.0, 0.0, math.nan), (0.9, 0.1, 0.5))]):
        assert all(math.isnan(value) for value in multilabel().measure(nothing).values())


def test_what_a_table_says_of_a_case() -> None:
    task = multilabel()
    answer = task.answer(torch.tensor([[0.0, math.log(3), -math.log(3)]]))
    assert answer.dtype == torch.float64
    columns = task.columns(answer[0].numpy(), (True, None, False))
    truths = {name: value for name, value in columns.items() if name.startswith("truth_")}
    assert truths == {"truth_n0": 1, "truth_n1": "", "truth_n2": 0}
    found = {name: value for name, value in columns.items() if name not in truths}
    assert found == {
        "probability_n0": pytest.approx(0.5),
        "probability_n1": pytest.approx(0.75),
        "probability_n2": pytest.approx(0.25),
    }
    assert {task.columns(answer[0].numpy(), None)[f"truth_n{i}"] for i in range(3)} == {""}
