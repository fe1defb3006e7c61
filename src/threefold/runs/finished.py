"""What a finished run's predictions rest on, tied together by one list of checksums, RUN/settings.sha256.

It is written once, when the run is finished, and read by whoever loads the run: a flipped bit in a threshold,
a window or a split, or the predictions of another run, are refused, not computed with. It is as `sha256sum`
writes it: `sha256sum --check settings.sha256`. A run that is not finished has none that counts.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from threefold.checksums import verify_listed
from threefold.errors import RunError
from threefold.run import Epoch, RunFolder, status_text, write_atomically

_REMEDY = (
    "Nothing in a finished run is changed by hand: copy the run folder again, its settings.sha256 too. "
    "Of a run that still has its checkpoints, `threefold finish RUN` makes weights, predictions and "
    "status.json anew."
)


def finish_status(run: RunFolder, **fields: Any) -> None:
    """Write settings.sha256, and then status.json, which says from then on that the run is finished.

    Args:
        run: with all that a finished run has.
        fields: of status.json, but for its state.

    Raises:
        RunError: the disk refuses; the same command goes on.
    """
    text = status_text(state="finished", **fields)
    lines = [f"{hashlib.sha256(text.encode()).hexdigest()}  {run.status.name}\n"]
    for path in (*_deciding(run), *_made(run)):
        if path != run.status and path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"{digest}  {path.name}\n")
    write_atomically(run.settings, "".join(lines))
    write_atomically(run.status, text)


def verify_settings(run: RunFolder) -> None:
    """Refuse a finished run whose settings or threshold are not those that it was finished with.

    Of a run without settings.sha256 a line says that they are taken as they are.

    Raises:
        RunError: naming the file, what was expected and found, and what to do.
    """
    if run.status.is_file() and run.read_status()["state"] != "finished":
        return
    if not verify_listed(run.settings, _deciding(run), RunError, _REMEDY):
        logging.getLogger("threefold").warning(
            "%s has no %s (an earlier version made it, or it was copied without it): its settings and its "
            "threshold are taken as they are.",
            run.path,
            run.settings.name,
        )


def verify_inputs(run: RunFolder) -> None:
    """As `verify_settings`, without a word and without status.json: what a run is finished anew from."""
    if run.read_status()["state"] == "finished":
        inputs = (path for path in _deciding(run) if path != run.status)
        verify_listed(run.settings, inputs, RunError, _REMEDY)


def verify_made(run: RunFolder, *files: Path) -> None:
    """Refuse weights or tables that are not those that the run was finished with.

    Args:
        run: finished, or not: then nothing is refused.
        files: of it; none: all that finishing made, status.json too.

    Raises:
        RunError: as `verify_settings`.
    """
    if run.status.is_file() and run.read_status()["state"] == "finished":
        verify_listed(run.settings, files or (run.status, *_made(run)), RunError, _REMEDY)


def identity_of(run: RunFolder) -> str | None:
    """Return the checksum of what a finished run predicts with: its weights, settings and threshold.

    It is that of the lines of settings.sha256, but for those of the tables; None where there is no such file.
    """
    if not run.settings.is_file():
        return None
    tables = {path.name for path in _tables(run)}
    lines = run.settings.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("  ")[2] not in tables]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _deciding(run: RunFolder) -> Iterable[Path]:
    return run.experiment, run.cohort, run.trained_on, run.split, run.status


def _made(run: RunFolder) -> Iterable[Path]:
    weights = run.weights, *map(run.other_weights, get_args(Epoch))
    trust, tables = (run.calibration, run.features), _tables(run)
    return *weights, *(path.with_suffix(".json") for path in weights), *trust, *tables


def _tables(run: RunFolder) -> tuple[Path, ...]:
    return run.predictions, run.structures, run.failed, run.metrics
