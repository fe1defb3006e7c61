"""A command in a process of its own, forked from one that has imported everything.

So a kill is a kill, and what a command leaves in its process is gone with it. The demos' phantoms are small
there, the figures of evaluated runs blank, and the runs of a study are trained in the command's own process.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Imported once and not in each forked process.
import threefold.inference.predictor
import threefold.partials
import threefold.phantoms.registry
import threefold.runs.explain
import threefold.runs.similarity
import threefold.studies.chain
import threefold.studies.comparison
import threefold.studies.demos
import threefold.studies.reports
import threefold.training.run
from threefold.cli.app import main
from threefold.phantoms import fetal_protocol, head_protocol
from threefold.studies import study_pools

from ..conftest import blank_figures
from ..hearts import SMALL_HEART
from ..studies.tiny import run_here

_LONGEST = 300
"""Seconds; a command that takes longer hangs."""
_SMALL_HEAD = {"patients_per_site": 1, "external_patients_per_site": 1, "sites": 5, "size": 64}


@dataclass(frozen=True)
class Answer:
    """A command's exit code (negative: the signal that ended it), and what it printed."""

    code: int
    said: str


class Forked:
    """A command that runs; `wait` for its end."""

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        around: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        """Start a command.

        Args:
            arguments: after `threefold`.
            home: the folder in which it runs; what it prints goes beside it.
            around: a context in which it runs, beside `in_one_process`; None: none.
        """
        self._said = home.parent / "said.txt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forking beside threads; nothing of theirs is used here
            self.pid = os.fork()
        if self.pid == 0:
            code = 71
            try:
                code = self._command(arguments, home, around or in_one_process)
            finally:
                os._exit(code)

    def wait(self) -> Answer:
        """Wait for its end."""
        _, status = os.waitpid(self.pid, 0)
        said = self._said.read_text(encoding="utf-8", errors="replace")
        return Answer(os.waitstatus_to_exitcode(status), said)

    def _command(
        self, arguments: Sequence[str], home: Path, around: Callable[[], AbstractContextManager[None]]
    ) -> int:
        signal.alarm(_LONGEST)
        said = os.open(self._said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
        sys.stderr = os.fdopen(os.dup(2), "w", encoding="utf-8", buffering=1)
        os.chdir(home)
        threefold.partials._remove_abandoned.cache_clear()
        sys.argv = ["threefold", *arguments]
        code = 0
        with around():
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
        sys.stdout.flush()
        return code


def run(
    arguments: Sequence[str],
    home: Path,
    around: Callable[[], AbstractContextManager[None]] | None = None,
) -> Answer:
    """Run a command to its end; arguments as of `Forked`."""
    return Forked(arguments, home, around).wait()


@contextmanager
def in_one_process() -> Iterator[None]:
    """Make the demos' phantoms small, leave figures blank, and train a study's runs in this process.

    It ends with its command, and nothing is put back.
    """
    heads, hearts = head_protocol.PRESETS, fetal_protocol.PRESETS
    heads["demo"] = heads["demo"].model_copy(update=_SMALL_HEAD)
    hearts["demo"] = hearts["demo"].model_copy(update=SMALL_HEART)
    study_pools.run_in_process = run_here
    with blank_figures():
        yield
