"""The aortic-arch networks at their published size: this program against MONAI's modules as they are.

    python benchmarks/aortic_arch_networks.py [--rounds N]

A joint training step (attention U-Net, softmax, DenseNet121; segmentation losses of labels and of the summed
foreground, 14 times the classifier's cross-entropy; backward; AdamW) and a forward pass of both networks, in
fp32 and bf16 (autocast). Contestants:

- MONAI's AttentionUnet and DenseNet121 as the paper's implementation sets them up, with its losses (softmax
  first, the cross-entropy label by label from a one-hot tensor, MONAI's DiceLoss), default memory allocation;
- the same with tuned allocation;
- ours: the cascade and the losses of `threefold.tasks`; it tunes the allocation itself.

Every contestant lives in a process of its own, because the allocator's settings belong to a process, and they
take turns: one call each, round after round, so that whatever else the machine does meets all alike. Medians
are reported. Writes docs/results/speed/aortic-arch-networks.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from monai.losses.dice import DiceLoss
from monai.networks.nets import AttentionUnet as MonaiUnet
from monai.networks.nets import DenseNet121 as MonaiDenseNet
from torch import Tensor, nn

from _machine import machine
from _turns import Turns, ask_once, matrix_peaks, now, peak_memory, serve
from threefold.allocation import tune_allocation
from threefold.cohorts.cohort import CohortSpec
from threefold.core.batch import Batch, Target
from threefold.core.targets import MaskSpec
from threefold.experiment import Experiment
from threefold.networks.cpu import cpu_kernels
from threefold.networks.pretrained import load_pretrained
from threefold.tasks.build import build_network, build_tasks, task_weights

ROOT = Path(__file__).parents[1]
LABELS, CLASSES = 12, 3
CLASSIFICATION_WEIGHT = 14
ROLES = {
    "monai": "MONAI, default allocation",
    "monai-tuned": "MONAI, tuned allocation",
    "ours": "ours",
}
# (kind, precision, side): how many times faster than MONAI in fp32 with default allocation.
GOALS = {
    ("step", "fp32", 64): 1.6,
    ("step", "bf16", 64): 3.0,
    ("step", "fp32", 96): 2.6,
    ("step", "bf16", 96): 5.0,
    ("inference", "fp32", 64): 2.0,
    ("inference", "bf16", 64): 4.5,
    ("inference", "fp32", 128): 4.5,
    ("inference", "bf16", 128): 8.0,
}
EXPERIMENT = Experiment.model_validate(
    {
        "name": "benchmark",
        "data": {"preprocessing": {"size": [96, 96, 96]}},
        "network": {"kind": "cascade"},
        "tasks": {
            "classification": {"weight": CLASSIFICATION_WEIGHT},
            "segmentation": {"target": "structures"},
            "region": {},
        },
    }
)
COHORT = CohortSpec(
    name="noise",
    modality="mri",
    dimensions=3,
    classes=tuple(f"class {number}" for number in range(CLASSES)),
    mask=MaskSpec(),
    structures=tuple(f"structure {number}" for number in range(1, LABELS)),
)


# --- the contestants -------------------------------------------------------------------------------------


def make_batch(side: int) -> Batch:
    generator = torch.Generator().manual_seed(side)
    size, here = (1, side, side, side), torch.ones(1, dtype=torch.bool)
    structures = torch.randint(LABELS, size, generator=generator).to(torch.uint8)
    values = {"label": torch.tensor([1]), "mask": (structures > 0).to(torch.uint8), "structures": structures}
    return Batch(
        case_ids=("case",),
        image=torch.rand(1, 1, side, side, side, generator=generator),
        targets={name: Target(value, here) for name, value in values.items()},
    )


class Contestant(Protocol):
    """Networks that can be timed."""

    network: nn.Module

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, L, *S) and (B, K) logits."""

    def loss(self, batch: Batch, bf16: bool) -> Tensor:
        """Return what is minimised."""


class Monai:
    """MONAI's modules and the published losses."""

    def __init__(self) -> None:
        segmenter = MonaiUnet(3, 1, LABELS, (32, 64, 128, 256, 512), (2, 2, 2, 2), 3, dropout=0.2)
        classifier = MonaiDenseNet(
            spatial_dims=3, in_channels=LABELS, out_channels=CLASSES, norm="instance", dropout_prob=0.2
        )
        self.network = nn.ModuleDict({"segmenter": segmenter, "classifier": classifier})
        self.dice = DiceLoss(softmax=False, to_onehot_y=True)

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network["segmenter"](image)
        return logits, self.network["classifier"](logits.softmax(dim=1))

    def loss(self, batch: Batch, bf16: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, classes = self.predict(batch.image)
        probability = logits.float().softmax(dim=1)
        foreground = probability[:, 1:].sum(dim=1, keepdim=True)
        binary = torch.cat((probability[:, :1], foreground), dim=1)
        return (
            self._dice_cross_entropy(probability, batch.targets["structures"].values)
            + self._dice_cross_entropy(binary, batch.targets["mask"].values)
            + CLASSIFICATION_WEIGHT * F.cross_entropy(classes.float(), batch.targets["label"].values)
        )

    def _dice_cross_entropy(self, probability: Tensor, target: Tensor) -> Tensor:
        one_hot = F.one_hot(target.long(), probability.shape[1]).movedim(-1, 1)
        entropy = torch.zeros(())
        for label in range(probability.shape[1]):
            entropy = entropy - one_hot[:, label] * torch.log(probability[:, label] + 1e-10)
        dice: Tensor = self.dice(probability, target[:, None])
        return entropy.mean() + dice


class Ours:
    """The cascade and the tasks of an experiment."""

    def __init__(self) -> None:
        self.tasks = build_tasks(EXPERIMENT, COHORT)
        self.network: nn.Module = build_network(EXPERIMENT, COHORT, self.tasks)
        self.weights = task_weights(EXPERIMENT, 0)

    def predict(self, image: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.network(image)
        return outputs.heads["segmentation"], outputs.heads["classification"]

    def loss(self, batch: Batch, bf16: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = self.network(batch.image)
        losses = [self.weights[task.name] * task.losses(outputs, batch).mean() for task in self.tasks]
        return torch.stack(losses).sum()


class Timed:
    """A contestant with its optimiser."""

    def __init__(self, role: str) -> None:
        if role != "monai":
            tune_allocation()
        torch.manual_seed(0)
        self.contestant: Contestant = Ours() if role == "ours" else Monai()
        network = self.contestant.network
        rates = {"segmenter": 1e-3, "classifier": 1e-4}
        groups = [
            {"params": list(network.get_submodule(part).parameters()), "lr": rate}
            for part, rate in rates.items()
        ]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=1e-5)

    def run(self, kind: str, precision: str, side: int) -> float:
        """Return the seconds of a forward pass without gradients, or of a whole training step."""
        batch, bf16 = make_batch(side), precision == "bf16"
        self.contestant.network.train(kind == "step")
        with cpu_kernels(self.contestant.network):
            start = now()
            if kind == "inference":
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    self.contestant.predict(batch.image)
            else:
                self.optimiser.zero_grad()
                self.contestant.loss(batch, bf16).backward()
                self.optimiser.step()
            return now() - start


# --- what a child process answers ------------------------------------------------------------------------


def measure_memory(role: str, kind: str, precision: str, side: int) -> None:
    """Print the peak resident memory of two calls, MiB."""
    one = Timed(role)
    for _ in range(2):
        one.run(kind, precision, side)
    print(json.dumps(peak_memory()))


def compare(side: int) -> None:
    """Print how far ours is from MONAI's, with MONAI's weights after a few training steps."""
    theirs, ours = Monai(), Ours()
    timed = Timed("monai")
    theirs.network = timed.contestant.network
    for _ in range(3):
        timed.run("step", "fp32", 32 if side < 64 else 64)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("segmenter", "classifier"):
            path = Path(folder) / f"{part}.pth"
            torch.save(theirs.network.get_submodule(part).state_dict(), path)
            load_pretrained(ours.network, path)
    theirs.network.eval()
    ours.network.eval()
    image = make_batch(side).image
    with cpu_kernels(ours.network), torch.inference_mode():
        expected, found = theirs.predict(image), ours.predict(image)
        with torch.autocast("cpu", torch.bfloat16):
            near, theirs_near = ours.predict(image)[0], theirs.predict(image)[0]
        theirs.network.double()
        exact = theirs.predict(image.double())
    labels = expected[0].argmax(1)
    print(
        json.dumps(
            {
                "segmentation logits, largest value": exact[0].abs().max().item(),
                "segmentation logits, fp32, ours and MONAI's": _distance(expected[0], found[0]),
                "segmentation logits, fp32, ours and MONAI's in fp64": _distance(exact[0], found[0]),
                "segmentation logits, MONAI's in fp32 and in fp64": _distance(exact[0], expected[0]),
                "class logits, fp32, ours and MONAI's": _distance(expected[1], found[1]),
                "ours in bf16: mean Dice of its labels with MONAI's fp32 labels": _dice(
                    near.argmax(1), labels
                ),
                "MONAI in bf16: the same": _dice(theirs_near.argmax(1), labels),
            }
        )
    )


def _distance(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def _dice(first: Tensor, second: Tensor) -> float:
    """Mean Dice over the labels that either has."""
    one, other = (F.one_hot(labels, LABELS).flatten(0, -2).double() for labels in (first, second))
    sizes = one.sum(0) + other.sum(0)
    return (2 * (one * other).sum(0) / sizes)[sizes > 0].mean().item()


# --- the race --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Race:
    """Median seconds by (kind, precision, side) and role; memory of the largest of each kind, MiB."""

    seconds: dict[tuple[str, str, int], dict[str, float]]
    memory: dict[tuple[str, str, int], dict[str, float]]
    peaks: dict[str, float]  # GFLOP/s of a large matrix product
    flops: float  # GFLOP of a forward pass at 64^3
    errors: dict[str, float]


def child(arguments: argparse.Namespace, *options: str) -> list[str]:
    return [sys.executable, __file__, "--threads", str(arguments.threads), *options]


def race(arguments: argparse.Namespace) -> Race:
    wanted = [key for key in GOALS if key[2] in arguments.sides]
    seconds = {}
    with Turns({role: child(arguments, "--serve", role) for role in ROLES}) as turns:
        for kind, precision, side in wanted:
            times = turns.medians(arguments.rounds, kind=kind, precision=precision, side=side)
            seconds[kind, precision, side] = times
            line = ", ".join(f"{role} {t:.2f} s" for role, t in times.items())
            print(f"{kind} {precision} {side}^3: {line}", flush=True)
    memory = {
        (kind, precision, side): {
            role: ask_once(child(arguments, "--memory", role, kind, precision, str(side))) for role in ROLES
        }
        for kind, precision, side in wanted
        if side == max(key[2] for key in wanted if key[0] == kind)
    }
    errors = ask_once(child(arguments, "--compare", "64"))
    return Race(seconds, memory, matrix_peaks(), count_flops(), errors)


def count_flops() -> float:
    """GFLOP of a forward pass at 64^3, by the plain formulas (two per multiplication and addition)."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = Ours().network.eval()
        image = torch.zeros(1, 1, 64, 64, 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return float(counter.get_total_flops() / 1e9)


# --- the table -------------------------------------------------------------------------------------------


def as_markdown(result: Race, arguments: argparse.Namespace) -> str:
    command = f"python benchmarks/aortic_arch_networks.py --rounds {arguments.rounds}"
    command += f" --threads {arguments.threads}"
    lines = [
        "# Speed of the aortic-arch networks",
        "",
        "Attention U-Net (32, 64, 128, 256, 512) and DenseNet121 on its softmax of 12 labels, batch 1. A "
        "step is forward, the losses of labels, foreground and diagnosis, backward and AdamW. Inference is "
        "both networks' forward pass. bf16 is autocast. Each contestant in a process of its own, taking "
        f"turns; medians of {arguments.rounds} rounds.",
        "",
        f"`{command}`, {datetime.date.today().isoformat()}, {machine()}, {arguments.threads} threads, "
        f"PyTorch {torch.__version__}.",
        "",
        *_time_table(result),
        "",
        "## Ratios",
        "",
        *_ratio_table(result),
        "",
        "## Limits",
        "",
        *_limits(result),
        "",
        "## Peak memory (MiB, whole process)",
        "",
        *_memory_table(result),
        "",
        "## Agreement with MONAI (same weights, after three training steps; 64^3; largest differences)",
        "",
        *(
            f"- {name}: {value:.2g}" if value < 0.01 else f"- {name}: {value:.4f}"
            for name, value in result.errors.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _time_table(result: Race) -> list[str]:
    rows = ["| seconds | " + " | ".join(ROLES.values()) + " | ours: share of peak |"]
    rows.append("| --- |" + " ---: |" * (len(ROLES) + 1))
    for (kind, precision, side), times in result.seconds.items():
        share = _flops(result, kind, side) / result.peaks[precision] / times["ours"]
        cells = [f"{times[role]:.2f}" for role in ROLES]
        rows.append(f"| {kind} {precision}, {side}^3 | " + " | ".join(cells) + f" | {share:.0%} |")
    return rows


def _flops(result: Race, kind: str, side: int) -> float:
    """GFLOP; a step counts three forward passes, one for each gradient."""
    return result.flops * (side / 64) ** 3 * (3 if kind == "step" else 1)


def _ratio_table(result: Race) -> list[str]:
    rows = [
        "| ours is faster by | goal | than MONAI in fp32, default allocation | than MONAI in fp32, tuned | "
        "than MONAI in the same precision, default | the same, tuned |",
        "| --- |" + " ---: |" * 5,
    ]
    for (kind, precision, side), times in result.seconds.items():
        full = result.seconds[kind, "fp32", side]
        ratios = [full["monai"], full["monai-tuned"], times["monai"], times["monai-tuned"]]
        cells = [f"{GOALS[kind, precision, side]}", *(f"{ratio / times['ours']:.2f}" for ratio in ratios)]
        rows.append(f"| {kind} {precision}, {side}^3 | " + " | ".join(cells) + " |")
    return rows


def _limits(result: Race) -> list[str]:
    lines = [
        f"A matrix product of 2048 reaches {result.peaks['fp32']:.0f} GFLOP/s in fp32 and "
        f"{result.peaks['bf16']:.0f} in bf16; a forward pass at 64^3 has {result.flops:.0f} GFLOP, a step "
        "three times as many. In fp32 the products alone, at that speed, would take:",
        "",
        "| | products at peak (s) | ours (s) | largest ratio to MONAI that the peak allows |",
        "| --- | ---: | ---: | ---: |",
    ]
    for (kind, precision, side), times in result.seconds.items():
        if precision == "fp32":
            floor = _flops(result, kind, side) / result.peaks[precision]
            lines.append(
                f"| {kind} {side}^3 | {floor:.2f} | {times['ours']:.2f} | {times['monai'] / floor:.2f} |"
            )
    return [*lines, "", "In bf16 the products are a small share; memory and page faults are what is left."]


def _memory_table(result: Race) -> list[str]:
    rows = ["| | " + " | ".join(ROLES.values()) + " |", "| --- |" + " ---: |" * len(ROLES)]
    for (kind, precision, side), peaks in result.memory.items():
        cells = " | ".join(f"{peaks[role]:.0f}" for role in ROLES)
        rows.append(f"| {kind} {precision}, {side}^3 | {cells} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 96, 128], help="of the volumes raced")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/speed/aortic-arch-networks.md")
    parser.add_argument("--serve", choices=ROLES, help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--compare", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.serve:
        serve(lambda: Timed(arguments.serve).run)
    elif arguments.memory:
        role, kind, precision, side = arguments.memory
        measure_memory(role, kind, precision, int(side))
    elif arguments.compare:
        compare(arguments.compare)
    else:
        table = as_markdown(race(arguments), arguments)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table)
        print(f"\n{table}\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
