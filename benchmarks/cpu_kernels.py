"""Each CPU fast path against the plain formula it stands for: what `networks/processor.py` chooses by.

    python benchmarks/cpu_kernels.py                                                          # this processor
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/cpu_kernels.py         # held to AVX2

Prints the milliseconds of a pass without gradients and of one forward and backward, in float32, and how many
times as fast as the plain formula each is. Both take turns in one process; with one thread (the default) by
the processor's time, which other work on the machine hardly changes.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from _machine import machine
from _turns import now
from threefold.networks import kernels, kernels3d
from threefold.networks.attention_unet import ConvUnit, DecoderLevel
from threefold.networks.densenet import DenseBlock
from threefold.networks.windows import Order, Tokens, window_order


class Transition(nn.Module):
    """The transition between two dense blocks, which is a function only, as a module."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        return kernels3d.dense_transition(values, self.weight)


# batch, tokens, channels, heads of a Swin stage.
STAGES = {"demo": (4, 784, 32, 2), "public": (2, 3136, 96, 3), "public, third stage": (2, 196, 384, 12)}
VOLUMES: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "convolution 32>32, 32^3": (lambda: ConvUnit(3, 32, 32, dropout=0.2), [(1, 32, 32, 32, 32)]),
    "convolution 64>64, 16^3": (lambda: ConvUnit(3, 64, 64, dropout=0.2), [(1, 64, 16, 16, 16)]),
    "strided 32>64, 32^3": (lambda: ConvUnit(3, 32, 64, stride=2, dropout=0.2), [(1, 32, 32, 32, 32)]),
    "doubling 64>32, 16^3": (lambda: ConvUnit(3, 64, 32, dropout=0.0, up=True), [(1, 64, 16, 16, 16)]),
    "gated merge 32, 32^3": (
        lambda: DecoderLevel(3, 64, 32, 0.2), [(1, 64, 16, 16, 16), (1, 32, 32, 32, 32)]
    ),
    "dense block 64, 8^3": (lambda: DenseBlock(3, 64, 6, 32, 0.2), [(1, 64, 8, 8, 8)]),
    "transition 64>32, 24^3": (lambda: Transition(64, 32), [(1, 64, 24, 24, 24)]),
}  # fmt: skip


def swin_kernels(
    batch: int, tokens: int, width: int, heads: int
) -> Iterator[tuple[str, Callable[..., Tensor], list[Tensor]]]:
    """Yield the name, the kernel and its tensors, all of which want gradients."""
    values, rest = torch.randn(batch, tokens, width), torch.randn(batch, tokens, width)
    layer = [torch.randn(4 * width, width), torch.randn(4 * width)]
    second = [torch.randn(width, 4 * width), torch.randn(width)]
    qkv, windows = torch.randn(batch, tokens // 49, 49, 3 * width), tokens // 49
    yield "linear", kernels.linear, [values, *layer]
    yield (
        "MLP",
        lambda x, r, w, b, v, c: kernels.mlp(x, (w, b), (v, c), r, None),
        [values, rest, *layer, *second],
    )
    yield (
        "attention",
        lambda x, b: kernels.window_attention(x, b, heads),
        [qkv, torch.randn(1, heads, 49, 49)],
    )
    yield (
        "attention, masked",
        lambda x, b: kernels.window_attention(x, b, heads),
        [qkv, torch.randn(windows, heads, 49, 49)],
    )
    if tokens > 196:
        weights = [
            torch.randn(16 * width, width),
            torch.randn(width),
            torch.randn(width),
            torch.randn(2, width),
        ]
        yield "expansion head", kernels.expansion_head, [values, *weights]
    side = int(tokens**0.5)
    order = window_order((side, side), 7, shifted=True)
    yield "gather", lambda x: Tokens(x, Order((side, side))).to(order).values, [values]


def race(trained: Callable[[], object], inferred: Callable[[], object], rounds: int) -> list[str]:
    """Return cells of a table: ours, plain and the ratio, without and with gradients."""
    cells = []
    for call in (inferred, trained):
        times: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds + 1):
            for plain in (False, True) if number % 2 else (True, False):
                kernels._PLAIN = plain
                start = now()
                call()
                if number:  # the first round warms up
                    times[plain].append(now() - start)
        kernels._PLAIN = False
        ours, plain_time = (statistics.median(times[plain]) for plain in (False, True))
        cells += [f"{1e3 * ours:.1f}", f"{1e3 * plain_time:.1f}", f"{plain_time / ours:.2f}"]
    return cells


def rows(rounds: int) -> Iterator[list[str]]:
    for stage, sizes in STAGES.items():
        for name, kernel, tensors in swin_kernels(*sizes):
            leaves = [tensor.clone().requires_grad_() for tensor in tensors]
            gradient = torch.randn_like(kernel(*leaves))

            def train(kernel=kernel, leaves=leaves, gradient=gradient) -> None:  # type: ignore[no-untyped-def]
                torch.autograd.grad(kernel(*leaves), leaves, gradient)

            def infer(kernel=kernel, tensors=tensors) -> None:  # type: ignore[no-untyped-def]
                with torch.inference_mode():
                    kernel(*tensors)

            yield [f"{stage}: {name}", *race(train, infer, rounds)]
    for name, (make, shapes) in VOLUMES.items():
        part = make()
        volumes = [torch.randn(shape) for shape in shapes]

        def of_volumes(part=part, volumes=volumes) -> Tensor:  # type: ignore[no-untyped-def]
            out: Tensor = part.train(torch.is_grad_enabled())(*map(kernels3d.as_channels_last, volumes))
            return out

        def train_volumes(call=of_volumes, part=part) -> None:  # type: ignore[no-untyped-def]
            torch.autograd.grad(call().square().sum(), list(part.parameters()))

        def infer_volumes(call=of_volumes) -> None:  # type: ignore[no-untyped-def]
            with torch.inference_mode():
                call()

        yield [name, *race(train_volumes, infer_volumes, rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kernels.tune_allocation()
    print(f"{machine()}, {arguments.threads} thread(s), PyTorch {torch.__version__}; milliseconds, float32")
    print("| | without gradients: ours | plain | ratio | with gradients: ours | plain | ratio |")
    print("| --- |" + " ---: |" * 6)
    for row in rows(arguments.rounds):
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
