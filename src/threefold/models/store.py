"""Trained models that the package ships: a folder each, found by `threefold/NAME`.

MODEL/ holds of a finished run what prediction needs (experiment.yaml, cohort.json, trained_on.json,
status.json, settings.sha256, weights.safetensors in bfloat16, weights.json), and card.md: what the model is
for, what it was trained on, how good it is, and its warning.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from threefold.errors import UsageError
from threefold.run import RunFolder
from threefold.validation import did_you_mean

_PREFIX = "threefold"
_HOME = Path(__file__).parent


def model_names() -> tuple[str, ...]:
    """Return the names of the models, for example threefold/head-ct."""
    return tuple(sorted(f"{_PREFIX}/{path.parent.name}" for path in _HOME.glob("*/card.md")))


def is_model(name: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a model; a folder of the same name is written ./threefold/NAME."""
    return _plain(name) in model_names()


def run_path(name: str | os.PathLike[str]) -> Path:
    """Return the folder of a model by its name; any other path as it is.

    Raises:
        UsageError: it begins as a model's name does, and is neither a model nor there; the nearest name is
            given.
    """
    plain, path = _plain(name), Path(name)
    if plain in model_names():
        return _HOME / plain.partition("/")[2]
    parts = PurePath(name).parts
    if len(parts) == 2 and parts[0] == _PREFIX and not path.exists():
        known = ", ".join(model_names())
        raise UsageError(
            f"{plain}: there is no such model, nor such a folder.{did_you_mean(plain, model_names())} "
            f"Models: {known}; `threefold models list` describes them."
        )
    return path


def engines_of(run: RunFolder) -> Path:
    """Return where a run's exports for other engines are: in its folder, a model's in the user's cache."""
    if run.path.resolve().parent != _HOME.resolve():
        return run.engines
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "threefold" / "engines" / run.path.resolve().name


def name_of(run: Path) -> str:
    """Return the name of a model by its folder; of any other run the folder's name."""
    name = run.resolve().name
    return f"{_PREFIX}/{name}" if run.resolve().parent == _HOME.resolve() else name


def read_card(run: RunFolder) -> str:
    """Return the card of a model or run, Markdown; empty where there is none."""
    return run.card.read_text(encoding="utf-8", errors="replace") if run.card.is_file() else ""


def description_in(card: str) -> str:
    """Return the first paragraph under a card's title, as one line."""
    return _first_paragraph(card, r"^# .*$")


def warning_in(card: str) -> str:
    """Return the first paragraph of the card's section Warning, as one line; empty where it has none."""
    return _first_paragraph(card, r"^## Warning$")


def _first_paragraph(card: str, heading: str) -> str:
    found = re.search(rf"{heading}\n+((?:.+\n?)+)", card, flags=re.MULTILINE)
    return " ".join(found[1].split()) if found is not None else ""


def _plain(name: str | os.PathLike[str]) -> str:
    return PurePath(name).as_posix()
