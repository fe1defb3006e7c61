"""What the pages of a run and of a study say before all numbers, in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from threefold.cohorts.splits import Split
from threefold.errors import some
from threefold.reporting.html import Notice
from threefold.reporting.table import LEAK_NOTE
from threefold.run import RunFolder


def leak_of_run(split: Split) -> Notice:
    """Return whether a run's split shares patients."""
    if split.leaks:
        return Notice("bad", f"Leak: {shared_patients(split)}. {LEAK_NOTE}")
    return Notice("good", f"No leak: split by {split.kind}; no patient is in two parts.")


def leaks_of_runs(splits: Mapping[str, Split]) -> Notice:
    """Return whether the split of any of several runs shares patients, and of which.

    Args:
        splits: by the run's name; at least one.
    """
    leaking: dict[str, list[str]] = {}
    for name, split in splits.items():
        if split.leaks:
            leaking.setdefault(shared_patients(split), []).append(name)
    if not leaking:
        kinds = ", ".join(dict.fromkeys(split.kind for split in splits.values()))
        runs = "the one run that has" if len(splits) == 1 else f"any of the {len(splits)} runs that have"
        return Notice("good", f"No leak: split by {kinds}; no patient is in two parts of {runs} begun.")
    number = sum(map(len, leaking.values()))
    said = " ".join(f"{shared} in {some(names, 10)}." for shared, names in leaking.items())
    return Notice("bad", f"Leak in {number} of the {len(splits)} runs that have begun. {said} {LEAK_NOTE}")


def shared_patients(split: Split) -> str:
    """Return how many patients a split that leaks shares."""
    number = len(split.leaking_patients)
    return f"{number} {'patient has' if number == 1 else 'patients have'} cases in more than one part"


def left_by(verb: str, run: RunFolder) -> Path:
    """Return a file that is there once `evaluate` or `explain` has been through a run."""
    return {"evaluate": run.tables / "metrics.csv", "explain": run.evidence}[verb]


def stopped_early(status: Mapping[str, Any]) -> str | None:
    """Return that a run was finished before its training was, in a sentence; None where it was not."""
    early = status.get("stopped_early")
    if not early:
        return None
    return (
        f"The training stopped ({early['state']}) after {early['epochs']} of {early['of']} epochs; "
        f"`threefold finish` made a run of its best epoch until then, {status['best_epoch']}."
    )


def stale_tables(run: RunFolder) -> Iterator[Notice]:
    """Yield whether what `evaluate` and `explain` left is older than the predictions that it is of."""
    for verb in ("evaluate", "explain"):
        left = left_by(verb, run)
        if left.is_file() and is_older([left], [run.predictions, run.structures]):
            yield Notice(
                "warning",
                f"By their dates, the predictions are newer than what `threefold {verb}` made of them. "
                f"`threefold {verb} {run.path}` makes it anew.",
            )


def is_older(made: Iterable[Path], of: Iterable[Path]) -> bool:
    """Whether a file was written after all those that were made of it; absent ones don't count."""
    newest = max((path.stat().st_mtime for path in made), default=0.0)
    return any(path.stat().st_mtime > newest for path in of if path.is_file())
