"""Weights from local files: official Swin and public Swin-Unet checkpoints, and this program's own runs."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from threefold.errors import WeightsError
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet
from threefold.run import RunFolder

_CONTAINERS = ("model", "state_dict")  # where a checkpoint keeps its weights, if not at the top
_WRAPPERS = re.compile(r"^(module\.|swin_unet\.|network\.)+")  # prefixes of the networks around the network
_DERIVED = ("attn_mask", "relative_position_index")  # published buffers that follow from the sizes
_HEADS = ("classifier.", "segmentation.final.head.")  # their size is the question's, not the network's
_PATCHES = "encoder.patch_embed.proj.weight"


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights.

    Attributes:
        path: the file.
        loaded: the network's weights that hold the file's values, adapted ones included.
        adapted: one sentence for each that was changed on the way, or comes from another place.
        missing: the network's weights that keep their initial values.
        unused: the file's weights that went nowhere.
    """

    path: Path
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def as_text(self) -> str:
        """Return a few lines for a log."""
        total = len(self.loaded) + len(self.missing)
        lines = [f"{self.path}: {len(self.loaded)} of the network's {total} weights loaded"]
        lines += [f"  adapted: {sentence}" for sentence in self.adapted]
        lines += [
            f"  {word}: {_shorten(names)}"
            for word, names in (
                ("left at their initial values", self.missing),
                ("in the file, unused", self.unused),
            )
            if names
        ]
        return "\n".join(lines)


def load_pretrained(
    network: SwinUnet | JointSwin, path: Path, *, decoders_from_encoder: bool = True
) -> LoadReport:
    """Fill a network from a local file; all of what fits, or nothing when something is wrong.

    The patch embedding of a file with another number of channels is adapted by spreading its sum over the
    network's channels, which is exact for images whose channels are all equal. A head for another number of
    classes or labels keeps its initial values. The decoder of a Swin-Unet file goes to the segmentation
    decoder.

    Args:
        network: is changed in place.
        path: `.pth` or `.ckpt` (a state dict, or one under "model" or "state_dict"), `.safetensors`, or a
            run folder.
        decoders_from_encoder: fill the decoder blocks that the file does not name from the encoder's blocks
            of the same resolution, as Swin-Unet's published training does.

    Raises:
        WeightsError: if the file is no checkpoint, nothing in it fits, or a weight has another shape.
    """
    path = RunFolder(path).weights if path.is_dir() else path
    found = {_WRAPPERS.sub("", name): value for name, value in _read(path).items()}
    offered, origins = _translate(found, network)
    adapted = _mirror_encoder(offered, origins, network) if decoders_from_encoder else []
    own = network.state_dict()
    fitting: dict[str, Tensor] = {}
    for name in offered.keys() & own.keys():
        value, remark = _fit(name, offered[name], own[name], f"{path}: '{origins[name]}'")
        adapted += [remark] if remark else []
        if value is not None:
            fitting[name] = value
    if not fitting:
        raise WeightsError(
            f"{path}: none of its {len(found)} weights fits the network. Expected the names of an official "
            f"Swin or Swin-Unet checkpoint or of this program's runs, found {_shorten(tuple(found))}."
        )
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    used = {origins[name] for name in fitting}
    return LoadReport(
        path=path,
        loaded=tuple(name for name in own if name in fitting),
        adapted=tuple(sorted(adapted)),
        missing=tuple(name for name in own if name not in fitting),
        unused=tuple(name for name in found if name not in used and not name.endswith(_DERIVED)),
    )


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, by name."""
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such file. Expected a .pth or .safetensors checkpoint or a run folder."
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        # The first sentence: torch goes on to advise reading the file unsafely.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise WeightsError(
            f"{path}: not a checkpoint that can be read safely ({reason}). Expected tensors by name, in a "
            ".safetensors file or a .pth file that torch.load reads with weights_only=True; files that "
            "hold other Python objects must be saved anew as a plain state dict."
        ) from error
    for container in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
            break
    tensors = (
        {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{path}: holds no tensors by name. Expected a state dict, alone or under "
            f"{' or '.join(map(repr, _CONTAINERS))}, found {type(content).__name__}. Of a run, name its "
            "folder or its weights.safetensors."
        )
    return tensors


def _translate(
    found: Mapping[str, Tensor], network: SwinUnet | JointSwin
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the file's tensors by the network's names, and the file's name of each."""
    if any(name.startswith("encoder.") for name in found):  # this program's own names
        return dict(found), {name: name for name in found}
    stages = len(network.encoder.spec.depths)
    offered, origins = {}, {}
    for name, value in found.items():
        own = _own_name(name, stages)
        if own is not None:
            offered[own] = value[..., 0, 0] if name == "output.weight" and value.ndim == 4 else value
            origins[own] = name
    return offered, origins


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


def _mirror_encoder(
    offered: dict[str, Tensor], origins: dict[str, str], network: SwinUnet | JointSwin
) -> list[str]:
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


def _decoders(network: SwinUnet | JointSwin) -> Iterator[str]:
    for name in ("segmentation", "reconstruction"):
        if isinstance(getattr(network, name, None), nn.Module):
            yield name


def _fit(name: str, value: Tensor, target: Tensor, source: str) -> tuple[Tensor | None, str | None]:
    """Return the value for a weight (None: it keeps its own) and a remark on what was changed.

    Args:
        name, target: the network's weight.
        value: what the file offers for it.
        source: file and name, for messages.

    Raises:
        WeightsError: if the value is of another shape or not finite.
    """
    remark = None
    if name == _PATCHES and _same_but_channels(value, target):
        remark = f"{name}: from {value.shape[1]} to {target.shape[1]} channels, their sum kept"
        value = (value.sum(1, keepdim=True) / target.shape[1]).expand_as(target)
    if value.shape != target.shape:
        if name.startswith(_HEADS):
            return None, (
                f"{name}: not loaded, the file has {value.shape[0]} outputs and the network {target.shape[0]}"
            )
        raise WeightsError(
            f"{source} has shape {_shape(value)}, but the network's '{name}' needs {_shape(target)}. Set "
            "network.encoder (embed_dim, heads, window, patch) to the file's sizes, or choose a file of this "
            "network's size."
        )
    if not torch.isfinite(value).all():
        raise WeightsError(
            f"{source} holds NaN or infinite values. Use a checkpoint from before the training diverged."
        )
    return value, remark


def _same_but_channels(value: Tensor, target: Tensor) -> bool:
    return (
        value.ndim == 4
        and value.shape[1] != target.shape[1]
        and ((value.shape[0], *value.shape[2:]) == (target.shape[0], *target.shape[2:]))
    )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _shorten(names: tuple[str, ...], limit: int = 8) -> str:
    listed = ", ".join(names[:limit])
    return listed if len(names) <= limit else f"{listed} and {len(names) - limit} more"
