"""Settings of a recipe that trains several networks, which predict together."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from threefold.experiment.spec import Seed, Spec


class MemberSpec(Spec):
    """One network of an ensemble."""

    recipe: str
    """A recipe's name."""
    seed: Seed = 0
    """Random seed of its training, and of its pretraining."""


class EnsembleSpec(Spec):
    """An ensemble: networks that are trained one by one and predict together."""

    name: str
    description: str = ""
    paper: str = ""
    """The line of the paper that this reproduces, and how ambiguities were resolved."""
    members: Annotated[tuple[MemberSpec, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _members_differ(self) -> Self:
        if len({*self.members}) < len(self.members):
            raise ValueError("members: one is there twice; give each its own seed")
        return self
