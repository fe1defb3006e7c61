"""A training step of VoxelMorph at 96^3: this program against MONAI's, side by side in one process.

    python benchmarks/registration.py [--rounds N] [--size 96]

A step is forward (with the integration of the velocity in 7 squarings), local normalised cross-correlation in
windows of 9, smoothness, backward and Adam; both networks have the same weights and get the same volumes. The
contestants take turns in one process, once with the allocator's own settings and once, in a second process,
with tuned ones, which belong to a process. Medians are reported.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from _machine import machine
from threefold.allocation import tune_allocation
from threefold.networks.cpu import cpu_kernels
from threefold.networks.registration import VoxelMorph, VoxelMorphUnet
from threefold.networks.registration_losses import LocalSums, diffusion, local_correlation
from threefold.networks.warping import integrate, warp

ROOT = Path(__file__).parents[1]
GOALS = {"fp32": 1.8, "bf16": 3.0}
WINDOW = 9
STEPS = 7


class Race:
    """Both contestants on the same volumes."""

    def __init__(self, size: int) -> None:
        warnings.simplefilter("ignore")  # MONAI's own
        from monai.losses import DiffusionLoss, LocalNormalizedCrossCorrelationLoss
        from monai.networks.nets import VoxelMorph as Published

        torch.manual_seed(0)
        self.theirs = Published(integration_steps=STEPS)
        self.ours = VoxelMorph(VoxelMorphUnet(), STEPS)
        unet = self.ours.unet
        layers = [*unet.down, unet.bottom, *reversed(unet.up), *unet.final, unet.out]
        published = [module for module in self.theirs.modules() if isinstance(module, nn.Conv3d)]
        for mine, other in zip(layers, published, strict=True):
            mine.load_state_dict(other.state_dict())
        self.optimisers = {
            "MONAI": torch.optim.Adam(self.theirs.parameters(), 1e-4),
            "ours": torch.optim.Adam(self.ours.parameters(), 1e-4),
        }
        self.correlation = LocalNormalizedCrossCorrelationLoss(kernel_size=WINDOW)
        self.diffusion = DiffusionLoss()
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(2, 1, *(size // 8,) * 3, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(size,) * 3, mode="trilinear", align_corners=True)
        self.moving, self.fixed = smooth[:, None].unbind()

    def disagreement(self) -> dict[str, float]:
        """Return the largest differences of outputs, losses and a gradient in float64 at a quarter."""
        small = [nn.functional.avg_pool3d(values, 4).double() for values in (self.moving, self.fixed)]
        theirs, ours = self.theirs.double(), self.ours.double()
        warped, displacement = theirs(*small)
        found = ours(*small)
        loss = self.correlation(warped, small[1])
        our_loss = -local_correlation(found.warped, LocalSums.of(small[1], WINDOW))
        gradients = [
            torch.autograd.grad(one, next(iter(network.parameters())))[0]
            for one, network in ((loss, theirs), (our_loss, ours))
        ]
        theirs.float()
        ours.float()
        return {
            "displacement, voxels": float((found.displacement - displacement).abs().max()),
            "loss": abs(float(loss) - float(our_loss)),
            "gradient of the first layer, relative": float(
                (gradients[0] - gradients[1]).norm() / gradients[0].norm()
            ),
        }

    def step(self, who: str, precision: str) -> None:
        optimiser = self.optimisers[who]
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            if who == "MONAI":
                warped, field = self.theirs(self.moving, self.fixed)
            else:
                with cpu_kernels(self.ours):
                    found = self.ours(self.moving, self.fixed)
        if who == "MONAI":
            loss = self.correlation(warped.float(), self.fixed) + self.diffusion(field.float())
        else:
            target = LocalSums.of(self.fixed, WINDOW)
            loss = diffusion(found.displacement) - local_correlation(found.warped, target)
        loss.backward()
        optimiser.step()

    def parts(self) -> dict[str, dict[str, Callable[[], Any]]]:
        """Return the parts of a step, forward and backward, in fp32."""
        pair = torch.cat((self.moving, self.fixed), 1)
        field = 0.5 * torch.randn(1, 3, *self.fixed.shape[2:], generator=torch.Generator().manual_seed(1))
        field.requires_grad_()
        image = self.moving.clone().requires_grad_()
        target = self.fixed

        def followed(make: Callable[[], Tensor]) -> Callable[[], None]:
            return lambda: make().square().mean().backward()

        def our_unet() -> Tensor:
            with cpu_kernels(self.ours):
                field: Tensor = self.ours.unet(pair)
            return field

        return {
            "U-Net": {
                "MONAI": followed(lambda: self.theirs.backbone(pair)),
                "ours": followed(our_unet),
            },
            "integration": {
                "MONAI": followed(lambda: self.theirs.dvf2ddf(field)),
                "ours": followed(lambda: integrate(field, STEPS)),
            },
            "warp": {
                "MONAI": followed(lambda: self.theirs.warp(image, field)),
                "ours": followed(lambda: warp(image, field)),
            },
            "local correlation": {
                "MONAI": lambda: self.correlation(image, target).backward(),
                "ours": lambda: local_correlation(image, LocalSums.of(target, WINDOW)).backward(),
            },
            "smoothness": {
                "MONAI": lambda: self.diffusion(field).backward(),
                "ours": lambda: diffusion(field).backward(),
            },
        }


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, one call each, round after round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in calls if number % 2 else reversed(calls):
            start = time.perf_counter()
            calls[name]()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(rounds: int, size: int, *, tuned: bool) -> dict[str, Any]:
    if tuned:
        tune_allocation()
    race = Race(size)
    errors = race.disagreement()
    steps = {
        f"{who} {precision}": lambda who=who, precision=precision: race.step(who, precision)
        for precision in GOALS
        for who in ("MONAI", "ours")
    }
    found: dict[str, Any] = {"steps": take_turns(steps, rounds), "errors": errors}
    if tuned:
        found["parts"] = {name: take_turns(pair, max(rounds // 2, 1)) for name, pair in race.parts().items()}
    return found


def as_markdown(default: dict[str, Any], tuned: dict[str, Any], arguments: argparse.Namespace) -> str:
    lines = [
        "# Speed of registration",
        "",
        f"One training step of VoxelMorph at {arguments.size}^3 and batch 1: forward (integration in {STEPS} "
        f"squarings), local normalised cross-correlation in windows of {WINDOW}, smoothness, backward, Adam. "
        "MONAI: `VoxelMorph`, `LocalNormalizedCrossCorrelationLoss`, `DiffusionLoss`. Same weights, same "
        f"volumes, taking turns in one process; medians of {arguments.rounds} rounds.",
        "",
        f"`python benchmarks/registration.py --rounds {arguments.rounds} --size {arguments.size} --threads "
        f"{arguments.threads}`, {datetime.date.today().isoformat()}, {machine()}, {arguments.threads} "
        f"threads, PyTorch {torch.__version__}.",
        "",
        "| step, ms | MONAI fp32 | MONAI bf16 | ours fp32 | ours bf16 | fp32: times faster (goal 1.8) | "
        "bf16: than MONAI fp32 (goal 3) | bf16: than MONAI bf16 |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, found in (("default allocation", default), ("tuned allocation, both", tuned)):
        steps = found["steps"]
        cells = [f"{1000 * steps[key]:.0f}" for key in ("MONAI fp32", "MONAI bf16", "ours fp32", "ours bf16")]
        cells += [f"{steps[a] / steps[b]:.2f}" for a, b in _RATIOS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    own = [
        default["steps"][a] / tuned["steps"][b] for a, b in _RATIOS
    ]  # as a user meets them: this program tunes, MONAI does not
    lines += [
        "| MONAI default, ours tuned (as each runs by itself) | | | | | "
        + " | ".join(f"{ratio:.2f}" for ratio in own)
        + " |",
        "",
        "| part, forward and backward, fp32, tuned, ms | MONAI | ours | times faster |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, pair in tuned["parts"].items():
        lines.append(
            f"| {name} | {1000 * pair['MONAI']:.0f} | {1000 * pair['ours']:.0f} | "
            f"{pair['MONAI'] / pair['ours']:.1f} |"
        )
    lines += [
        "",
        "What limits ours: the U-Net's convolutions at full resolution (arithmetic), then the lookups of the "
        "integration (memory). The doubled volume is never made: a convolution after nearest-neighbour "
        "doubling is a transposed convolution with 8 instead of 27 products; lookups are dealt out to all "
        "threads; window sums are sums of 1, 2, 4, ... neighbours along one axis after the other, and their "
        "gradient is window sums again. Smoothness: MONAI takes central differences, this program the "
        "differences to the next voxel, as the paper does.",
        "",
        "Agreement in float64, same weights: "
        + ", ".join(f"{name} {value:.1e}" for name, value in tuned["errors"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


_RATIOS = (("MONAI fp32", "ours fp32"), ("MONAI fp32", "ours bf16"), ("MONAI bf16", "ours bf16"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/speed/registration.md")
    parser.add_argument("--measure", choices=["default", "tuned"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        found = measure(arguments.rounds, arguments.size, tuned=arguments.measure == "tuned")
        print(json.dumps(found))
        return
    results = {}
    for allocation in ("default", "tuned"):
        command = [sys.executable, __file__, "--measure", allocation]
        command += [f"--{name}={getattr(arguments, name)}" for name in ("rounds", "size", "threads")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[allocation] = json.loads(done.stdout.splitlines()[-1])
        print(allocation, json.dumps(results[allocation]["steps"]), flush=True)
    table = as_markdown(results["default"], results["tuned"], arguments)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(table)
    print(f"\n{table}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
