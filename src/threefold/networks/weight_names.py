"""Which weight of a file is which of a network: official Swin, public Swin-Unet and MONAI names, parts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn

from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.foreign import ForeignNetwork
from threefold.networks.heads import Renamed, today
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet

PATCHES = "encoder.patch_embed.proj.weight"
FOREIGN = "net."
"""What names of weights begin with of a network of others."""
_SEGMENTER, _CLASSIFIER = "segmenter.", "classifier."  # the parts of a cascade


def translate(found: Mapping[str, Tensor], network: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by the network's names, and the file's name of each.

    Args:
        found: the file's tensors by its own names.
        network: any of the program's.
    """
    if isinstance(network, SwinUnet | JointSwin):
        names = _swin_names(found, network)
    elif isinstance(network, ForeignNetwork):
        of_a_run = any(name.startswith(FOREIGN) for name in found)
        names = {name if of_a_run else FOREIGN + name: name for name in found}
    else:
        own_names = {_monai_name(name) or name: name for name in found}
        given = ((_name_in(network, name, own_names), origin) for name, origin in own_names.items())
        names = {own: origin for own, origin in given if own is not None}
    former = network.former_names() if isinstance(network, Renamed) else {}
    origins = {today(name, names, former): origin for name, origin in names.items()}
    return {own: _flat(origin, found[origin]) for own, origin in origins.items()}, origins


def _flat(name: str, value: Tensor) -> Tensor:
    """Return a weight as ours is: the public Swin-Unet's last layer is a 1x1 convolution."""
    return value[..., 0, 0] if name == "output.weight" and value.ndim == 4 else value


def _name_in(network: nn.Module, name: str, found: Collection[str]) -> str | None:
    """Return the name that a weight of a run has in a network that may hold it as a part, or be a part."""
    whole = any(other.startswith(_SEGMENTER) for other in found)
    if isinstance(network, Cascade):
        if whole:
            return name
        return (_CLASSIFIER if "features.stem.weight" in found else _SEGMENTER) + name
    if not whole:
        return name
    part = _SEGMENTER if isinstance(network, AttentionUnet) else _CLASSIFIER
    return name.removeprefix(part) if name.startswith(part) else None


def _monai_name(name: str) -> str | None:
    """Return our name for a name of MONAI's AttentionUnet or DenseNet; None for any other."""
    stem, _, parameter = name.rpartition(".")
    if stem.startswith("model."):
        own = _monai_unet_name(stem)
    elif stem.startswith(("features.", "class_layers.")):
        own = _monai_densenet_name(stem)
    else:
        own = None
    return None if own is None else f"{own}.{parameter}"


def _monai_unet_name(name: str) -> str | None:
    if name == "model.2.conv":
        return "head"
    # Each level is nested in the one above: model.1(.submodule.1)*, and .submodule alone at the bottom.
    level = name.count("submodule")
    unit = re.search(r"\bconv\.([01])\.(conv|adn\.N)$", name)
    if unit is not None:
        return f"encoder.{level}.{unit[1]}.{'conv' if unit[2] == 'conv' else 'norm'}"
    part = re.search(r"(upconv\.up|merge)\.(conv|adn\.N|adn\.A)$", name)
    if part is not None:
        kind = {"conv": "conv", "adn.N": "norm", "adn.A": "act"}[part[2]]
        return f"decoder.{level}.{'merge' if part[1] == 'merge' else 'up'}.{kind}"
    gate = re.search(r"attention\.(W_g|W_x|psi)\.(0\.conv|1)$", name)
    if gate is None:
        return None
    layer = {"W_g": "coarse", "W_x": "skip", "psi": "score"}[gate[1]]
    return f"decoder.{level}.gate.{layer}.{'norm' if gate[2] == '1' else 'conv'}"


def _monai_densenet_name(name: str) -> str | None:
    if name in ("features.conv0", "class_layers.out"):
        return "features.stem" if name == "features.conv0" else "head"
    layer = re.fullmatch(r"features\.denseblock(\d+)\.denselayer(\d+)\.layers\.conv([12])", name)
    if layer is not None:
        kind = "squeeze" if layer[3] == "1" else "grow"
        return f"features.blocks.{int(layer[1]) - 1}.{int(layer[2]) - 1}.{kind}"
    transition = re.fullmatch(r"features\.transition(\d+)\.conv", name)
    return None if transition is None else f"features.transitions.{int(transition[1]) - 1}"


def _swin_names(found: Mapping[str, Tensor], network: SwinUnet | JointSwin) -> dict[str, str]:
    """Return the file's names by the network's."""
    if any(name.startswith("encoder.") for name in found):  # this program's own names
        return {name: name for name in found}
    stages = len(network.encoder.spec.depths)
    names = ((_own_name(name, stages), name) for name in found)
    return {own: name for own, name in names if own is not None}


def _own_name(name: str, stages: int) -> str | None:
    """Return the network's name for a name of the official Swin or the public Swin-Unet."""
    if name.startswith(("patch_embed.", "layers.", "norm.")):
        return f"encoder.{name}"
    if name.startswith("head."):
        return f"classifier.{name.removeprefix('head.')}"
    for public, own in (("norm_up.", "norm."), ("up.", "final."), ("output.", "final.head.")):
        if name.startswith(public):
            return f"segmentation.{own}{name.removeprefix(public)}"
    match = re.match(r"(layers_up|concat_back_dim)\.(\d+)\.(.+)", name)
    if match is None:
        return None
    room, number, rest = match[1], int(match[2]), match[3]
    stage = stages - 1 - number  # the encoder stage of the same resolution
    if room == "concat_back_dim":
        return f"segmentation.stages.{stage}.join.{rest}"
    if rest.startswith("blocks."):
        return f"segmentation.stages.{stage}.{rest}"
    # The published stages expand at their end, ours where the next one begins.
    return f"segmentation.stages.{stage - 1}.expanding.{rest.removeprefix('upsample.')}"


def mirror_encoder(offered: dict[str, Tensor], origins: dict[str, str], network: nn.Module) -> list[str]:
    """Offer the encoder's blocks to the decoder stages that nothing is offered to; returns remarks."""
    remarks = []
    for decoder in _decoders(network):
        if any(name.startswith(f"{decoder}.stages.") for name in offered):
            continue
        blocks = [name for name in offered if re.match(r"encoder\.layers\.\d+\.blocks\.", name)]
        for name in blocks:
            mirrored = name.replace("encoder.layers.", f"{decoder}.stages.", 1)
            offered[mirrored] = offered[name]
            origins[mirrored] = origins[name]
        if blocks:
            remarks.append(f"{decoder}: blocks from the encoder's of the same resolution")
    return remarks


def _decoders(network: nn.Module) -> Iterator[str]:
    if isinstance(network, SwinUnet):
        yield from (f"heads.{name}" for name, head in network.kinds.items() if head.kind != "pooled")
