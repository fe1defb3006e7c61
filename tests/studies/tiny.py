"""Studies that train in seconds, and a way to train without a process of their own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from threefold.errors import ThreefoldError
from threefold.studies.study_folder import Outcome
from threefold.studies.study_worker import execute
from threefold.training.progress import Silence

ENCODER = {"size": "mini", "embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}
OVERRIDES = [
    "training.epochs=2",
    "training.selection.metric=loss",
    f"network.encoder={json.dumps(ENCODER)}",
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=20",
]
CLS, SEG = "hematoma/swin-cls", "hematoma/mtl-cls-seg"


def write_study(path: Path, cohort: Path, **changes: Any) -> Path:
    """Write a study of the classifier and of classifier and masks on a cohort."""
    content = {
        "name": "tiny",
        "cohorts": {"heads": {"folder": str(cohort)}},
        "variants": {"cls": {"recipe": CLS}, "seg": {"recipe": SEG}},
        "overrides": OVERRIDES,
        "seeds": [0],
        "memory": 0.3,
        "replicates": 100,
        **changes,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def run_here(
    folder: Path,
    run: str,
    threads: int,
    *,
    gpu: str | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> Outcome:
    """Do as `run_in_process` does, in this process."""
    begin = time.monotonic()
    try:
        without = execute(folder, run)
    except ThreefoldError as error:
        return Outcome(run, "failed", str(error), time.monotonic() - begin, 0.1)
    return Outcome(run, "finished", without, time.monotonic() - begin, 0.1)


class Heard(Silence):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text + "\n"


def until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; what is not after ten minutes, on however busy a machine, never will be."""
    end = time.monotonic() + 600
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)
