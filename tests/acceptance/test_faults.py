"""A command that fails at a write, or for want of memory, leaves when repeated what an unbroken one does; and
one that finds a damaged file says so.

A spread-out sample; `benchmarks/fault_points.py` tries all of both.
"""

from __future__ import annotations

import os
import random

import pytest

from threefold.cli.verbs import GROUPS

from . import damages, faults
from .places import Places

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, which POSIX alone does"),
]
COUNTS = {
    "train": 1,
    "finish": 1,
    "evaluate": 1,
    "explain": 1,
    "predict": 2,
    "report": 2,
    "propagate": 1,
    "degrade": 1,
    "import table": 3,
    "import decathlon": 1,
    "import dicom": 1,
    "import merge": 1,
    "export decathlon": 2,
    "phantom head-ct": 2,
    "phantom object-background": 1,
}
"""Few, where a command takes a second or two."""
SLOW = {
    "probe": "loads and reads as explain",
    "similarity": "loads and reads as explain",
    "evaluate --cohort": "is predict and evaluate",
    "evaluate a table": "is as evaluate",
    "propagate a changed cohort": "propagates before",
    "chain": "trains three networks",
    "ensemble": "needs two trained networks",
    "crossvalidate": "trains two networks",
    "study run": "trains two networks and looks into them",
    "study compare": "needs a study",
    "study pack": "needs a study",
    "report of a study": "needs a study",
    "phantom fetal-heart": "is as phantom head-ct",
    "export onnx": "traces a network, and writes as export decathlon",
    "demo hematoma": "is a phantom, a training and an evaluation",
    "demo aortic-arch": "is a phantom and a chain",
}
"""What the benchmark alone tries, and why."""
WITHOUT_FILES = {"check", "models", "plan", "plugins", "schema", "recipes"}


@pytest.mark.parametrize("name", COUNTS)
def test_a_command_that_failed_is_repeated(name: str, places: Places) -> None:
    command = faults.COMMANDS[name]
    recorded, left = faults.record(command, places)
    asked = faults.spread(faults.write_faults(recorded), COUNTS[name])
    if name in ("report", "phantom head-ct", "predict"):
        asked += faults.memory_faults(recorded, 1)
    assert asked
    found = {fault: wrong for fault, wrong in faults.trials(command, places, left, asked) if wrong}
    assert found == {}


def test_every_verb_that_leaves_files_is_tried() -> None:
    assert faults.COMMANDS.keys() == COUNTS.keys() | SLOW.keys()
    known = {verb for verbs in GROUPS.values() for verb in verbs}
    assert {command.arguments[0] for command in faults.COMMANDS.values()} == known - WITHOUT_FILES


@pytest.mark.parametrize(
    "name", ["evaluate", "predict", "propagate a changed cohort", "report", "predict again"]
)
def test_a_damaged_file_is_named_or_does_no_harm(name: str, places: Places) -> None:
    reader = damages.READERS[name]
    read, left = damages.record(reader, places)
    asked = random.Random(name).sample(damages.all_damages(read), 3)
    found = {damage: wrong for damage, _, wrong in damages.trials(reader, places, left, asked) if wrong}
    assert found == {}
