"""Numbers: losses in standard deviations, the head's unit, metrics; against torch and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from threefold.core.batch import Batch, Target
from threefold.core.outputs import Outputs

from .makers import batch_of, case_losses, regression

TRAINING = [270.0, 275.0, 290.0, 285.0]
KNOWN = torch.tensor([True, True, False, True, True])
REFERENCES = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}


def example() -> tuple[Outputs, Batch]:
    ages = torch.tensor([271.0, 288.0, 0.0, 279.5, 283.0])
    predicted = torch.tensor([[273.0], [262.0], [280.0], [279.0], [291.0]], requires_grad=True)
    return Outputs({"regression": predicted}), batch_of(torch.zeros(5, 1, 2, 2), age=Target(ages, KNOWN))


@pytest.mark.parametrize("loss", REFERENCES)
def test_the_loss_is_torchs_in_standard_deviations_of_the_training_cases(loss: str) -> None:
    outputs, batch = example()
    predicted, truth = outputs.heads["regression"], batch.targets["age"].values
    found = case_losses(regression(TRAINING, loss=loss), outputs, batch)
    spread = float(np.std(TRAINING))
    expected = REFERENCES[loss](predicted[:, 0] / spread, truth / spread, reduction="none")
    expected = expected.where(KNOWN, 0.0)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), predicted)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), predicted)[0])
    assert torch.equal(gradient[:, 0] != 0, KNOWN)


def test_the_loss_does_not_depend_on_the_unit() -> None:
    outputs, batch = example()
    weeks = Outputs({"regression": outputs.heads["regression"] / 7})
    age = batch.targets["age"]
    in_weeks = batch_of(batch.image, age=Target(age.values / 7, age.present))
    torch.testing.assert_close(
        case_losses(regression([value / 7 for value in TRAINING]), weeks, in_weeks),
        case_losses(regression(TRAINING), outputs, batch),
    )


@pytest.mark.parametrize(
    ("values", "unit"),
    [(TRAINING, (280.0, math.sqrt(62.5))), ([5.0, 5.0], (5.0, 1.0)), ([], (0.0, 1.0))],
)
def test_the_heads_unit_is_of_the_training_cases(values: list[float], unit: tuple[float, float]) -> None:
    head = regression(values).head
    assert (head.kind, head.outputs, head.unit) == ("pooled", 1, pytest.approx(unit))


def test_metrics_are_scikit_learns_in_the_targets_unit() -> None:
    outputs, batch = example()
    task = regression(TRAINING)
    records = [record for record, there in zip(task.record(outputs, batch), KNOWN, strict=True) if there]
    truth = batch.targets["age"].values[KNOWN].numpy()
    predicted = outputs.heads["regression"].detach()[KNOWN, 0].numpy()
    assert task.measure(records) == {
        "mae": pytest.approx(mean_absolute_error(truth, predicted)),
        "rmse": pytest.approx(root_mean_squared_error(truth, predicted)),
        "r2": pytest.approx(r2_score(truth, predicted)),
    }
    assert set(task.metrics) == {"mae", "rmse", "r2"}


def test_metrics_that_cannot_be_estimated() -> None:
    task = regression()
    assert all(math.isnan(value) for value in task.measure([]).values())
    same = task.measure([(3.0, 2.0), (3.0, 5.0)])
    assert (same["mae"], same["rmse"]) == pytest.approx((1.5, math.sqrt(2.5)))
    assert math.isnan(same["r2"])


def test_what_a_table_says_of_a_case() -> None:
    task = regression(TRAINING)
    answer = task.answer(torch.tensor([[281.25]]))
    assert answer.dtype == torch.float64
    assert task.columns(answer[0].numpy(), 279.0) == {"truth": 279.0, "predicted": 281.25}
    assert math.isnan(task.columns(answer[0].numpy(), None)["truth"])
