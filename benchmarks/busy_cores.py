"""Trainings and predictions beside other work and by themselves: what waiting threads cost.

Pieces of work, each done by four processes that differ in their threads alone: one thread; as many as there
are cores, which wait for each other as PyTorch lets them; the same watched by the command (`waiting`); and
by the library, where PyTorch was imported before it. The processes take turns, on an idle machine
and then beside busy processes, which are started and ended here. Goals: beside other work at most 1.5 times
as long as one thread, and on an idle machine at most 5 % longer than with PyTorch's own waiting.

Run on a machine that does nothing else:
python benchmarks/busy_cores.py [--busy 0 4] [--rounds 5] [--seconds 1] [--work NAME ...] [--roles NAME ...]
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from threefold.threads import available_cores, share_cores

ROLES = {
    "one": "one thread",
    "torch": "PyTorch's waiting",
    "command": "the command",
    "library": "the library, PyTorch imported before",
}
LARGEST_BESIDE, LARGEST_ALONE = 1.5, 1.05
Call = Callable[[], object]


# --- the work: a call is one step, batch or volume --------------------------------------------------------


def train_hematoma() -> Call:
    """A training step of the demo's network: 4 slices of 112^2."""
    return _training_step("hematoma/demo", 4, 112, 112)


def train_aortic_arch() -> Call:
    """A training step of the demo's segmenter: a volume of 48^3."""
    return _training_step("aortic-arch/demo-seg", 1, 48, 48, 48)


def predict_hematoma() -> Call:
    """The demo's network without gradients: 16 slices of 112^2."""
    return _prediction("hematoma/demo", 16, 112, 112)


def predict_aortic_arch() -> Call:
    """The demo's segmenter without gradients: a volume of 48^3."""
    return _prediction("aortic-arch/demo-seg", 1, 48, 48, 48)


def explain() -> Call:
    """The demo's network and the gradient of its decisions, as class activation maps need it: 8 slices."""
    import torch

    network, channels = _network("hematoma/demo")
    network.eval()
    images = torch.rand(8, channels, 112, 112)
    return lambda: torch.autograd.grad(
        network(images).heads["classification"][:, 1].sum(), [*network.parameters()][:1]
    )


def register() -> Call:
    """Two refinement steps at each of three resolutions, of a pair of 48^3."""
    import torch

    from threefold.atlases.refinement import Pair, refine
    from threefold.atlases.spec import PropagationSpec

    fixed, moving = torch.rand(2, 1, 1, 48, 48, 48)
    return lambda: refine(Pair(fixed, moving), None, PropagationSpec(refinement_steps=2))


def compare_features() -> Call:
    """The products that similarities of features and their resampling are made of, in NumPy."""
    import numpy as np

    features = np.random.default_rng(0).normal(size=(400, 256))
    return lambda: [features.T @ features for _ in range(20)]


WORK: dict[str, Callable[[], Call]] = {
    "train 2D": train_hematoma,
    "train 3D": train_aortic_arch,
    "predict 2D": predict_hematoma,
    "predict 3D": predict_aortic_arch,
    "explain": explain,
    "register": register,
    "features": compare_features,
}


def _network(recipe: str):  # type: ignore[no-untyped-def]  # a module; torch is not imported yet
    """Return the network of a recipe, and its number of input channels."""
    from threefold.cohorts.cohort import CohortSpec
    from threefold.core.targets import MaskSpec
    from threefold.experiments import load_experiment
    from threefold.tasks.build import build_network

    experiment = load_experiment(recipe, [])
    cohort = CohortSpec(
        name="noise",
        modality="ct",
        dimensions=len(experiment.data.preprocessing.size),
        classes=("a", "b"),
        mask=MaskSpec(),
        structures=tuple(f"structure {number}" for number in range(1, 12)),
    )
    windows = experiment.data.preprocessing.windows or ((0, 1),)
    return build_network(experiment, cohort), len(windows)


def _training_step(recipe: str, *shape: int) -> Call:
    import torch

    from threefold.networks.cpu import cpu_kernels

    network, channels = _network(recipe)
    images = torch.rand(shape[0], channels, *shape[1:])
    optimiser = torch.optim.AdamW(network.parameters())

    def step() -> None:
        with cpu_kernels(network):
            outputs = network(images)
        optimiser.zero_grad()
        sum(out.square().mean() for out in (*outputs.heads.values(), outputs.features)).backward()
        optimiser.step()

    return step


def _prediction(recipe: str, *shape: int) -> Call:
    import torch

    from threefold.networks.cpu import cpu_kernels

    network, channels = _network(recipe)
    network.eval()
    images = torch.rand(shape[0], channels, *shape[1:])

    def predict() -> None:
        with cpu_kernels(network), torch.inference_mode():
            network(images)

    return predict


# --- a contestant -------------------------------------------------------------------------------------------


def contestant(role: str) -> Callable[[str, float], float]:
    """Set this process's threads up, and return what gives the mean seconds of a call of some work."""
    if role == "command":
        share_cores()
    import torch

    if role == "library":
        share_cores()
    from threefold.allocation import tune_allocation

    tune_allocation()
    made: dict[str, Call] = {}

    def run(work: str, seconds: float) -> float:
        call = made.setdefault(work, WORK[work]())
        torch.manual_seed(0)
        calls, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            call()
            calls += 1
        return (time.perf_counter() - begin) / calls

    return run


# --- the measurement ----------------------------------------------------------------------------------------


@contextmanager
def beside(busy: int) -> Iterator[None]:
    """Keep so many processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def environment(role: str) -> dict[str, str]:
    """Return a contestant's environment: that of a user who sets nothing about threads."""
    prefixes = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_")
    bare = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return bare | ({"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"} if role == "one" else {})


def measure(
    names: list[str], roles: list[str], busy: int, rounds: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Return for each piece of work each role's median seconds of a call."""
    from _turns import Turns

    commands, times = {}, {}
    for role in roles:
        settings = [f"{name}={value}" for name, value in environment(role).items()]
        commands[role] = ["env", "-i", *settings, sys.executable, __file__, "--contestant", role]
    with Turns(commands) as turns, beside(busy):
        for name in names:
            times[name] = turns.medians(rounds, work=name, seconds=seconds)
            print(f"{busy} busy, {name}: {times[name]}", file=sys.stderr, flush=True)
    return times


def table(times: Mapping[str, Mapping[str, float]], roles: list[str]) -> str:
    """Return milliseconds of each role, and the ratios that the goals are about."""
    pairs = [
        (ours, other)
        for other in ("one", "torch")
        for ours in ("command", "library")
        if {ours, other} <= set(roles)
    ]
    heads = ["ms", *(ROLES[role] for role in roles), *(f"{ours} / {other}" for ours, other in pairs)]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, by_role in times.items():
        numbers = [f"{1000 * by_role[role]:.1f}" for role in roles]
        numbers += [f"{by_role[ours] / by_role[other]:.2f}" for ours, other in pairs]
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def verdicts(times: Mapping[str, Mapping[str, float]], busy: int) -> str:
    """Return a sentence on the goal of a load, for the command and for the library."""
    other, largest = ("one", LARGEST_BESIDE) if busy else ("torch", LARGEST_ALONE)
    said = []
    for ours in ("command", "library"):
        ratios = [by[ours] / by[other] for by in times.values() if {ours, other} <= by.keys()]
        if ratios:
            verdict = "reached" if max(ratios) <= largest else "MISSED"
            said.append(
                f"{ROLES[ours]}: at most {max(ratios):.2f} of {ROLES[other]}, goal {largest}: {verdict}"
            )
    return "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[0, 2 * available_cores()], help="competing processes"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, at least")
    parser.add_argument("--work", nargs="+", choices=WORK, default=[*WORK])
    parser.add_argument("--roles", nargs="+", choices=ROLES, default=[*ROLES])
    parser.add_argument("--contestant", choices=ROLES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contestant is not None:
        run = contestant(given.contestant)
        from _turns import serve

        serve(lambda: run)
        return
    print(
        f"`python benchmarks/busy_cores.py {shlex.join(sys.argv[1:])}`, {datetime.date.today()}, "
        f"{platform.processor() or platform.machine()}, {available_cores()} cores."
    )
    for busy in given.busy:
        times = measure(given.work, given.roles, busy, given.rounds, given.seconds)
        print(
            f"\n## Beside {busy} busy processes\n\n{table(times, given.roles)}\n\n{verdicts(times, busy)}\n"
        )


if __name__ == "__main__":
    main()
