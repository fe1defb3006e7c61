"""Checkpoints: atomic, with checksums, and data only (`torch.load(..., weights_only=True)`)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threefold.checksums import note_unchecked, refuse_compressed, seal_archive, verify_archive
from threefold.errors import RunError, WeightsError, some
from threefold.networks.heads import Renamed, today
from threefold.run import write_atomically

FORMAT = 2
_WITHOUT_CHECKSUM = 1
_LOST = "Copy it again from where it is whole, or train anew into another --out."


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint beside `path`, with its checksum, flush it, rename it into place.

    Whenever the process is killed, `path` is the old checkpoint or the new one.

    Args:
        path: in a folder that exists.
        content: tensors, plain numbers, texts, lists and dicts only.

    Raises:
        RunError: if the disk refuses; the checkpoint that was there is untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, seal_archive(buffer.getvalue()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint on the CPU; nothing in it is executed.

    Raises:
        RunError: if there is none, it is damaged, or it is not one of this program's.
    """
    try:
        refuse_compressed(path, RunError)
        checked = verify_archive(path, RunError, _LOST)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path}: no such checkpoint. {_LOST}") from None
    except (RunError, MemoryError):
        raise
    except Exception as problem:  # what torch raises on bytes that are no checkpoint is not documented
        # The first sentence: torch goes on to advise reading the file unsafely.
        reason = (str(problem).splitlines() or [type(problem).__name__])[0].split(". ")[0]
        raise RunError(f"{path}: not a readable checkpoint ({reason}). {_LOST}") from problem
    found = content.get("format") if isinstance(content, dict) else None
    if found not in (FORMAT, _WITHOUT_CHECKSUM):
        raise RunError(f"{path}: expected a checkpoint of format {FORMAT}, found something else. {_LOST}")
    if not checked and found == FORMAT:
        raise RunError(f"{path}: expected a checksum at its end, found none: it was damaged. {_LOST}")
    if not checked:
        note_unchecked(path)
    return dict(content)


def load_network(network: torch.nn.Module, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Give a network the weights of a checkpoint, all of them and no others.

    Raises:
        WeightsError: if they are another network's; the first differing names and shapes are shown.
    """
    own = network.state_dict()
    if isinstance(network, Renamed):
        former = network.former_names()
        state = {today(name, state, former): value for name, value in state.items()}
    differences = [f"{name}: missing in the file" for name in own if name not in state]
    differences += [f"{name}: not in the network" for name in state if name not in own]
    differences += [
        f"{name}: shape {tuple(state[name].shape)} in the file, {tuple(value.shape)} in the network"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if differences:
        shown = some(differences, between="\n  ")
        raise WeightsError(
            f"{source}: the weights are another network's. Expected those of the experiment's network "
            f"({len(own)} tensors), found {len(differences)} differences:\n  {shown}\n"
            "Use the experiment that the weights were trained with (experiment.yaml beside them)."
        )
    network.load_state_dict(dict(state))
