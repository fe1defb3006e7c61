"""The verbs by name, found and described without importing them."""

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
    """Where a verb is, and what it does in a line.

    Attributes:
        place: module within `threefold.cli`, and the function or the Typer of several in it.
        help: for the list of all verbs.
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
        "import": Verb("importing:importing", "Make a cohort of a table, DICOM series or a public data set."),
        "check": Verb("check:check", "Find what training would refuse, and what would mislead."),
        "phantom": Verb("phantom:phantom", "Make a synthetic cohort with known truth."),
        "export": Verb("exporting:exporting", "Write a cohort for another program."),
    },
    "Train": {
        "demo": Verb("demo:demo", "Phantom, training, evaluation and figures in one command."),
        "recipes": Verb("recipes:recipes", "List the recipes, or show one."),
        "plugins": Verb("plugins:plugins", "List networks and tasks by name, and where they come from."),
        "plan": Verb("plan:plan", "Show what a training would do, or why it would be refused."),
        "train": Verb("train:train", "Train a recipe on a cohort."),
        "finish": Verb("finish:finish", "Use the best epoch so far of a stopped training."),
    },
    "Ask a run": {
        "evaluate": Verb("evaluate:evaluate", "Metrics by hospital, with intervals."),
        "predict": Verb("predict:predict", "Predict new images; no labels are needed."),
        "explain": Verb("explain:explain", "Compare the network's attention with the lesion."),
        "probe": Verb("probe:probe", "Test for shortcuts, and what the features tell."),
        "similarity": Verb("similarity:similarity", "Compare the features of runs (linear CKA)."),
        "report": Verb("report:report", "Write a run or a study as one HTML file."),
    },
    "Studies": {
        "study": Verb("study:study", "Run and compare many trainings with statistics."),
        "schema": Verb("schema:schema", "Print a JSON schema, for editors of YAML files."),
    },
    "Atlases": {
        "propagate": Verb(
            "propagate:propagate", "Register atlases to every case to carry their labels over."
        ),
        "degrade": Verb("degrade:degrade", "Displace the structures of a cohort by smooth random fields."),
        "chain": Verb("chain:chain", "Propagate, then train segmenter, classifier and both."),
    },
}
_VERBS = {name: verb for verbs in GROUPS.values() for name, verb in verbs.items()}


class _Commands(Mapping[str, Any]):
    """The verbs as commands, each imported when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        command = _VERBS[name].load()
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(_VERBS)

    def __len__(self) -> int:
        return len(_VERBS)


class Verbs(TyperGroup):
    """All verbs: each may be stopped by Ctrl-C, SIGTERM or SIGHUP, says so, and exits with its code."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands()  # type: ignore[assignment]  # nothing is added to them

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the verbs."""
        return [*_VERBS]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, options and verbs as text: panels would import twice as much."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the verbs in groups."""
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name, verb.help) for name, verb in verbs.items()])

    def invoke(self, ctx: Any) -> Any:
        """Run a verb."""
        with interruptible("interrupted."):
            return super().invoke(ctx)
