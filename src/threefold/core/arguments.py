"""Arguments of a class that a user names: refused by name before it is made."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from threefold.errors import ExperimentError, bounded
from threefold.validation import did_you_mean


def arguments_of(made: Any) -> tuple[tuple[str, ...], bool]:
    """Return the names of a class's arguments, and whether it takes others as well."""
    try:
        found = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return (), True
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes_others = any(one.kind == inspect.Parameter.VAR_KEYWORD for one in found)
    return tuple(one.name for one in found if one.kind in named), takes_others


def require_arguments(
    made: Any, options: Mapping[str, Any], where: str, *, keys: Iterable[str] = (), given: Iterable[str] = ()
) -> None:
    """Refuse an argument that a class does not have.

    Args:
        made: the class.
        options: by argument.
        where: what is said to be wrong, such as `network my_nets:Net`.
        keys: of the experiment that may be meant.
        given: arguments that the program itself gives.

    Raises:
        ExperimentError: naming the argument and the nearest one.
    """
    known, takes_others = arguments_of(made)
    if takes_others:
        return
    given = tuple(given)
    own = [name for name in known if name not in given]
    for name in options:
        if name not in known:
            raise ExperimentError(
                f"{where}: has no argument '{bounded(name)}'.{did_you_mean(name, (*own, *keys))} "
                f"Its arguments: {', '.join(own) or 'none'}."
            )
