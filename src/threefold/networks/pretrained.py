"""Weights from local files: published checkpoints, and this program's own runs.

`weight_names` knows which weight of a file belongs where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from threefold.checksums import note_unchecked, refuse_compressed, verify_archive, verify_tensors
from threefold.errors import WeightsError, some
from threefold.models.store import run_path
from threefold.networks.cascade import Cascade
from threefold.networks.foreign import ForeignNetwork
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet
from threefold.networks.weight_names import FOREIGN, PATCHES, mirror_encoder, translate
from threefold.run import RunFolder

_CONTAINERS = ("model", "state_dict", "network")  # where a checkpoint keeps its weights, if not at the top
_WRAPPERS = re.compile(r"^(module\.|swin_unet\.|network\.)+")  # prefixes of the networks around the network
_COPY_AGAIN = "Copy the file again from where it is whole."
_DERIVED = ("attn_mask", "relative_position_index")  # published buffers that follow from the sizes


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
            f"  {word}: {some(names, 8)}"
            for word, names in (
                ("left at their initial values", self.missing),
                ("in the file, unused", self.unused),
            )
            if names
        ]
        return "\n".join(lines)


def load_pretrained(network: nn.Module, path: Path, *, decoders_from_encoder: bool = True) -> LoadReport:
    """Fill a network from a local file; all of what fits, or nothing when something is wrong.

    The patch embedding of a file with another number of channels is adapted by spreading its sum over the
    network's channels, which is exact for images whose channels are all equal. A head for another number of
    classes or labels keeps its initial values. The decoder of a Swin-Unet file goes to the segmentation
    decoder. A run of an attention U-Net fills a cascade's segmenter, one of a DenseNet its classifier, one
    of a cascade both; and a part of a cascade fills a network of its kind. So do checkpoints of MONAI's
    AttentionUnet and DenseNet (instance norm), which the published aortic-arch system is made of. A network
    of others takes its class's own checkpoints as well as runs; whatever has another shape there is left.

    Args:
        network: any of the program's; is changed in place.
        path: `.pth` or `.ckpt` (a state dict, or one under "model" or "state_dict"), `.safetensors`, a run
            folder, or the name of a model that the package ships.
        decoders_from_encoder: fill the Swin decoder blocks that the file does not name from the encoder's
            blocks of the same resolution, as Swin-Unet's published training does.

    Raises:
        WeightsError: if the file is no checkpoint, nothing in it fits, a weight has another shape, or the
            file leaves a frozen segmenter without some of its weights.
    """
    path = run_path(path)
    path = RunFolder(path).weights if path.is_dir() else path
    found = {_WRAPPERS.sub("", name): value for name, value in _read(path).items()}
    offered, origins = translate(found, network)
    adapted = mirror_encoder(offered, origins, network) if decoders_from_encoder else []
    own = network.state_dict()
    fitting: dict[str, Tensor] = {}
    for name in offered.keys() & own.keys():
        value, remark = _fit(name, offered[name], own[name], f"{path}: '{origins[name]}'")
        adapted += [remark] if remark else []
        if value is not None:
            fitting[name] = value
    if not fitting:
        raise WeightsError(
            f"{path}: none of its {len(found)} weights fits the network. Expected {_expected(network)}, "
            f"found {some(tuple(found), 8)}."
        )
    missing = tuple(name for name in own if name not in fitting)
    if isinstance(network, Cascade) and network.frozen:
        _refuse_untrained_segmenter(path, missing)
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value)
    used = {origins[name] for name in fitting}
    return LoadReport(
        path=path,
        loaded=tuple(name for name in own if name in fitting),
        adapted=tuple(sorted(adapted)),
        missing=missing,
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
            checked = verify_tensors(path, WeightsError, _COPY_AGAIN)
            content: object = load_file(path)
        else:
            refuse_compressed(path, WeightsError)
            checked = verify_archive(path, WeightsError, _COPY_AGAIN)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (WeightsError, MemoryError):
        raise
    except Exception as error:  # what the libraries raise on bytes that are no checkpoint is not documented
        # The first sentence: torch goes on to advise reading the file unsafely.
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise WeightsError(
            f"{path}: not a checkpoint that can be read safely ({reason}). Expected tensors by name, in a "
            ".safetensors file or a .pth file that torch.load reads with weights_only=True; files that "
            "hold other Python objects must be saved anew as a plain state dict."
        ) from error
    if not checked and path == RunFolder(path.parent).weights and path.with_suffix(".json").is_file():
        note_unchecked(path)
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


def _expected(network: nn.Module) -> str:
    if isinstance(network, ForeignNetwork):
        return "the names of a checkpoint of its class or of a run of this program with it"
    if isinstance(network, SwinUnet | JointSwin):
        return "the names of an official Swin or Swin-Unet checkpoint or of this program's runs"
    return "the names of a run of this program, of this kind of network or of a part of it"


def _refuse_untrained_segmenter(path: Path, missing: tuple[str, ...]) -> None:
    untrained = tuple(name for name in missing if name.startswith("segmenter."))
    if untrained:
        raise WeightsError(
            f"{path}: leaves {len(untrained)} weights of the frozen segmenter at random values "
            f"({some(untrained, 3)}). Expected a run whose segmenter tells the same structures apart; "
            "name such a run, or set network.freeze_segmenter to false."
        )


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
    if name == PATCHES and _same_but_channels(value, target):
        remark = f"{name}: from {value.shape[1]} to {target.shape[1]} channels, their sum kept"
        value = (value.sum(1, keepdim=True) / target.shape[1]).expand_as(target)
    if value.shape != target.shape:
        if _is_of_a_head(name) and value.ndim == target.ndim:
            return None, f"{name}: not loaded, {_difference(value, target)}"
        sizes = (
            "its class's arguments"
            if name.startswith(FOREIGN)
            else "network.encoder: embed_dim, heads, window, patch; otherwise network's channels, blocks, "
            "growth, stem, classifier_input"
        )
        raise WeightsError(
            f"{source} has shape {_shape(value)}, but the network's '{name}' needs {_shape(target)}. Give "
            f"the experiment the file's sizes ({sizes}), or choose a file of this network's size."
        )
    if not torch.isfinite(value).all():
        raise WeightsError(
            f"{source} holds NaN or infinite values. Use a checkpoint from before the training diverged."
        )
    return value, remark


def _is_of_a_head(name: str) -> bool:
    """Whether a weight has the size of the question: the last layer of a head, or anything of a network of
    others, whose heads are not told from the rest."""
    if name.startswith(FOREIGN):
        return True
    _, head, rest = f".{name}".rpartition(".heads.")
    return bool(head) and (rest.count(".") == 1 or ".final.head." in rest)


def _difference(value: Tensor, target: Tensor) -> str:
    if value.shape[1:] == target.shape[1:]:
        return f"the file has {value.shape[0]} outputs and the network {target.shape[0]}"
    return f"the file has the shape {_shape(value)} and the network {_shape(target)}"


def _same_but_channels(value: Tensor, target: Tensor) -> bool:
    return (
        value.ndim == 4
        and value.shape[1] != target.shape[1]
        and ((value.shape[0], *value.shape[2:]) == (target.shape[0], *target.shape[2:]))
    )


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
