"""Training VoxelMorph on pairs of an atlas and a case; it goes on where it was stopped, to the bit."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from threefold.atlases.refinement import Pair, registration_loss
from threefold.atlases.spec import PropagationSpec
from threefold.checksums import note_unchecked, seal_archive, verify_archive, verify_tensors
from threefold.errors import TrainingError, WeightsError
from threefold.networks.cpu import cpu_kernels
from threefold.networks.registration import VoxelMorph, VoxelMorphUnet
from threefold.run import write_atomically

_LARGEST_GRADIENT = 0.1
"""Norm over all weights."""


def build_registration(spec: PropagationSpec) -> VoxelMorph:
    """Return the network of a propagation: with the weights that `spec.weights` names, else new ones.

    Raises:
        WeightsError: naming the file, if it can't be read or is of other channels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        unet = VoxelMorphUnet(spec.channels, spec.final_channels)
    network = VoxelMorph(unet, spec.integration_steps if spec.diffeomorphic else 0)
    if spec.weights is None:
        return network
    path = Path(spec.weights)
    try:
        verify_tensors(path, WeightsError, "Copy the file again from where it is whole.")
        state = load_file(path)
    except (WeightsError, MemoryError):
        raise
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: can't be read as safetensors ({error}).") from error
    except Exception as error:  # safetensors' own error class is not public
        raise WeightsError(f"{path}: not a whole safetensors file ({error}).") from error
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: does not fit channels {list(spec.channels)} and final_channels "
            f"{list(spec.final_channels)}. Give the channels of the propagation that it comes from. ({error})"
        ) from None
    return network


def train_registration(
    pairs: Sequence[Pair],
    spec: PropagationSpec,
    checkpoint: Path,
    step: Callable[[], None],
) -> VoxelMorph:
    """Train the network, one pair at a time, in a new order each epoch.

    Args:
        pairs: on their own grids, which may differ.
        spec: epochs, loss, learning rate, seed.
        checkpoint: written after each epoch; where it exists, training goes on from it.
        step: called after each pair, also for those of the epochs that are in the checkpoint.

    Raises:
        TrainingError: the loss is not finite.
        WeightsError: the checkpoint is damaged.
    """
    network = build_registration(spec).to(pairs[0].fixed.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=spec.learning_rate)
    first = _resume(checkpoint, network, optimiser)
    for _ in range(first * len(pairs)):
        step()
    network.train()
    for epoch in range(first, spec.epochs):
        for number in _order(len(pairs), spec.seed, epoch):
            optimiser.zero_grad()
            loss = _loss(network, pairs[number], spec)
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"registration network: the loss is {float(loss.detach())} in epoch {epoch + 1}. Lower "
                    f"learning_rate (now {spec.learning_rate:g}) or raise smoothness_weight."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            # A single hard pair can otherwise throw the network to where all fields fold.
            torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            step()
        _save(checkpoint, network, optimiser, epoch + 1)
    return network.eval()


@torch.no_grad()
def predict_field(network: VoxelMorph, pair: Pair, spec: PropagationSpec) -> Tensor:
    """Return what the network predicts for a pair: (1, 3, *S) velocity or displacement, voxels."""
    with cpu_kernels(network), _precision(pair.fixed, spec):
        predicted: Tensor = network.unet(torch.cat((pair.moving, pair.fixed), dim=1))
    return predicted.float().contiguous()


def _loss(network: VoxelMorph, pair: Pair, spec: PropagationSpec) -> Tensor:
    with cpu_kernels(network), _precision(pair.fixed, spec):
        found = network(pair.moving, pair.fixed)
    return registration_loss(pair, found.displacement, found.predicted, spec)


def _precision(values: Tensor, spec: PropagationSpec) -> torch.autocast:
    return torch.autocast(values.device.type, torch.bfloat16, enabled=spec.precision == "bf16")


def _order(count: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return [int(number) for number in torch.randperm(count, generator=generator)]


def _save(path: Path, network: VoxelMorph, optimiser: torch.optim.Optimizer, epoch: int) -> None:
    stream = io.BytesIO()
    state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "epoch": epoch}
    torch.save(state, stream)
    write_atomically(path, seal_archive(stream.getvalue()))


def _resume(path: Path, network: VoxelMorph, optimiser: torch.optim.Optimizer) -> int:
    """Load a checkpoint and return how many epochs are done."""
    if not path.exists():
        return 0
    try:
        if not verify_archive(path, WeightsError, "Delete it; training then starts anew."):
            note_unchecked(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        return int(state["epoch"])
    except (WeightsError, MemoryError):
        raise
    except Exception as error:
        raise WeightsError(f"{path}: is damaged ({error}). Delete it; training then starts anew.") from error
