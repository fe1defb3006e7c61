"""The variants of the paper: what each computes, holds and costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import MaskSpec
from threefold.errors import ExperimentError, WeightsError
from threefold.experiment import Experiment, JointSwinSpec, SwinSpec, SwinUnetSpec
from threefold.networks.joint import JointSwin
from threefold.networks.swin import SwinEncoder
from threefold.networks.swin_unet import SwinUnet
from threefold.tasks.build import build_network

from .named_heads import named_heads, parts_of

SMALL = SwinSpec(embed_dim=12, depths=(2, 2), heads=(2, 3), window=4)


def _swin_unet(
    classes: int | None = 2, labels: int | None = 2, reconstruct: bool = True, spec: SwinSpec = SMALL
) -> SwinUnet:
    heads = named_heads(classes=classes, labels=labels, restored=1 if reconstruct else None)
    return SwinUnet(SwinUnetSpec(encoder=spec), in_channels=1, heads=heads)


def _flops(network: torch.nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.double().eval()(torch.zeros(1, 1, 64, 64).double())
    return counter.get_total_flops()


@pytest.mark.parametrize("size", [(64, 64), (50, 33)])
def test_outputs_are_on_the_images_grid(size: tuple[int, int]) -> None:
    outputs = _swin_unet(classes=3, labels=5)(torch.randn(2, 1, *size))
    assert outputs.heads["classification"].shape == (2, 3)
    assert outputs.heads["segmentation"].shape == (2, 5, *size)
    assert outputs.heads["reconstruction"].shape == (2, 1, *size)
    assert outputs.features.shape == (2, 24)


@pytest.mark.parametrize(
    ("classes", "labels", "reconstruct"),
    [(2, None, False), (2, 2, False), (2, None, True), (2, 2, True), (None, 2, False)],
)
def test_a_task_that_is_left_out_costs_nothing(
    classes: int | None, labels: int | None, reconstruct: bool
) -> None:
    network = _swin_unet(classes, labels, reconstruct)
    outputs = network(torch.randn(1, 1, 64, 64))
    asked = {
        name
        for name, there in (
            ("classification", classes is not None),
            ("segmentation", labels is not None),
            ("reconstruction", reconstruct),
        )
        if there
    }
    assert set(outputs.heads) == asked
    weights = [name for name, _ in network.named_parameters()]
    assert parts_of(weights) == {"encoder"} | {f"heads.{name}" for name in asked}


def test_decoders_double_nothing_but_themselves() -> None:
    encoder, one, two = (
        _flops(_swin_unet(labels=labels, reconstruct=reconstruct))
        for labels, reconstruct in ((None, False), (2, False), (2, True))
    )
    assert encoder < one < two
    assert two - one == pytest.approx(one - encoder, rel=0.05)  # the same decoder but for its head


def test_the_decoders_share_no_weights() -> None:
    network = _swin_unet()
    outputs = network(torch.randn(1, 1, 64, 64))
    outputs.heads["segmentation"].sum().backward()
    assert all(parameter.grad is None for parameter in network.heads["reconstruction"].parameters())
    assert all(parameter.grad is not None for parameter in network.heads["segmentation"].parameters())


@pytest.mark.parametrize(
    ("size", "encoder", "whole"), [("public", 20_413_386, 27_168_228), ("mini", 1_299_330, 1_731_924)]
)
def test_parameter_counts_of_the_published_sizes(size: str, encoder: int, whole: int) -> None:
    """Counted with the published code: 3 channels, 2 labels."""
    spec = SwinUnetSpec(encoder=SwinSpec.model_validate({"size": size}))
    with torch.device("meta"):
        network = SwinUnet(spec, in_channels=3, heads=named_heads(labels=2))
    assert sum(p.numel() for p in network.parameters()) == whole
    assert sum(p.numel() for p in network.encoder.parameters()) == encoder


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
def test_compiling_takes_the_whole_network_in_one_graph() -> None:
    network = _swin_unet(spec=SMALL.model_copy(update={"drop_path": 0.0}))
    image = torch.randn(2, 1, 40, 36)
    results = []
    for run in (network, torch.compile(network, backend="eager", fullgraph=True)):
        network.zero_grad()
        outputs = run(image)
        (outputs.heads["segmentation"].square().sum() + outputs.heads["classification"].sum()).backward()
        results.append((outputs.heads["segmentation"], network.encoder.patch_embed.proj.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_joint_concatenates_a_frozen_and_an_own_encoder() -> None:
    spec = JointSwinSpec(encoder=SMALL.model_copy(update={"drop_path": 0.9}))
    trained = _swin_unet(spec=SMALL)
    joint = JointSwin(spec, in_channels=1, heads=named_heads(classes=2))
    joint.adopt(trained)
    joint.train()
    image = torch.randn(6, 1, 32, 32)
    outputs = joint(image)
    expected = trained.encoder.eval()(image).pooled
    torch.testing.assert_close(outputs.features[:, :24], expected)  # no stochastic depth, though training
    assert outputs.features.shape == (6, 48)
    assert outputs.heads["classification"].shape == (6, 2)
    outputs.heads["classification"].sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in joint.frozen.parameters())
    assert all(p.grad is not None for p in joint.encoder.parameters())


def test_joint_adopts_a_state_dict_and_refuses_another_size() -> None:
    joint = JointSwin(JointSwinSpec(encoder=SMALL), in_channels=1, heads=named_heads(classes=2))
    weights = SwinEncoder(SMALL, 1).state_dict()
    joint.adopt(weights)
    torch.testing.assert_close(joint.frozen.state_dict(), weights)
    with pytest.raises(WeightsError, match="does not fit"):
        joint.adopt(SwinEncoder(SMALL, 3).state_dict())


def _cohort(**changes: object) -> CohortSpec:
    fields = {"name": "c", "modality": "ct", "dimensions": 2, "classes": ("no", "yes"), "mask": MaskSpec()}
    return CohortSpec.model_validate({**fields, **changes})


def _experiment(tasks: dict[str, object], **changes: object) -> Experiment:
    network = {"kind": "swin-unet", "encoder": SMALL.model_dump()}
    return Experiment.model_validate({"name": "e", "tasks": tasks, "network": network, **changes})


def test_build_takes_the_tasks_of_the_experiment_and_the_names_of_the_cohort() -> None:
    tasks: dict[str, object] = {"classification": {}, "segmentation": {"target": "structures"}}
    cohort = _cohort(classes=("a", "b", "c"), structures=("x", "y"))
    windows = {"preprocessing": {"windows": ["brain", "subdural", "bone"]}}
    network = build_network(_experiment(tasks, data=windows), cohort)
    outputs = network(torch.randn(1, 3, 32, 32))
    assert outputs.heads["classification"].shape == (1, 3)
    assert outputs.heads["segmentation"].shape == (1, 3, 32, 32)
    assert "reconstruction" not in outputs.heads
    with_mask = build_network(_experiment({"segmentation": {}, "reconstruction": {}}), _cohort())
    outputs = with_mask(torch.randn(1, 1, 32, 32))
    assert "classification" not in outputs.heads
    assert outputs.heads["segmentation"].shape == (1, 2, 32, 32)
    assert outputs.heads["reconstruction"].shape == (1, 1, 32, 32)


def test_build_joint() -> None:
    network = {"kind": "joint-swin", "encoder": SMALL.model_dump()}
    experiment = _experiment({"classification": {}}, network=network, before="mtl-seg")
    assert isinstance(build_network(experiment, _cohort()), JointSwin)


@pytest.mark.parametrize(
    ("tasks", "changes", "message"),
    [
        ({"classification": {}}, {"classes": ()}, "names 0 classes"),
        ({"segmentation": {}}, {"mask": None}, "has none"),
        ({"segmentation": {"target": "structures"}}, {}, "names none"),
    ],
)
def test_build_says_what_the_cohort_lacks(
    tasks: dict[str, object], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        build_network(_experiment(tasks), _cohort(**changes))
