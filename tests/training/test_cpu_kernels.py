"""Training and predicting take the CPU's fast paths, and the plain network where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from threefold.cohorts.cohort import Cohort
from threefold.networks import swin
from threefold.networks.cpu import processor
from threefold.training.run import train

from .conftest import MakeExperiment


@pytest.mark.skipif(
    not processor.computes(torch.float32), reason="the fast paths need oneDNN, which this PyTorch lacks"
)
@pytest.mark.parametrize("asked", ["1", "0"])
def test_a_run_takes_the_way_that_is_asked_for(
    asked: str,
    cohort: Cohort,
    make_experiment: MakeExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[bool] = []  # of plain blocks, whether with gradients
    block = swin.SwinBlock.forward

    def spied(self: swin.SwinBlock, tokens: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return block(self, tokens)

    monkeypatch.setattr(swin.SwinBlock, "forward", spied)
    monkeypatch.setenv("THREEFOLD_CPU_KERNELS", asked)
    run = train(make_experiment(epochs=1), cohort, tmp_path / "run")
    assert run.predictions.is_file()
    assert set(calls) == ({True, False} if asked == "0" else set())
