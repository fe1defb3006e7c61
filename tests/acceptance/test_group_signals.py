"""A signal to a whole process group: a command ends as interrupted, half-writes nothing, and goes on when
repeated."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.atlases.workplace import Workplace
from threefold.inference.output import PredictionFolder
from threefold.run import RunFolder
from threefold.training import loop

from .contents import contents
from .forked import Forked, run
from .places import CHAIN, PROPAGATE, STUDY, Places

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and process groups are POSIX's"),
]
PATIENCE = 300
"""Seconds; on a busy machine starting takes most of them."""


def _pausing(owner: Any, name: str) -> Callable[[], Any]:
    """Return a context of the leader of a new process group in which a function is followed by a pause."""
    real = getattr(owner, name)

    def slow(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        time.sleep(1)
        return result

    @contextmanager
    def leading() -> Iterator[None]:
        os.setsid()
        setattr(owner, name, slow)
        yield

    return leading


def _interrupt(
    arguments: Sequence[str],
    home: Path,
    around: Callable[[], Any],
    signals: Sequence[int],
    begun: Callable[[], Any],
) -> int:
    """Start a command, send signals to its group once it has begun; return its exit code."""
    command = Forked(arguments, home, around)
    deadline = time.monotonic() + PATIENCE
    while not begun():
        assert time.monotonic() < deadline, "it did not begin"
        ended = os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        assert ended is None, f"it ended before it began: {command.wait().said}"
        time.sleep(0.02)
    for each in signals:
        os.killpg(command.pid, each)
        time.sleep(0.02)
    answer = command.wait()
    assert "Traceback" not in answer.said
    assert "interrupted" in answer.said
    for _ in range(1000):  # its workers end of themselves
        try:
            os.killpg(command.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("a worker is left")
    assert not list(home.rglob("*.partial"))
    return answer.code


def test_predict(places: Places) -> None:
    places.fresh("cohort", "run", "predicted")
    whole = contents(places.home / "predicted")
    places.fresh("cohort", "run")
    command, out = ("predict", "run", "cohort", "--out", "predicted"), places.home / "predicted"
    pausing = _pausing(PredictionFolder, "add")
    journal = out / "journal.jsonl"
    begun = lambda: journal.is_file() and journal.read_text().count("\n") > 1  # noqa: E731
    assert _interrupt(command, places.home, pausing, [signal.SIGINT], begun) == 130
    kept = (out / "predictions.csv").read_text().splitlines()
    assert 1 < len(kept) < 9
    assert run(command, places.home).code == 0
    assert contents(out) == whole


def test_propagate(places: Places) -> None:
    places.fresh("balls", "propagated")
    whole = contents(places.home / "propagated")
    places.fresh("balls")
    progress = places.home / ".propagated.unfinished" / "progress"
    pausing = _pausing(Workplace, "remember")
    signals = [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
    begun = lambda: list(progress.glob("*.json"))  # noqa: E731
    assert _interrupt(PROPAGATE, places.home, pausing, signals, begun) == 143
    assert not (places.home / "propagated").exists()
    assert run(PROPAGATE, places.home).code == 0
    assert contents(places.home / "propagated") == whole


def test_chain(places: Places) -> None:
    places.fresh("balls")
    stages = {"name": "short", "stages": [{"name": "segmenter", "recipe": "aortic-arch/demo-seg"}]}
    (places.home / "short.yaml").write_text(yaml.safe_dump(stages))
    settings = [each for each in CHAIN if not each.startswith(("classifier.", "joint."))]
    settings += ["data.workers=1", "data.split.kind=column", "training.epochs=2"]
    command = ("chain", "short.yaml", *settings, "--cohort", "balls", "--out", "chained")
    stage = RunFolder(places.home / "chained" / "runs" / "segmenter")
    pausing = _pausing(loop, "write_history")
    assert _interrupt(command, places.home, pausing, [signal.SIGTERM], stage.metrics.is_file) == 143
    assert stage.read_status()["state"] == "interrupted"
    assert run(command, places.home).code == 0
    assert stage.read_status()["state"] == "finished"


def test_study(places: Places) -> None:
    places.fresh("cohort", "tiny.yaml")
    tiny = places.home / "tiny.yaml"
    text = tiny.read_text().replace("evidence: true", "evidence: false")
    tiny.write_text(text.replace("training.epochs=1", "training.epochs=20"))
    command = (*STUDY, "--only", "heads/cls/*")
    name = "heads/cls/split-0-seed-0"
    trained = RunFolder(places.home / "study" / "runs" / name)

    @contextmanager
    def leading() -> Iterator[None]:
        os.setsid()
        yield

    assert _interrupt(command, places.home, leading, [signal.SIGINT], trained.metrics.is_file) == 130
    assert trained.read_status()["state"] == "interrupted"
    (outcome,) = (places.home / "study" / "outcomes").iterdir()
    assert json.loads(outcome.read_text())["state"] == "interrupted"
    assert run(command, places.home).code == 0
    assert trained.read_status()["state"] == "finished"
