"""The engines of `threefold predict --engine` against PyTorch: a Swin-Unet (96, [2,2,2,2]) and a cascade.

    python benchmarks/engines.py [--rounds 5] [--threads 2]

All are in one process with a tuned allocation and take turns, one pass each, round after round; medians.
Plain is PyTorch without this program's fast paths, ours with them. The networks have random weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from _machine import machine
from threefold.allocation import tune_allocation
from threefold.core.outputs import Head
from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec, SwinSpec, SwinUnetSpec
from threefold.interchange.engines import Engine, EngineNetwork, format_of, write_network
from threefold.networks.cascade import Cascade
from threefold.networks.cpu import cpu_kernels
from threefold.networks.swin_unet import SwinUnet

ENGINES: tuple[Engine, ...] = ("onnx", "openvino", "openvino-bf16")


def swin_unet() -> nn.Module:
    spec = SwinUnetSpec(encoder=SwinSpec(size="public", drop_path=0.0))
    return SwinUnet(spec, in_channels=3, heads={"segmentation": Head("dense", 2)})


def cascade() -> nn.Module:
    spec = CascadeSpec(
        segmenter=AttentionUnetSpec(channels=(16, 32, 64, 128, 256)), classifier=DenseNetSpec()
    )
    heads = {"segmentation": Head("dense", 12), "classification": Head("pooled", 3)}
    return Cascade(spec, in_channels=1, heads=heads)


CASES: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], tuple[int, ...]]] = {
    "Swin-Unet 224": (swin_unet, 3, (224, 224), (1, 2, 8)),
    "cascade 64^3": (cascade, 1, (64, 64, 64), (1,)),
}


def times(passes: dict[str, Callable[[Tensor], object]], image: Tensor, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each pass."""
    found: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        for name, run in passes.items():
            start = time.perf_counter()
            run(image)
            if number:  # the first round warms up
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Print a table of milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    tune_allocation()
    torch.set_num_threads(given.threads)
    print(f"{machine()}, {given.threads} threads, medians of {given.rounds} rounds\n")
    names = ["plain", "ours", *ENGINES]
    print(f"| ms | batch | {' | '.join(names)} | {' | '.join(f'plain / {name}' for name in names[1:])} |")
    print("| --- " * (2 + len(names) + len(names) - 1) + "|")
    for title, (make, channels, size, batches) in CASES.items():
        torch.manual_seed(0)
        network = make().eval()
        with tempfile.TemporaryDirectory() as folder:
            engines: dict[str, nn.Module] = {}
            for engine in ENGINES:
                own = Path(folder) / engine
                own.mkdir()
                outputs = write_network(network, own, format_of(engine), channels=channels, size=size)
                engines[engine] = EngineNetwork(own, engine, outputs, network)

            def ours(image: Tensor, network: nn.Module = network) -> object:
                with cpu_kernels(network):
                    return network(image)

            passes: dict[str, Callable[[Tensor], object]] = {"plain": network, "ours": ours, **engines}
            for batch in batches:
                with torch.inference_mode():
                    found = times(passes, torch.rand(batch, channels, *size), given.rounds)
                ratios = [found["plain"] / found[name] for name in names[1:]]
                cells = [f"{found[name]:.0f}" for name in names] + [f"{ratio:.2f}" for ratio in ratios]
                print(f"| {title} | {batch} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
