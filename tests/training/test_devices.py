"""How processes start: one needs nothing, several devices or nodes are joined."""

from __future__ import annotations

import pytest
from lightning.fabric.strategies.ddp import DDPStrategy

from threefold.experiment import TrainingSpec
from threefold.training.devices import OneDevice, is_leader, make_devices


def test_one_device_of_one_node_needs_no_other_process() -> None:
    assert isinstance(make_devices(TrainingSpec()), OneDevice)


@pytest.mark.parametrize(("devices", "nodes"), [(2, 1), (1, 2), (2, 3)])
def test_devices_and_nodes_are_joined(devices: int, nodes: int) -> None:
    strategy = make_devices(TrainingSpec(devices=devices, nodes=nodes)).strategy  # type: ignore[attr-defined]
    assert isinstance(strategy, DDPStrategy)
    assert (strategy.num_processes, strategy.num_nodes) == (devices, nodes)


def test_one_process_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_leader()
    monkeypatch.setenv("NODE_RANK", "1")
    assert not is_leader()
