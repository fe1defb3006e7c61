"""The commands by name, described without importing them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from threefold.cli.progress import interruptible


@dataclass(frozen=True)
class Verb:
    """Location and one-line description of a command.

    Attributes:
        place: module within `threefold.cli`, and the function or Typer group in it.
        help: for the list of commands.
    """

    place: str
    help: str

    def load(self) -> Any:
        """Import the verb; return it as a command."""
        module, _, name = self.place.partition(":")
        found = getattr(import_module(f"threefold.cli.{module}"), name)
        if isinstance(found, typer.Typer):
            return get_command(found)
        alone = typer.Typer(add_completion=False)
        alone.command()(found)
        return get_command(alone)


GROUPS: Mapping[str, Mapping[str, Verb]] = {
    "Data": {
        "import": Verb("importing:importing", "Create a cohort from a table, DICOM or a public data set."),
        "check": Verb("check:check", "Check a cohort for errors, leaks and shortcuts."),
        "phantom": Verb("phantom:phantom", "Create a synthetic cohort with known ground truth."),
        "export": Verb("exporting:exporting", "Write a cohort or a network for another program."),
    },
    "Train": {
        "demo": Verb("demo:demo", "Phantom, training, evaluation and figures in one command."),
        "recipes": Verb("recipes:recipes", "List the recipes, or show one."),
        "models": Verb("models:models", "List the trained models of the package, or show one."),
        "plugins": Verb("plugins:plugins", "List the available networks, tasks and phantoms."),
        "plan": Verb("plan:plan", "Show what a training would do, or why it would be refused."),
        "train": Verb("train:train", "Train a recipe on a cohort."),
        "crossvalidate": Verb("crossvalidate:crossvalidate", "Train a recipe in folds; predict every case."),
        "finish": Verb("finish:finish", "Finish an interrupted training with its best epoch so far."),
    },
    "Use a run": {
        "ensemble": Verb("ensemble:ensemble", "Let several runs predict together."),
        "evaluate": Verb("evaluate:evaluate", "Compute metrics by hospital, with intervals."),
        "predict": Verb("predict:predict", "Predict new images; no labels are needed."),
        "explain": Verb("explain:explain", "Compare the network's attention with the lesion."),
        "probe": Verb("probe:probe", "Test for shortcuts, and probe the features."),
        "similarity": Verb("similarity:similarity", "Compare the features of runs (linear CKA)."),
        "report": Verb("report:report", "Write a run or a study as one HTML file."),
    },
    "Studies": {
        "study": Verb("study:study", "Run and compare many trainings with statistics."),
        "schema": Verb("schema:schema", "Print a JSON schema, for editors of YAML files."),
    },
    "Atlases": {
        "propagate": Verb("propagate:propagate", "Register atlases to every case and transfer their labels."),
        "degrade": Verb("degrade:degrade", "Displace the structures of a cohort by smooth random fields."),
        "chain": Verb("chain:chain", "Propagate, then train segmenter, classifier and both."),
    },
}
_VERBS = {name: verb for verbs in GROUPS.values() for name, verb in verbs.items()}


class _Commands(Mapping[str, Any]):
    """The commands, each imported when it is used."""

    def __getitem__(self, name: str) -> Any:
        command = _VERBS[name].load()
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_VERBS)

    def __len__(self) -> int:
        return len(_VERBS)


class Verbs(TyperGroup):
    """All commands. Each reports Ctrl-C, SIGTERM and SIGHUP and exits with the corresponding code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()  # type: ignore[assignment]  # nothing is added to them

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return [*_VERBS]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, options and commands as plain text: panels would import twice as much."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in groups."""
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.help) for name, verb in verbs.items()])

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with interruptible("interrupted."):
            return super().invoke(ctx)
