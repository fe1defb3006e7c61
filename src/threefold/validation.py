"""Reading YAML into typed specifications, with errors that name the key and the nearest valid one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from threefold.errors import ThreefoldError

T = TypeVar("T", bound=BaseModel)


def read_yaml(path: Path, error: type[ThreefoldError]) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        error: if the file is missing, not text, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise error(f"{path}: can't be read as text ({problem}).") from problem
    return parse_yaml(text, str(path), error)


def parse_yaml(text: str, where: str, error: type[ThreefoldError]) -> dict[str, Any]:
    """Return the mapping in a YAML text; `where` names it in errors."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as problem:
        raise error(f"{where}: not valid YAML. {problem}") from None
    if data is None:
        raise error(f"{where}: is empty; expected keys and values.")
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise error(f"{where}: expected keys and values at the top, found {type(data).__name__}.")
    return data


def parse_spec(model: type[T], data: Mapping[str, Any], *, where: str, error: type[ThreefoldError]) -> T:
    """Build `model` from plain data.

    Args:
        model: the pydantic model.
        data: keys and values, as YAML gives them.
        where: names the source in the message (a path, a recipe).
        error: what to raise.

    Raises:
        error: one line per problem: the key's path, what was expected, what was found and, for an unknown
            key, the nearest valid one.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as problem:
        lines = [_describe(model, detail) for detail in problem.errors()]
        raise error("\n  ".join([f"{where}:", *dict.fromkeys(lines)])) from None


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
    shown = "" if isinstance(found, Mapping | BaseModel) else f", found {found!r}"
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
