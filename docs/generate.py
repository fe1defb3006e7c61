"""Write pages of docs/reference from the code, so that they can't disagree with it.

Run: python docs/generate.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

REFERENCE = Path(__file__).parent / "reference"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _type_text(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None:
        return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))
    if hasattr(annotation, "__metadata__"):
        return _type_text(arguments[0])
    if isinstance(annotation, UnionType) or "Union" in str(origin):
        return " or ".join(_type_text(argument) for argument in arguments)
    if "Literal" in str(origin):
        return " \\| ".join(str(argument) for argument in arguments)
    inner = ", ".join(_type_text(argument) for argument in arguments if argument is not ...)
    return f"{'mapping' if origin is dict or 'apping' in str(origin) else 'list'} of {inner}"


def _default_text(field: Any) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return ""
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    return f"`{'null' if value is None else value}`"


def _model_text(model: type[BaseModel]) -> list[str]:
    lines = [f"## {model.__name__}", "", re.sub(r"\s+", " ", model.__doc__ or "").strip(), ""]
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        meaning = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {_type_text(field.annotation)} | {_default_text(field)} | {meaning} |")
    return [*lines, ""]


def model_page(title: str, introduction: str, root: type[BaseModel]) -> str:
    """Return a page that describes `root` and every model inside it."""
    seen: list[type[BaseModel]] = []
    waiting = [root]
    while waiting:
        model = waiting.pop(0)
        if model not in seen:
            seen.append(model)
            waiting += [m for field in model.model_fields.values() for m in _models_in(field.annotation)]
    lines = [f"# {title}", "", introduction, ""]
    for model in seen:
        lines += _model_text(model)
    return "\n".join(lines).rstrip() + "\n"


def _command_text(command: Any, path: str, depth: int) -> list[str]:
    lines = [f"{'#' * depth} {path}", "", re.sub(r"[ \t]+", " ", (command.help or "")).strip(), ""]
    commands = getattr(command, "commands", None)
    if commands:
        for name, inner in commands.items():
            lines += _command_text(inner, f"{path} {name}", min(depth + 1, 3))
        return lines
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        name = (
            parameter.name.upper() if parameter.param_type_name == "argument" else ", ".join(parameter.opts)
        )
        rows.append(
            f"| `{name}` | {' '.join((getattr(parameter, 'help', '') or '').split())} |".replace("||", "|")
        )
    if rows:
        lines += ["| argument or option | meaning |", "| --- | --- |", *rows, ""]
    return lines


def cli_page() -> str:
    """Return the page of the command line."""
    from threefold.cli.app import app

    command = typer.main.get_command(app)
    lines = _command_text(command, "threefold", 1)
    lines += [
        "## Exit status",
        "",
        "0: success. 1: a problem with data or the run; see the message. 2: the command or the experiment "
        "refers to something that does not exist.",
    ]
    return "\n".join(lines).rstrip() + "\n"


_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")


def _docstring_text(value: Any) -> Iterator[str]:
    """Yield a docstring's lines as Markdown: its sections as lists, the star of a shape (B, *S) as such."""
    in_section = False
    for line in (inspect.getdoc(value) or "").replace("*", r"\*").splitlines():
        section = _SECTION.match(line)
        if section:
            in_section = True
            yield f"**{section[1]}**"
            yield ""
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            entry = re.match(r"( +)([\w, ]+): (.*)", line)
            yield f"- `{entry[2]}`: {entry[3]}" if entry else f"- {line.strip()}"
        else:
            in_section = in_section and (not line or line.startswith(" "))
            yield f"  {line.strip()}" if in_section and line else line.strip()
    yield ""


def _signature_text(name: str, value: Any) -> str:
    """Return how something is called, its annotations as they are written."""
    try:
        text = str(inspect.signature(value))
    except ValueError:
        return name
    return name + re.sub(r"(: |-> )'([^']*)'", r"\1\2", text).replace("(self, ", "(").replace("(self)", "()")


def _public_text(name: str, value: Any) -> Iterator[str]:
    """Yield the entry of a public name, of a class with its methods."""
    yield f"## {name}"
    yield ""
    is_data = inspect.isclass(value) and value.__module__ not in ("threefold.api", "threefold.tasks.task")
    if not inspect.isclass(value):
        yield from (f"```\n{_signature_text(name, value)}\n```", "")
    yield from _docstring_text(value)
    for inner, member in vars(value).items() if inspect.isclass(value) and not is_data else ():
        shown = member.fget if isinstance(member, property) else member
        if inner.startswith("_") or not (inspect.isfunction(shown) and shown.__doc__):
            continue
        called = () if isinstance(member, property) else (f"```\n{_signature_text(inner, shown)}\n```", "")
        yield from (f"### {name}.{inner}", "", *called, *_docstring_text(shown))


def api_page() -> str:
    """Return the page of the public names."""
    import threefold

    lines = [(REFERENCE / "api.md.in").read_text(encoding="utf-8")]
    for name in threefold.__all__:
        lines += _public_text(name, getattr(threefold, name))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def pages() -> dict[Path, str]:
    """Return every generated page."""
    from threefold.atlases.spec import PropagationSpec
    from threefold.cohorts.cohort import CohortSpec
    from threefold.experiment import Experiment
    from threefold.studies.chain_spec import ChainSpec
    from threefold.studies.study_spec import StudySpec

    return {
        REFERENCE / "experiment.md": model_page(
            "Experiments",
            "The keys of a recipe or of your own YAML file. `threefold recipes show NAME` prints a full "
            "recipe, `threefold schema experiment` the JSON schema. A file can start from another with "
            "`extends: NAME`.",
            Experiment,
        ),
        REFERENCE / "cohort.md": (REFERENCE / "cohort_table.md.in").read_text()
        + model_page("cohort.yaml", "What the columns of `cases.csv` mean.", CohortSpec),
        REFERENCE / "propagation.md": model_page(
            "Propagation",
            "The settings of `threefold propagate COHORT --out OUT key=value`, and of a chain under "
            "`propagation`.",
            PropagationSpec,
        ),
        REFERENCE / "chain.md": model_page(
            "Chains",
            "The keys of a file for `threefold chain FILE.yaml`; aortic-arch and aortic-arch-demo are "
            "shipped. `propagation` takes the keys of [a propagation](propagation.md); a stage is a [recipe "
            "or experiment](experiment.md), whose settings `STAGE.key.path=value` overrides on the command "
            "line.",
            ChainSpec,
        ),
        REFERENCE / "study.md": model_page(
            "Studies",
            "The keys of a file for `threefold study run FILE.yaml`. `threefold study list` lists the "
            "shipped studies, `threefold schema study` prints the JSON schema. See "
            "[how to write a study](../how-to/studies.md) and "
            "[its statistics](../explanation/study-statistics.md). A run is named "
            "COHORT/VARIANT/split-K-seed-S; its folder is `runs/COHORT/VARIANT/split-K-seed-S`.",
            StudySpec,
        ),
        REFERENCE / "cli.md": cli_page(),
        REFERENCE / "api.md": api_page(),
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
        print(path)
