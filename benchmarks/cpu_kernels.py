"""Each module with a CPU fast path, fast and plain: what `networks/cpu` is kept for.

    python benchmarks/cpu_kernels.py                                                          # this processor
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/cpu_kernels.py         # held to AVX2

Prints the milliseconds of a pass without gradients and of one forward and backward, in float32, and how many
times as fast as the plain module each is, with tuned allocation both. They take turns in one process; with
one thread (the default) by the processor's time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from _machine import machine
from _turns import now
from threefold.allocation import tune_allocation
from threefold.experiment import DenseNetSpec, SwinSpec
from threefold.networks.attention_unet import ConvUnit, DecoderLevel, Head3d
from threefold.networks.cpu import cpu_kernels
from threefold.networks.densenet import DenseBlock, DenseFeatures
from threefold.networks.registration import VoxelMorphUnet
from threefold.networks.swin import SwinEncoder, SwinStage
from threefold.networks.swin_unet import DecoderStage, FinalExpanding

SWIN = {
    "demo": SwinSpec(size="mini", embed_dim=32, depths=(2, 2), heads=(2, 4), drop_path=0.0),
    "public": SwinSpec(size="public", drop_path=0.0),
}


def swin_modules() -> Iterator[tuple[str, nn.Module, list[tuple[int, ...]]]]:
    """Yield what a Swin-Unet is made of: name, module and the sizes of its inputs."""
    for name, batch, side in (("demo", 4, 28), ("public", 2, 56)):
        spec = SWIN[name]
        width, heads = spec.embed_dim, spec.heads
        yield f"{name}: encoder", SwinEncoder(spec, 1), [(batch, 1, 4 * side, 4 * side)]
        grid = (batch, side, side, width)
        yield f"{name}: first stage", SwinStage(width, heads[0], spec, (0.0, 0.0), merge=True), [grid]
        yield (
            f"{name}: decoder stage",
            DecoderStage(spec, 0),
            [(batch, side // 2, side // 2, 2 * width), grid],
        )
        yield f"{name}: final expansion", FinalExpanding(width, spec.patch, 2), [grid]
    third = SwinStage(384, 12, SWIN["public"], (0.0, 0.0), merge=True)
    yield "public: third stage", third, [(2, 14, 14, 384)]


def volume_modules() -> Iterator[tuple[str, nn.Module, list[tuple[int, ...]]]]:
    """Yield what the networks of convolutions are made of."""
    yield "convolution 32>32, 32^3", ConvUnit(3, 32, 32, dropout=0.2), [(1, 32, 32, 32, 32)]
    yield "convolution 64>64, 16^3", ConvUnit(3, 64, 64, dropout=0.2), [(1, 64, 16, 16, 16)]
    yield "strided 32>64, 32^3", ConvUnit(3, 32, 64, stride=2, dropout=0.2), [(1, 32, 32, 32, 32)]
    yield "doubling 64>32, 16^3", ConvUnit(3, 64, 32, dropout=0.0, up=True), [(1, 64, 16, 16, 16)]
    yield "decoder level 32, 32^3", DecoderLevel(3, 64, 32, 0.2), [(1, 64, 16, 16, 16), (1, 32, 32, 32, 32)]
    yield "head 32>12, 48^3", Head3d(32, 12), [(1, 32, 48, 48, 48)]
    yield "dense block 64, 8^3", DenseBlock(3, 64, 6, 32, 0.2), [(1, 64, 8, 8, 8)]
    yield "DenseNet121, 48^3", DenseFeatures(DenseNetSpec(), 12, 3), [(1, 12, 48, 48, 48)]
    yield "VoxelMorph, 48^3", VoxelMorphUnet(), [(1, 2, 48, 48, 48)]


def _numbers(output: object) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output.pooled  # type: ignore[attr-defined]
    return found


def race(module: nn.Module, values: list[Tensor], rounds: int) -> list[str]:
    """Return cells of a table: fast, plain and the ratio, without and with gradients."""
    modules = {"fast": module, "plain": copy.deepcopy(module)}
    laid = values
    if values[0].ndim > 3 and not isinstance(module, SwinEncoder | SwinStage | DecoderStage | FinalExpanding):
        layout = torch.channels_last_3d if values[0].ndim == 5 else torch.channels_last
        laid = [each.contiguous(memory_format=layout) for each in values]
    # Each way is given its values as the rest of its network leaves them.
    given = {"fast": laid, "plain": values}

    def infer(way: str) -> None:
        with torch.inference_mode():
            modules[way].eval()(*given[way])

    def train(way: str) -> None:
        leaves = [each.detach().requires_grad_() for each in given[way]]
        out = _numbers(modules[way].train()(*leaves))
        torch.autograd.grad(out.square().sum(), [*leaves, *modules[way].parameters()])

    cells = []
    with cpu_kernels(modules["fast"]):
        for call in (infer, train):
            times: dict[str, list[float]] = {"fast": [], "plain": []}
            for number in range(rounds + 1):
                for way in ("fast", "plain") if number % 2 else ("plain", "fast"):
                    start = now()
                    call(way)
                    if number:  # the first round warms up
                        times[way].append(now() - start)
            fast, plain = (statistics.median(times[way]) for way in ("fast", "plain"))
            cells += [f"{1e3 * fast:.1f}", f"{1e3 * plain:.1f}", f"{plain / fast:.2f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tune_allocation()
    torch.manual_seed(0)
    print(f"{machine()}, {arguments.threads} thread(s), PyTorch {torch.__version__}; milliseconds, float32")
    print("| | without gradients: fast | plain | ratio | with gradients: fast | plain | ratio |")
    print("| --- |" + " ---: |" * 6)
    for modules in (swin_modules, volume_modules):
        for name, module, sizes in modules():
            values = [torch.randn(size) for size in sizes]
            print("| " + " | ".join([name, *race(module, values, arguments.rounds)]) + " |", flush=True)


if __name__ == "__main__":
    main()
