"""The cascade: what the classifier reads, where the gradient flows, building and loading its parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import MaskSpec
from threefold.errors import ExperimentError, RunError, WeightsError
from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec, Experiment, MaskShapeSpec
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.densenet import DenseNet
from threefold.networks.mask_shape import shape_features
from threefold.networks.pretrained import load_pretrained
from threefold.tasks.build import build_network

from .named_heads import named_heads

SEGMENTER = AttentionUnetSpec(channels=(4, 8), dropout=0.1)
CLASSIFIER = DenseNetSpec(blocks=(2, 2), growth=4, stem=8)
INPUTS = ("structures", "region", "image+structures", "image+region", "gated+structures", "gated+region")


def _spec(**changes: Any) -> CascadeSpec:
    return CascadeSpec(segmenter=SEGMENTER, classifier=CLASSIFIER, **changes)


def _cascade(labels: int = 5, classes: int = 3, **changes: Any) -> Cascade:
    torch.manual_seed(0)
    return Cascade(_spec(**changes), in_channels=1, heads=named_heads(labels=labels, classes=classes))


def _image(*size: int) -> Tensor:
    return torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("reads", INPUTS)
@pytest.mark.parametrize(("labels", "classes"), [(12, 3), (2, 2), (4, 7)])
def test_any_number_of_classes_and_structures(reads: str, labels: int, classes: int) -> None:
    network = _cascade(labels, classes, classifier_input=reads)
    outputs = network(_image(9, 16, 10))
    assert outputs.heads["segmentation"].shape == (2, labels, 9, 16, 10)
    assert outputs.heads["classification"].shape == (2, classes)
    assert outputs.features.shape == (2, network.classifier.features.width)


def test_the_classifier_reads_what_is_named() -> None:
    image, logits = _image(4, 4, 4), torch.randn(2, 5, 4, 4, 4)
    softmax = logits.exp() / logits.exp().sum(1, keepdim=True)
    region = torch.cat((softmax[:, :1], 1 - softmax[:, :1]), 1)
    expected = {
        "structures": softmax,
        "region": region,
        "image+structures": torch.cat((image, softmax), 1),
        "image+region": torch.cat((image, region), 1),
        "gated+structures": torch.cat((image * region[:, 1:], softmax), 1),
        "gated+region": torch.cat((image * region[:, 1:], region), 1),
    }
    for reads in INPUTS:
        torch.testing.assert_close(
            _cascade(classifier_input=reads).classifier_input(image, logits), expected[reads]
        )


def test_it_is_its_parts_one_after_the_other() -> None:
    network = _cascade().eval()
    image = _image(16, 16, 16)
    with torch.inference_mode():
        outputs = network(image)
        logits = network.segmenter(image).heads["segmentation"]
        classes = network.classifier(logits.softmax(1)).heads["classification"]
    torch.testing.assert_close(outputs.heads["segmentation"], logits)
    torch.testing.assert_close(outputs.heads["classification"], classes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reads", INPUTS)
def test_the_gradient_of_the_diagnosis_flows_into_the_segmenter(reads: str) -> None:
    network = _cascade(classifier_input=reads).train()
    network(_image(16, 16, 16)).heads["classification"].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias before a norm has no effect, so no gradient but for rounding.
        if not name.endswith("conv.bias"):
            assert parameter.grad.abs().max() > 0, name


def test_a_frozen_segmenter_learns_nothing_and_stays_in_evaluation() -> None:
    network = _cascade(freeze_segmenter=True)
    before = {name: value.clone() for name, value in network.segmenter.state_dict().items()}
    assert network.train().training
    assert network.classifier.training
    assert not any(module.training for module in network.segmenter.modules())
    outputs = network(_image(16, 16, 16))
    assert not outputs.heads["segmentation"].requires_grad
    (outputs.heads["classification"].square().sum() + outputs.heads["segmentation"].sum()).backward()
    assert all(p.grad is None and not p.requires_grad for p in network.segmenter.parameters())
    assert all(p.grad is not None for p in network.classifier.parameters())
    torch.testing.assert_close(dict(network.segmenter.state_dict()), before, rtol=0, atol=0)
    assert not network.eval().classifier.training


@pytest.mark.parametrize("reads", ["structures", "gated+region"])
def test_a_detached_mask_is_read_and_not_taught(reads: str) -> None:
    image = _image(16, 16, 16)
    detached, taught = (_cascade(classifier_input=reads, detach_mask=one).eval() for one in (True, False))
    outputs, others = detached(image), taught(image)
    torch.testing.assert_close(outputs.heads, others.heads)
    outputs.heads["classification"].square().sum().backward()
    assert all(parameter.grad is None for parameter in detached.segmenter.parameters())
    assert all(parameter.grad is not None for parameter in detached.classifier.parameters())
    outputs.heads["segmentation"].sum().backward()  # its own task still teaches it
    assert detached.segmenter.heads["segmentation"].weight.grad is not None
    assert detached.shared_parameter() is None


@pytest.mark.parametrize("size", [(16, 16), (9, 8, 7)])
def test_a_linear_layer_reads_the_shape_of_the_mask(size: tuple[int, ...]) -> None:
    spec = CascadeSpec(segmenter=SEGMENTER, classifier=MaskShapeSpec(harmonics=3))
    heads = named_heads(labels=4, classes=3)
    network = Cascade(spec, in_channels=1, heads=heads, dimensions=len(size))
    image = _image(*size)
    network.train()(image[:1])  # a single case, of which there is no deviation
    network.train()(image)
    norm = network.classifier.norm
    assert norm.running_mean.any()
    outputs = network.eval()(image)
    masks = outputs.heads["segmentation"].softmax(1)[:, 1:]
    numbers = shape_features(masks, 3 if len(size) == 2 else 0).flatten(1)
    expected = (numbers - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(outputs.features, expected)
    linear = network.classifier.heads["classification"]
    torch.testing.assert_close(outputs.heads["classification"], linear(expected))
    assert network.cam_layer() == network.segmenter.cam_layer().within("segmenter")
    assert set(network.stage_layers()) == set(network.segmenter.stage_layers())
    detached = spec.model_copy(update={"detach_mask": True})
    with pytest.raises(RunError, match="has no layer to show"):
        Cascade(detached, in_channels=1, heads=heads, dimensions=len(size)).cam_layer()


def test_settings_that_would_have_no_effect_are_refused() -> None:
    with pytest.raises(ValueError, match="expected structures or region"):
        CascadeSpec(classifier=MaskShapeSpec(), classifier_input="gated+region")
    with pytest.raises(ValueError, match="say what it reads with classifier_input"):
        CascadeSpec(segmenter=AttentionUnetSpec(pooling="region"))
    with pytest.raises(ValueError, match="detach_mask needs pooling"):
        AttentionUnetSpec(detach_mask=True)


def _experiment(kind: str, tasks: dict[str, Any], size: tuple[int, ...] = (16, 16, 16)) -> Experiment:
    network: dict[str, dict[str, Any]] = {
        "attention-unet": SEGMENTER.model_dump(),
        "densenet": CLASSIFIER.model_dump(),
        "cascade": _spec().model_dump(),
    }
    data = {"preprocessing": {"size": size}}
    return Experiment.model_validate({"name": "e", "tasks": tasks, "network": network[kind], "data": data})


def _cohort(**changes: Any) -> CohortSpec:
    fields = {
        "name": "c",
        "modality": "mri",
        "dimensions": 3,
        "classes": ("a", "b", "c"),
        "structures": ("x", "y", "z"),
        "mask": MaskSpec(),
    }
    return CohortSpec.model_validate({**fields, **changes})


STRUCTURES = {"segmentation": {"target": "structures"}, "region": {}}


@pytest.mark.parametrize(
    ("kind", "tasks", "labels", "classes"),
    [
        ("attention-unet", STRUCTURES, 4, None),
        ("attention-unet", {"segmentation": {"target": "mask"}}, 2, None),
        ("attention-unet", {**STRUCTURES, "classification": {}}, 4, 3),
        ("attention-unet", {"classification": {}}, None, 3),
        ("densenet", {"classification": {}}, None, 3),
        ("cascade", {**STRUCTURES, "classification": {}}, 4, 3),
        ("cascade", {"segmentation": {"target": "mask"}, "classification": {}}, 2, 3),
    ],
)
def test_build_counts_labels_and_classes(
    kind: str, tasks: dict[str, Any], labels: int | None, classes: int | None
) -> None:
    for size in ((16, 16, 16), (16, 16)):
        outputs = build_network(_experiment(kind, tasks, size), _cohort())(_image(*size))
        expected = named_heads(labels=labels, classes=classes)
        assert {name: out.shape[1] for name, out in outputs.heads.items()} == {
            name: head.outputs for name, head in expected.items()
        }


@pytest.mark.parametrize(
    ("kind", "size", "changes", "message"),
    [
        ("cascade", (16,), {}, "2 or 3 axes, but data.preprocessing.size has 1"),
        ("cascade", (16, 16, 16), {"structures": ()}, "names none"),
        ("densenet", (16, 16, 16), {"classes": ()}, "names 0 classes"),
    ],
)
def test_build_refuses(kind: str, size: tuple[int, ...], changes: dict[str, Any], message: str) -> None:
    tasks = {
        "classification": {},
        **({"segmentation": {"target": "structures"}} if kind == "cascade" else {}),
    }
    with pytest.raises(ExperimentError, match=message):
        build_network(_experiment(kind, tasks, size), _cohort(**changes))


def _unet(labels: int = 5, classes: int | None = None) -> AttentionUnet:
    return AttentionUnet(SEGMENTER, in_channels=1, heads=named_heads(labels=labels, classes=classes))


def _run(folder: Path, network: nn.Module) -> Path:
    folder.mkdir()
    safetensors.torch.save_file(network.state_dict(), folder / "weights.safetensors")
    return folder


def _same(network: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("classes", [None, 3])
def test_a_run_of_a_segmenter_fills_the_segmenter(tmp_path: Path, classes: int | None) -> None:
    trained, network = _unet(classes=classes), _cascade()
    classifier = {name: value.clone() for name, value in network.classifier.state_dict().items()}
    report = load_pretrained(network, _run(tmp_path / "run", trained))
    assert _same(network.segmenter, trained) if classes is None else report.unused
    assert all(name.startswith("segmenter.") for name in report.loaded)
    assert all(name.startswith("classifier.") for name in report.missing)
    torch.testing.assert_close(dict(network.classifier.state_dict()), classifier, rtol=0, atol=0)


def test_runs_of_classifiers_and_cascades(tmp_path: Path) -> None:
    classifier = DenseNet(CLASSIFIER, in_channels=5, heads=named_heads(classes=3))
    network, trained = _cascade(), _cascade()
    nn.init.normal_(trained.segmenter.heads["segmentation"].weight)
    report = load_pretrained(network, _run(tmp_path / "classifier", classifier))
    assert _same(network.classifier, classifier)
    assert all(name.startswith("segmenter.") for name in report.missing)
    whole = _run(tmp_path / "whole", trained)
    report = load_pretrained(network, whole)
    assert _same(network, trained)
    assert not report.missing
    assert not report.unused
    # And back: a part of a cascade fills a network of its kind.
    unet = _unet()
    assert all(name.startswith("classifier.") for name in load_pretrained(unet, whole).unused)
    assert _same(unet, trained.segmenter)
    load_pretrained(classifier, whole)
    assert _same(classifier, trained.classifier)


def test_a_checkpoint_of_a_run_under_way_loads(tmp_path: Path) -> None:
    trained, network = _unet(), _cascade()
    torch.save({"epoch": 3, "network": trained.state_dict()}, tmp_path / "best.ckpt")
    load_pretrained(network, tmp_path / "best.ckpt")
    assert _same(network.segmenter, trained)


def test_a_segmenter_of_other_structures_lends_all_but_its_head(tmp_path: Path) -> None:
    network = _cascade(labels=5)
    report = load_pretrained(network, _run(tmp_path / "run", _unet(labels=2)))
    assert "segmenter.heads.segmentation.weight" in report.missing
    assert "segmenter.encoder.0.0.conv.weight" in report.loaded
    assert any("2 outputs and the network 5" in sentence for sentence in report.adapted)


@pytest.mark.parametrize(
    "trained", [_unet(labels=2), DenseNet(CLASSIFIER, in_channels=5, heads=named_heads(classes=3))]
)
def test_a_frozen_segmenter_wants_all_of_its_weights(tmp_path: Path, trained: nn.Module) -> None:
    with pytest.raises(WeightsError, match="frozen segmenter at random values"):
        load_pretrained(_cascade(freeze_segmenter=True), _run(tmp_path / "run", trained))


def test_parts_of_other_sizes_are_refused(tmp_path: Path) -> None:
    other = _run(tmp_path / "run", _cascade(classifier_input="image+structures"))
    with pytest.raises(WeightsError, match=r"classifier\.features\.stem\.weight.*classifier_input"):
        load_pretrained(_cascade(), other)
    swin = {"encoder.layers.0.blocks.0.attn.qkv.bias": torch.zeros(3)}
    safetensors.torch.save_file(swin, tmp_path / "swin.safetensors")
    with pytest.raises(WeightsError, match="none of its 1 weights fits"):
        load_pretrained(_cascade(), tmp_path / "swin.safetensors")
