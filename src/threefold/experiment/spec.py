"""Base classes of the settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

PositiveInt = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Part = Literal["train", "validation", "test"]


class Spec(BaseModel):
    """Base class of all settings: frozen and typed; unknown keys, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def kinds_in(union: Any) -> dict[str, Any]:
    """Return the specs of a union by their kind, in order."""
    return {str(spec.model_fields["kind"].default): spec for spec in get_args(union)}


@dataclass(frozen=True)
class ByKind:
    """Validates a union of specs by their `kind`.

    Attributes:
        default: the kind if none is given.
        own: the name, in messages, of the last spec of the union, which takes all other kinds; empty: other
            kinds are refused.
    """

    default: str = ""
    own: str = ""

    def tag(self, value: Any, kinds: Collection[str]) -> str:
        """Return the kind of a mapping or a spec; `own` if it is not among `kinds`."""
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        kind = str(self.default if kind is None else kind)
        return kind if kind in kinds or not self.own else self.own

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the schema of the union, for pydantic."""
        kinds = kinds_in(source)
        last = get_args(source)[-1]
        choices = {self.own if self.own and spec is last else kind: spec for kind, spec in kinds.items()}
        return core_schema.tagged_union_schema(
            {kind: handler.generate_schema(spec) for kind, spec in choices.items()},
            lambda value: self.tag(value, choices),
        )
