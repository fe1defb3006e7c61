"""Reading YAML into typed specifications, with errors that name the key and the nearest valid one."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from threefold.csv_tables import read_frame
from threefold.errors import ThreefoldError, bounded

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T", bound=BaseModel)

_LARGEST_TEXT = 20_000_000
"""Bytes of a text that is read whole; experiments and notes are a thousandth of it."""
_LARGEST_KEPT = 50_000
"""Characters of a text of YAML that is not read again while it is the same."""
_MOST_VALUES = 200_000
_DEEPEST = 60
_MERGE = "tag:yaml.org,2002:merge"


def read_text(path: Path, error: type[ThreefoldError]) -> str:
    """Return the text of a file that a person or this program wrote.

    Raises:
        error: it is missing, no file (a folder, a pipe, a device), not UTF-8, or larger than such a file is.
    """
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path}: expected a file of text, found a folder, a pipe or a device.")
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_TEXT + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path}: no such file.") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"{path}: can't be read ({getattr(problem, 'strerror', None) or problem}).") from problem
    if len(data) > _LARGEST_TEXT:
        raise error(
            f"{path}: is larger than {_LARGEST_TEXT // 10**6} MB; expected a short text. Is it another file?"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: can't be read as text ({problem}). Save it as UTF-8.") from None


def read_yaml(path: Path, error: type[ThreefoldError]) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        error: if the file is missing, not text, not YAML, or not a mapping.
    """
    return parse_yaml(read_text(path, error), str(path), error)


def parse_yaml(text: str, where: str, error: type[ThreefoldError]) -> dict[str, Any]:
    """Return the mapping in a YAML text; `where` names it in errors.

    Raises:
        error: it is no YAML, no mapping, a key is there twice, or its anchors would unfold it beyond measure.
    """
    data = yaml_value(text, where, error)
    if data is None:
        raise error(f"{where}: is empty; expected keys and values.")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise error(f"{where}: expected keys and values at the top, found {type(data).__name__}.")
    return data


def yaml_value(text: str, where: str, error: type[ThreefoldError]) -> Any:
    """Return what a YAML text says; arguments and errors as `parse_yaml`, but for the mapping."""
    try:
        data = deepcopy(_loaded_before(text)) if len(text) <= _LARGEST_KEPT else yaml.load(text, _Loader)
    except MemoryError:
        raise
    except RecursionError:
        raise error(f"{where}: not valid YAML: nested too deeply.") from None
    except Exception as problem:  # beside YAMLError, the parser lets through what its conversions raise
        raise error(f"{where}: not valid YAML. {bounded(str(problem))}") from None
    _refuse_unfolding(data, where, error)
    return data


@lru_cache(maxsize=256)
def _loaded_before(text: str) -> Any:
    """Return what a text says, which is not to be changed.

    A study reads its recipes, and the experiments of its runs, again and again.
    """
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, where plain YAML keeps the last and forgets the others, and depth.

    Reading takes the square of the depth, so it ends at the first level that is too deep.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._level += 1
        if self._level > _DEEPEST:
            raise RecursionError
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{bounded(key.value)}' is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refuse_unfolding(data: Any, where: str, error: type[ThreefoldError]) -> None:
    """Refuse what is small as text and huge, deep or endless as data: an alias stands for a whole anchor."""
    left, level = _MOST_VALUES, [data]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for one in level:
            inner = one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
            left -= len(inner)
            if left < 0:
                break
            below.extend(inner)
        if left < 0 or not below:
            break
        level = below
    if left < 0 or below:
        raise error(
            f"{where}: unfolds to more than {_MOST_VALUES} values or {_DEEPEST} levels. Expected settings "
            "written out: use anchors (&, *) for few and small things."
        )


def read_json(path: Path, error: type[ThreefoldError], remedy: str) -> dict[str, Any]:
    """Return the object in a JSON file that a command wrote.

    Args:
        path: the file.
        error: what to raise.
        remedy: what to do where it is damaged.

    Raises:
        error: if the file is missing, can't be read, or holds something else.
    """
    try:
        data = json.loads(read_text(path, error))
    except error as problem:
        raise error(f"{problem} {remedy}") from None
    except RecursionError:
        raise error(f"{path}: can't be read: nested too deeply. {remedy}") from None
    except ValueError as problem:
        raise error(f"{path}: can't be read ({problem}). {remedy}") from None
    if not isinstance(data, dict):
        raise error(f"{path}: expected names and values, found {type(data).__name__}. {remedy}")
    return data


def read_table(path: Path, error: type[ThreefoldError], remedy: str) -> pd.DataFrame:
    """Return a table (CSV) that a command wrote, as text.

    Args:
        path: the file.
        error: what to raise.
        remedy: what to do where it is damaged.

    Raises:
        error: if the file is missing, can't be read, or is no table.
    """
    try:
        return read_frame(path)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise error(f"{path}: can't be read as a table ({bounded(str(problem))}). {remedy}") from problem


def parse_spec(
    model: type[T], data: Mapping[str, Any], *, where: str, error: type[ThreefoldError], remedy: str = ""
) -> T:
    """Build `model` from plain data.

    Args:
        model: the pydantic model.
        data: keys and values, as YAML gives them.
        where: names the source in the message (a path, a recipe).
        error: what to raise.
        remedy: what to do, where the message is not enough.

    Raises:
        error: one line per problem: the key's path, what was expected, what was found and, for an unknown
            key, the nearest valid one.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as problem:
        lines = [_describe(model, detail) for detail in problem.errors()]
        raise error(
            "\n  ".join([f"{where}:", *dict.fromkeys(lines), *([remedy] if remedy else [])])
        ) from None


def nearest(word: str, candidates: Sequence[str]) -> str | None:
    """Return the candidate that looks most like `word`, or None where none does."""
    matches = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(word: str, candidates: Sequence[str]) -> str:
    """Return ' Did you mean X?' or a list of what is valid."""
    match = nearest(word, candidates)
    if match is not None:
        return f" Did you mean '{match}'?"
    return f" Valid: {', '.join(candidates)}." if candidates else ""


def sentence(text: str) -> str:
    """Return a text that ends as a sentence does, with a full stop where it has no end yet."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _describe(model: type[BaseModel], detail: ErrorDetails) -> str:
    location = tuple(part for part in detail["loc"])
    owner, path = _owner(model, location)
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        valid = list(owner.model_fields) if owner is not None else []
        return f"{key}: unknown key.{did_you_mean(path[-1], valid)}"
    if detail["type"] == "missing":
        return f"{key}: missing, expected a value."
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in ("tuple_type", "list_type"):
        message = "expected a list"
    found = detail["input"]
    shown = "" if isinstance(found, Mapping | BaseModel) else f", found {bounded(repr(found))}"
    return sentence(f"{key}: {message}{shown}" if key else f"{message}{shown}")


def _owner(
    model: type[BaseModel], location: tuple[str | int, ...]
) -> tuple[type[BaseModel] | None, list[str]]:
    """Follow an error's location; return the model that owns its last key, and the keys as a user wrote them.

    Pydantic puts the tags of unions into the location; a user never wrote those, so they are left out.
    """
    path: list[str] = []
    owners: list[type[BaseModel]] = [model]
    names_come = False  # the user's own, as keys of a mapping
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(part, int) or names_come:
            path.append(str(part))
            names_come = False
            continue
        field = next((o.model_fields[part] for o in owners if part in o.model_fields), None)
        if field is not None:
            path.append(part)
            if not last:
                owners = _models(field.annotation)
                names_come = get_origin(field.annotation) in (dict, Mapping)
            continue
        tagged = [o for o in owners if _tag(o) == part or o.__name__ == part]
        if tagged:
            owners = tagged
        elif last and _is_key(part):
            path.append(part)
    return (owners[0] if owners else None), path


def _is_key(part: str) -> bool:
    """Whether a location's part can be a user's key (pydantic's own tags hold brackets or dashes)."""
    return not any(character in part for character in "[](),")


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return kind.default if kind is not None and isinstance(kind.default, str) else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models inside an annotation (through unions, Annotated and containers)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is None and not isinstance(annotation, UnionType):
        return []
    found: list[type[BaseModel]] = []
    for argument in get_args(annotation):
        if argument is not Union:
            found.extend(_models(argument))
    return found
