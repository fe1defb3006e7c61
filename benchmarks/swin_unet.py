"""Swin-Unet (96, [2,2,2,2], 224x224): this program against the published code and the machine's own peak.

    python benchmarks/swin_unet.py --published DIR     # DIR: a checkout of HuCaoFighting/Swin-Unet
    python benchmarks/swin_unet.py                     # our own numbers only

Every contestant lives in a process of its own, because the allocator's settings belong to a process, and they
take turns: one call each, round after round, so that whatever else the machine does meets all alike. Medians
are reported. The published code is imported from DIR as it is, with stand-ins for the helpers it takes from
timm and einops; nothing of it is part of this project.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _machine import machine
from _turns import Turns, ask_once, matrix_peaks, now, peak_memory, serve
from threefold.allocation import tune_allocation
from threefold.core.outputs import Head
from threefold.experiment import SwinSpec, SwinUnetSpec
from threefold.networks.cpu import cpu_kernels
from threefold.networks.pretrained import load_pretrained
from threefold.networks.swin_unet import SwinUnet

ROOT = Path(__file__).parents[1]
LABELS = 2
PRECISIONS = ["fp32", "bf16"]
GOALS = {("forward", "fp32"): 2.5, ("forward", "bf16"): 5.0, ("step", "fp32"): 1.8, ("step", "bf16"): 3.2}
ROLES = {
    "published": "published, default allocation",
    "published-tuned": "published, tuned allocation",
    "ours": "ours (tunes the allocation itself)",
    "ours-default": "ours, default allocation",
    "ours-compiled": "ours, compiled",
}


# --- the contestants -------------------------------------------------------------------------------------


def our_network() -> SwinUnet:
    spec = SwinUnetSpec(encoder=SwinSpec(size="public", drop_path=0.1))
    return SwinUnet(spec, in_channels=3, heads={"segmentation": Head("dense", LABELS)})


def published_network(folder: Path) -> nn.Module:
    _stand_in_for_helpers()
    sys.path.insert(0, str(folder / "networks"))
    module = __import__("swin_transformer_unet_skip_expand_decoder_sys")
    network: nn.Module = module.SwinTransformerSys(
        img_size=224, num_classes=LABELS, depths=[2, 2, 2, 2], drop_path_rate=0.1
    )
    return network


def _stand_in_for_helpers() -> None:
    class DropPath(nn.Module):
        def __init__(self, rate: float) -> None:
            super().__init__()
            self.keep = 1 - rate

        def forward(self, values: Tensor) -> Tensor:
            if not self.training:
                return values
            shape = (values.shape[0],) + (1,) * (values.ndim - 1)
            return values * values.new_empty(shape).bernoulli_(self.keep).div_(self.keep)

    def rearrange(values: Tensor, _pattern: str, p1: int, p2: int, c: int) -> Tensor:
        """Stand in for 'b h w (p1 p2 c) -> b (h p1) (w p2) c', the one pattern used."""
        b, h, w, _ = values.shape
        return values.view(b, h, w, p1, p2, c).transpose(2, 3).reshape(b, h * p1, w * p2, c)

    layers = types.ModuleType("timm.models.layers")
    layers.DropPath = DropPath  # type: ignore[attr-defined]
    layers.to_2tuple = lambda value: value if isinstance(value, tuple) else (value, value)  # type: ignore[attr-defined]
    layers.trunc_normal_ = nn.init.trunc_normal_  # type: ignore[attr-defined]
    einops = types.ModuleType("einops")
    einops.rearrange = rearrange  # type: ignore[attr-defined]
    sys.modules.update(
        {
            "timm": types.ModuleType("timm"),
            "timm.models": types.ModuleType("timm.models"),
            "timm.models.layers": layers,
            "einops": einops,
        }
    )


class Contestant:
    """A network that can be timed."""

    def __init__(self, network: Callable[[Tensor], Any], parameters: list[nn.Parameter]) -> None:
        self.network = network
        self.optimiser = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, weight_decay=1e-4)
        self.module = network if isinstance(network, nn.Module) else None

    def logits(self, image: Tensor) -> Tensor:
        outputs = self.network(image)
        logits: Tensor = outputs if isinstance(outputs, Tensor) else outputs.heads["segmentation"]
        return logits

    def run(self, kind: str, precision: str, batch: int) -> float:
        """Return the seconds of a forward pass (no gradients) or a whole training step."""
        generator = torch.Generator().manual_seed(batch)
        image = torch.randn(batch, 3, 224, 224, generator=generator)
        target = torch.randint(LABELS, (batch, 224, 224), generator=generator)
        assert self.module is not None
        self.module.train(kind == "step")
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with cpu_kernels(self.module):
            start = now()
            if kind == "forward":
                with torch.inference_mode(), autocast:
                    self.logits(image)
            else:
                self.optimiser.zero_grad()
                with autocast:
                    loss = F.cross_entropy(self.logits(image).float(), target)
                loss.backward()
                self.optimiser.step()
            return now() - start


def contestant(role: str, published: Path | None) -> Contestant:
    if role in ("ours", "ours-compiled", "published-tuned"):
        tune_allocation()
    torch.manual_seed(0)
    if role.startswith("published"):
        assert published is not None
        network: nn.Module = published_network(published)
    else:
        network = our_network()
    parameters = list(network.parameters())
    if role == "ours-compiled":
        network = torch.compile(network)  # type: ignore[assignment]
    return Contestant(network, parameters)


# --- what a child process answers ------------------------------------------------------------------------


def measure_memory(role: str, published: Path | None, precision: str, batch: int) -> None:
    """Print the peak resident memory of three training steps, MiB."""
    answers, sys.stdout = sys.stdout, sys.stderr
    one = contestant(role, published)
    for _ in range(3):
        one.run("step", precision, batch)
    print(json.dumps(peak_memory()), file=answers)


def compare(published: Path) -> None:
    """Print how far our outputs and gradients are from the published ones, with the same weights."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    theirs, ours = published_network(published).eval(), our_network().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(theirs.state_dict(), path)
        report = load_pretrained(ours, path)
    assert not report.missing
    assert not report.unused
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def pass_through(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
        logits, gradients = [], []
        for network in (theirs, ours):
            network.to(dtype)
            one = Contestant(network, list(network.parameters()))
            entry = image.to(dtype, copy=True).requires_grad_()
            with cpu_kernels(network):
                out = one.logits(entry)
            gradients.append(torch.autograd.grad(out.square().mean(), entry)[0])
            logits.append(out.detach())
        return logits, gradients

    single, _ = pass_through(torch.float32)
    logits, gradients = pass_through(torch.float64)
    error = {
        "logits, float32, largest difference": (single[0] - single[1]).abs().max().item(),
        "logits, float64, largest difference": (logits[0] - logits[1]).abs().max().item(),
        "gradient, float64, relative": ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item(),
    }
    print(json.dumps(error), file=answers)


# --- the race --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """Median seconds by (kind, precision, batch) and role."""

    seconds: dict[tuple[str, str, int], dict[str, float]]
    memory: dict[tuple[str, int], dict[str, float]]
    peaks: dict[str, float]  # GFLOP/s of a large matrix product
    flops: float  # GFLOP of one case's forward pass
    errors: dict[str, float]


def child(arguments: argparse.Namespace, *options: str) -> list[str]:
    command = [sys.executable, __file__, "--threads", str(arguments.threads), *options]
    return command + (["--published", str(arguments.published)] if arguments.published else [])


def race(arguments: argparse.Namespace) -> Race:
    roles = [role for role in ROLES if arguments.published or not role.startswith("published")]
    roles = [role for role in roles if arguments.compile or role != "ours-compiled"]
    seconds = {}
    with Turns({role: child(arguments, "--serve", role) for role in roles}) as turns:
        for kind, precision in GOALS:
            for batch in arguments.batches if precision in arguments.precisions else ():
                times = turns.medians(arguments.rounds, kind=kind, precision=precision, batch=batch)
                seconds[kind, precision, batch] = times
                line = ", ".join(f"{role} {1000 * t:.0f} ms" for role, t in times.items())
                print(f"{kind} {precision} batch {batch}: {line}", flush=True)
    memory = {
        (precision, batch): {
            role: ask_once(child(arguments, "--memory", role, precision, str(batch)))
            for role in roles
            if role != "ours-compiled"
        }
        for precision in arguments.precisions
        for batch in arguments.batches
    }
    errors = ask_once(child(arguments, "--compare")) if arguments.published else {}
    return Race(seconds, memory, matrix_peaks(arguments.precisions), count_flops(), errors)


def count_flops() -> float:
    """GFLOP of one case's forward pass, by the plain formulas (two per multiplication and addition)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        our_network().double().eval()(torch.zeros(1, 3, 224, 224, dtype=torch.float64))
    return float(counter.get_total_flops() / 1e9)


# --- the table -------------------------------------------------------------------------------------------


def as_markdown(result: Race, arguments: argparse.Namespace) -> str:
    command = "python benchmarks/swin_unet.py" + (" --published DIR" if arguments.published else "")
    batches = " ".join(str(batch) for batch in arguments.batches)
    command += f" --rounds {arguments.rounds} --batches {batches} --threads {arguments.threads}"
    if arguments.precisions != PRECISIONS:
        command += " --precisions " + " ".join(arguments.precisions)
    command += " --compile" if arguments.compile else ""
    lines = [
        "# Speed of Swin-Unet",
        "",
        "Public size (96, [2, 2, 2, 2]), 224x224, 3 channels, 2 labels. A step is forward, cross-entropy, "
        "backward and SGD. bf16 is autocast. Each contestant in a process of its own, taking turns; medians "
        f"of {arguments.rounds} rounds" + (", the processor's time." if arguments.threads == 1 else "."),
        "",
        f"`{command}`, {datetime.date.today().isoformat()}, {machine()}, {arguments.threads} threads, "
        f"PyTorch {torch.__version__}; a 2048 matrix product reaches "
        + " and ".join(f"{speed:.0f} GFLOP/s in {name}" for name, speed in result.peaks.items())
        + ".",
        "",
        *_time_table(result),
        "",
        "Share of peak: the forward pass's products alone "
        f"({result.flops:.1f} GFLOP a case) at the speed of the large product, against the time measured.",
    ]
    if any("published" in times for times in result.seconds.values()):
        lines += ["", "## Ratios", "", *_ratio_table(result)]
    lines += ["", "## Peak memory of a training step (MiB, whole process)", "", *_memory_table(result)]
    if result.errors:
        lines += ["", "## Agreement with the published code (same weights)", ""]
        lines += [f"- {name}: {value:.1e}" for name, value in result.errors.items()]
    return "\n".join(lines) + "\n"


def _time_table(result: Race) -> list[str]:
    roles = list(next(iter(result.seconds.values())))
    rows = ["| ms | " + " | ".join(ROLES[role] for role in roles) + " | ours: share of peak |"]
    rows.append("| --- |" + " ---: |" * (len(roles) + 1))
    for (kind, precision, batch), times in result.seconds.items():
        share = result.flops * batch / result.peaks[precision] / times["ours"]
        cells = [f"{1000 * times[role]:.0f}" for role in roles]
        cells.append(f"{share:.0%}" if kind == "forward" else "")
        rows.append(f"| {kind} {precision}, batch {batch} | " + " | ".join(cells) + " |")
    return rows


def _ratio_table(result: Race) -> list[str]:
    """Ratios to the published code in fp32, as the goals are, and to itself in the same precision."""
    rows = [
        "| ours is faster by | goal | than published fp32, default allocation | than published fp32, tuned | "
        "than published in the same precision, default | the same, tuned | "
        "ours compiled, than published fp32 |",
        "| --- |" + " ---: |" * 6,
    ]
    for (kind, precision, batch), times in result.seconds.items():
        full = result.seconds[kind, "fp32", batch]
        ours = times["ours"]
        ratios = [full["published"], full["published-tuned"], times["published"], times["published-tuned"]]
        cells = [f"{GOALS[kind, precision]}", *(f"{ratio / ours:.2f}" for ratio in ratios)]
        cells.append(f"{full['published'] / times['ours-compiled']:.2f}" if "ours-compiled" in times else "")
        rows.append(f"| {kind} {precision}, batch {batch} | " + " | ".join(cells) + " |")
    return rows


def _memory_table(result: Race) -> list[str]:
    roles = list(next(iter(result.memory.values())))
    rows = ["| | " + " | ".join(ROLES[role] for role in roles) + " |", "| --- |" + " ---: |" * len(roles)]
    for (precision, batch), peaks in result.memory.items():
        rows.append(f"| {precision}, batch {batch} | " + " | ".join(f"{peaks[r]:.0f}" for r in roles) + " |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--published", type=Path, help="folder of the published Swin-Unet")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--precisions", choices=PRECISIONS, nargs="+", default=PRECISIONS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="our network compiled too (minutes)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/speed/swin-unet.md")
    parser.add_argument("--serve", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--compare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve(lambda: contestant(arguments.serve, arguments.published).run)
    elif arguments.memory:
        role, precision, batch = arguments.memory
        measure_memory(role, arguments.published, precision, int(batch))
    elif arguments.compare:
        compare(arguments.published)
    else:
        table = as_markdown(race(arguments), arguments)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table)
        print(f"\n{table}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
