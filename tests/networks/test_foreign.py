"""Networks of others: whose outputs they take for whose, which they refuse, and MONAI's as they are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.errors import ExperimentError, RunError, WeightsError
from threefold.experiment import ForeignNetworkSpec
from threefold.networks.cam import CamLayer
from threefold.networks.foreign import ForeignNetwork
from threefold.networks.pretrained import load_pretrained

NETS = '''
"""Small networks that return the same in each of the ways that there are."""
import torch
from torch import nn
from threefold.core.outputs import Outputs
from threefold.networks.cam import CamLayer


class Base(nn.Module):
    def __init__(self, in_channels=1, width=4, classes=3, labels=2, text="", failing=False):
        super().__init__()
        self.encoder = nn.Conv2d(in_channels, width, 2, stride=2)
        self.classify, self.mask = nn.Linear(width, classes), nn.ConvTranspose2d(width, labels, 2, stride=2)
        self.failing, self.unused = failing, nn.Conv2d(1, 1, 1)

    def parts(self, image):
        if self.failing:
            raise ValueError("no such image")
        features = self.encoder(image)
        return self.classify(features.mean((2, 3))), self.mask(features), features


class Classes(Base):
    def forward(self, image):
        return self.parts(image)[0]


class Masks(Base):
    def forward(self, image):
        return self.parts(image)[1]


class Both(Base):
    def forward(self, image):
        return self.parts(image)[:2]


class Named(Base):
    def forward(self, image):
        classes, mask, _ = self.parts(image)
        return {"hema": mask, "kind": classes, "aux": None}


class Whole(Base):
    def forward(self, image):
        classes, mask, features = self.parts(image)
        return Outputs({"label": classes, "mask": mask}, features.mean((2, 3)))

    def cam_layer(self):
        return CamLayer("encoder", "channels first", 2)

    def stage_layers(self):
        return {"only": "encoder"}


class Tokens(Base):
    def forward(self, image):
        return self.parts(image)[2].flatten(2).mT


class Asking(nn.Module):
    """Told the number of axes and the tasks' heads, of which it gives those of voxels."""

    def __init__(self, in_channels, spatial_dims, heads):
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        dense = {name: head.outputs for name, head in heads.items() if head.kind == "dense"}
        self.convs = nn.ModuleDict({name: conv(in_channels, outputs, 1) for name, outputs in dense.items()})

    def forward(self, image):
        return {name: conv(image) for name, conv in self.convs.items()}


class Needing(nn.Module):
    """Finds only when it is used that a library is not there, as MONAI's networks do."""

    def forward(self, image):
        import absent_library


class Lazy(nn.Module):
    """Finds its sizes at the first image."""

    def __init__(self, num_classes):
        super().__init__()
        self.linear = nn.LazyLinear(num_classes)

    def forward(self, image):
        return self.linear(image.flatten(1))


def nothing(in_channels):
    return "a word"
'''
LABEL, MASK = Head("pooled", 3), Head("dense", 2)
HEADS = {"label": LABEL, "mask": MASK}
SIZE = (8, 12)


@pytest.fixture(scope="module", autouse=True)
def nets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """`nets_of_mine`, in the working folder."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "nets_of_mine.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield
    sys.modules.pop("nets_of_mine", None)


def network(
    name: str,
    tasks: Mapping[str, Head] = HEADS,
    size: Sequence[int] = SIZE,
    **keys: Any,
) -> ForeignNetwork:
    """Return the network of a class of `nets_of_mine`, or of a MODULE:NAME."""
    kind = name if ":" in name else f"nets_of_mine:{name}"
    torch.manual_seed(0)
    return ForeignNetwork(ForeignNetworkSpec(kind=kind, **keys), in_channels=1, heads=tasks, size=size).eval()


def shapes(made: ForeignNetwork, size: Sequence[int] = SIZE) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs of two images."""
    outputs = made(torch.zeros(2, 1, *size))
    assert isinstance(outputs, Outputs)
    assert [*outputs.heads] == [*made.kinds], "the tasks' order"
    return {name: tuple(head.shape) for name, head in outputs.heads.items()}


@pytest.mark.parametrize(
    ("name", "heads", "keys"),
    [
        ("Classes", ("label",), {}),
        ("Masks", ("mask",), {}),
        ("Both", ("label", "mask"), {}),
        ("Both", ("mask", "label"), {"heads": {"label": 0, "mask": 1}}),
        ("Both", ("label",), {}),
        ("Both", ("mask",), {"heads": {"mask": -1}}),
        ("Named", ("label", "mask"), {"heads": {"label": "kind", "mask": "hema"}}),
        ("Whole", ("label", "mask"), {}),
        ("Masks", ("label", "mask"), {"pool": "encoder"}),
        ("Both", ("label", "mask"), {"pool": "encoder", "heads": {"label": 0, "mask": 1}}),
        ("Tokens", ("label",), {"pool": "output"}),
        ("Classes", ("label",), {"pool": "output"}),
    ],
)
def test_outputs_come_to_the_tasks_that_they_are_of(
    name: str, heads: Sequence[str], keys: dict[str, Any]
) -> None:
    expected = {"label": (2, 3), "mask": (2, 2, *SIZE)}
    made = network(name, {head: HEADS[head] for head in heads}, **keys)
    assert shapes(made) == {head: expected[head] for head in heads}


def test_the_values_are_the_modules_own() -> None:
    made, image = network("Named", heads={"label": "kind", "mask": "hema"}), torch.rand(2, 1, *SIZE)
    found, own = made(image), made.net(image)
    assert torch.equal(found.heads["label"], own["kind"])
    assert torch.equal(found.heads["mask"], own["hema"])
    assert found.features is None
    whole = network("Whole")
    assert torch.equal(whole(image).features, whole.net(image).features)


def test_a_pooled_head_reads_the_mean_of_its_layer() -> None:
    heads = {"mask": MASK, "label": LABEL, "age": Head("pooled", 1, (30.0, 5.0))}
    made, image = network("Masks", heads, pool="encoder"), torch.rand(2, 1, *SIZE)
    found = made(image)
    features = made.net.encoder(image).mean((2, 3))
    torch.testing.assert_close(found.features, features)
    torch.testing.assert_close(found.heads["label"], made.heads["label"](features))
    layer = made.heads["age"]
    expected = 30 + 5 * torch.nn.functional.linear(features, layer.weight, layer.bias)
    torch.testing.assert_close(found.heads["age"], expected)
    assert [*found.heads] == [*heads]
    assert not made.net.encoder._forward_hooks, "nothing goes on listening"


def test_tokens_and_the_last_of_several_stages_are_pooled() -> None:
    tokens, image = network("Tokens", {"label": LABEL}, pool="output"), torch.rand(2, 1, *SIZE)
    torch.testing.assert_close(tokens(image).features, tokens.net(image).mean(1))
    stages = network("Both", {"label": LABEL}, pool="output")
    torch.testing.assert_close(stages(image).features, stages.net(image)[-1].mean((2, 3)))


def test_what_a_class_asks_for_is_filled_in() -> None:
    heads = {"a": Head("dense", 2), "b": Head("dense", 5), "c": LABEL}
    made = network("Asking", heads, (4, 4, 4), pool="convs.a")
    assert shapes(made, (4, 4, 4)) == {"a": (2, 2, 4, 4, 4), "b": (2, 5, 4, 4, 4), "c": (2, 3)}
    assert shapes(network("Lazy", {"label": Head("pooled", 7)})) == {"label": (2, 7)}
    given = network("Classes", {"label": Head("pooled", 4)}, arguments={"classes": 4}, width=6)
    assert given.net.encoder.out_channels == 6
    assert shapes(given) == {"label": (2, 4)}


def test_making_it_draws_from_torchs_generator_as_the_class_does() -> None:
    made = network("Classes", {"label": LABEL})
    torch.manual_seed(0)
    from nets_of_mine import Classes  # type: ignore[import-not-found]

    alone = Classes(in_channels=1)
    assert torch.equal(made.net.encoder.weight, alone.encoder.weight)
    assert made.net.training is False
    assert ForeignNetwork(made._spec, in_channels=1, heads={"label": LABEL}, size=SIZE).net.training


REFUSALS: list[tuple[str, dict[str, Head], dict[str, Any], str]] = [
    ("Bothh", HEADS, {}, "nets_of_mine has no 'Bothh'. Did you mean 'Both'?"),
    ("Classes", HEADS, {"widht": 3}, "has no argument 'widht'. Did you mean 'width'?"),
    ("Classes", HEADS, {"widht": 3}, "Its arguments: in_channels, width, classes, labels, text, failing."),
    ("nothing", HEADS, {}, "expected a torch.nn.Module, found str."),
    (
        "Classes",
        {"label": LABEL},
        {"failing": True},
        "fails on an image of shape (1, 1, 8, 12) (ValueError: no such",
    ),
    (
        "Needing",
        HEADS,
        {},
        "needs a package that is not installed (No module named 'absent_library'). Install it.",
    ),
    (
        "Classes",
        HEADS,
        {},
        "returns one tensor, but 2 tasks (label, mask) need one each. Name a layer to pool",
    ),
    ("Both", {**HEADS, "age": LABEL}, {}, "returns a sequence of 2, without '2' for the task age. Say where"),
    ("Named", HEADS, {}, "returns a mapping of hema, kind, aux, without 'label' for the task label."),
    (
        "Named",
        {"label": LABEL},
        {"heads": {"label": "aux"}},
        "for the task label expected an output of shape (1, 3)",
    ),
    ("Named", {"label": LABEL}, {"heads": {"label": "aux"}}, "found NoneType."),
    (
        "Both",
        {"mask": MASK},
        {},
        "expected an output of shape (1, 2, 8, 12) for an image of (1, 1, 8, 12), found (1, 3).",
    ),
    ("Masks", {"label": LABEL}, {}, "found (1, 2, 8, 12). Correct its arguments. Or name a layer to pool"),
    ("Masks", {"mask": MASK}, {"labels": 5}, "expected an output of shape (1, 2, 8, 12)"),
    (
        "Both",
        HEADS,
        {"heads": {"lable": 0}},
        "network.heads names 'lable', which is no task with a head. Tasks: label,",
    ),
    (
        "Classes",
        {"label": LABEL},
        {"pool": "encodr"},
        "network.pool names no submodule 'encodr'. There are: encoder,",
    ),
    (
        "Classes",
        {"label": LABEL},
        {"pool": "unused"},
        "network.pool (unused) gives NoneType; expected (B, F, *S)",
    ),
    ("Classes", {"label": LABEL}, {"cam": "layer3"}, "network.cam names no submodule 'layer3'."),
    (
        "Classes",
        {"label": LABEL},
        {"stages": {"one": "layer1"}},
        "network.stages names no submodule 'layer1'.",
    ),
    ("Classes", {"label": LABEL}, {"shared": "encoder"}, "network.shared names no parameter 'encoder'."),
]


@pytest.mark.parametrize(("name", "heads", "keys", "said"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_refused_when_it_is_made(
    name: str, heads: dict[str, Head], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(ExperimentError) as refused:
        network(name, heads, **keys)
    assert said in str(refused.value)
    assert "nets_of_mine" in str(refused.value) or "network.heads" in str(refused.value)


def test_what_is_not_declared_is_refused_where_it_is_asked_for() -> None:
    plain = network("Classes", {"label": LABEL})
    with pytest.raises(
        RunError, match=r"names no layer for Grad-CAM. Say which submodule it is \(network.cam\)"
    ):
        plain.cam_layer()
    with pytest.raises(RunError, match=r"names no stages.* Name submodules \(network.stages"):
        plain.stage_layers()
    assert plain.shared_parameter() is None


def test_what_is_declared_is_named_within() -> None:
    named = network(
        "Classes", {"label": LABEL}, cam="encoder", stages={"one": "encoder"}, shared="encoder.weight"
    )
    assert named.cam_layer().module == "net.encoder"
    assert named.stage_layers() == {"one": "net.encoder"}
    assert named.shared_parameter() == "net.encoder.weight"
    by_itself = network("Whole")
    assert by_itself.cam_layer() == CamLayer("net.encoder", "channels first", 2)
    assert by_itself.stage_layers() == {"only": "net.encoder"}


MONAI = "monai.networks.nets"


@pytest.mark.parametrize(
    ("kind", "heads", "size", "keys"),
    [
        ("BasicUNet", ("mask", "label"), (32, 32), {"features": [4] * 6, "pool": "down_4"}),
        ("BasicUNet", ("mask",), (16, 16, 16), {"features": [2] * 6, "norm": "batch"}),
        ("SegResNet", ("mask", "label"), (16, 16), {"init_filters": 8, "pool": "down_layers.3"}),
        ("DenseNet121", ("label",), (32, 32), {"block_config": [1, 1], "init_features": 4, "bn_size": 1}),
        (
            "SwinUNETR",
            ("mask", "label"),
            (64, 64),
            {"feature_size": 12, "depths": [1] * 4, "num_heads": [1] * 4, "pool": "swinViT"},
        ),
    ],
)
def test_networks_of_monai_fit_as_they_are(
    kind: str, heads: Sequence[str], size: tuple[int, ...], keys: dict[str, Any]
) -> None:
    made = network(f"{MONAI}:{kind}", {head: HEADS[head] for head in heads}, size, **keys)
    expected = {"label": (2, 3), "mask": (2, 2, *size)}
    assert shapes(made, size) == {head: expected[head] for head in heads}


# --- weights from elsewhere ---------------------------------------------------------------------------


def _saved(made: torch.nn.Module, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in made.state_dict().items()}, path)
    return path


def test_weights_for_other_classes_keep_what_fits(tmp_path: Path) -> None:
    trained = network("Masks", pool="encoder")
    file = _saved(trained, tmp_path / "weights.safetensors")
    heads = {"label": Head("pooled", 5), "mask": MASK, "age": Head("pooled", 1, (30.0, 5.0))}
    fresh = network("Masks", heads, pool="encoder")
    with torch.no_grad():
        fresh.net.encoder.weight.zero_()
    report = load_pretrained(fresh, file)
    assert torch.equal(fresh.net.encoder.weight, trained.net.encoder.weight)
    assert {*report.missing} == {
        *("heads.label.weight", "heads.label.bias"),
        *(f"heads.age.{part}" for part in ("weight", "bias", "mean", "deviation")),
    }
    assert "heads.label.weight: not loaded, the file has 3 outputs and the network 5" in report.adapted
    assert (fresh.heads["age"].mean, fresh.heads["age"].deviation) == (30, 5)


def test_a_last_layer_of_its_own_for_other_labels_is_left(tmp_path: Path) -> None:
    file = _saved(network("Both"), tmp_path / "weights.safetensors")
    heads = {"label": Head("pooled", 5), "mask": MASK}
    report = load_pretrained(network("Both", heads, arguments={"classes": 5}), file)
    assert {*report.missing} == {"net.classify.weight", "net.classify.bias"}
    assert "net.classify.weight: not loaded, the file has 3 outputs and the network 5" in report.as_text()
    wider = load_pretrained(network("Both", HEADS, width=6), file)
    assert {*wider.loaded} == {"net.classify.bias", "net.mask.bias", "net.unused.weight", "net.unused.bias"}
    assert "net.classify.weight: not loaded, the file has the shape (3, 4) and the network (3, 6)" in (
        wider.as_text()
    )


def test_a_modules_own_checkpoint_fills_it(tmp_path: Path) -> None:
    """As it is published: by the module's own names, without those of the adapter."""
    trained = network("Masks", {"mask": MASK})
    torch.save({"state_dict": trained.net.state_dict()}, tmp_path / "published.pth")
    fresh = network("Masks", pool="encoder", width=4)
    with torch.no_grad():
        fresh.net.mask.weight.zero_()
    report = load_pretrained(fresh, tmp_path / "published.pth")
    assert torch.equal(fresh.net.mask.weight, trained.net.mask.weight)
    assert {*report.missing} == {"heads.label.weight", "heads.label.bias"}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = _saved(torch.nn.Conv2d(1, 1, 1), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="none of its 2 weights fits the network"):
        load_pretrained(network("Both"), file)


class Gives(nn.Module):
    """Gives a diagnosis of its own by the task's name, and features to pool."""

    def __init__(self, in_channels: int, heads: Mapping[str, Head], width: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(in_channels, width, 3, padding=1)
        self.decide = nn.Linear(width, heads["classification"].outputs)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"classification": self.decide(self.body(image).mean((2, 3)))}


def test_pooling_never_replaces_an_output_that_the_module_gives() -> None:
    heads = {"classification": Head("pooled", 2), "parts": Head("pooled", 3)}
    spec = ForeignNetworkSpec(kind=f"{__name__}:Gives", pool="body")
    network = ForeignNetwork(spec, in_channels=1, heads=heads, size=(8, 8))
    image = torch.randn(2, 1, 8, 8)
    assert list(network.heads) == ["parts"]
    outputs = network(image)
    assert torch.equal(outputs.heads["classification"], network.net(image)["classification"])
    assert outputs.heads["parts"].shape == (2, 3)


def test_the_remedies_of_a_missing_head_are_both_named() -> None:
    heads = {"classification": Head("pooled", 2), "parts": Head("pooled", 3)}
    spec = ForeignNetworkSpec(kind=f"{__name__}:Gives")
    with pytest.raises(ExperimentError, match=r"without 'parts'.*network\.heads\), or name a layer to pool"):
        ForeignNetwork(spec, in_channels=1, heads=heads, size=(8, 8))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"widht": 8}, "has no argument 'widht'. Did you mean 'width'"),
        ({"camm": "body"}, "has no argument 'camm'. Did you mean 'cam'"),
        ({"pool": "body.0"}, "names no submodule 'body.0'"),
    ],
)
def test_misspelt_arguments_and_keys_are_told_apart(extra: dict[str, Any], said: str) -> None:
    spec = ForeignNetworkSpec.model_validate({"kind": f"{__name__}:Gives", **extra})
    heads = {"classification": Head("pooled", 2), "parts": Head("pooled", 3)}
    with pytest.raises(ExperimentError, match=re.escape(said)):
        ForeignNetwork(spec, in_channels=1, heads=heads, size=(8, 8))
