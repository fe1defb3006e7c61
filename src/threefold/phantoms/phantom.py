"""What a phantom is to the rest: a specification with presets, what makes a cohort, what can be switched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import SerializerFunctionWrapHandler, model_serializer

from threefold.cohorts.cohort import Cohort
from threefold.errors import UsageError
from threefold.experiment import Spec
from threefold.validation import did_you_mean, parse_spec

Progress = Callable[[int, int], None]
"""Called with the number of cases done and of all cases."""

S = TypeVar("S", bound=Spec)
C = TypeVar("C")


class MeasuredSpec(Spec):
    """A phantom's specification that may ask for a number a case beside its label and maps."""

    measured: bool = False
    """Write the number that the case's image shows, too, as a target of kind number."""

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without it, what is written down of a phantom is what earlier versions wrote.
        data: dict[str, Any] = write(self)
        return {name: value for name, value in data.items() if name != "measured" or value}


@dataclass(frozen=True)
class Switch(Generic[C]):
    """Something that a case has or has not.

    Attributes:
        what: it, in words for a reader, such as `the clip`.
        has: whether the case has it.
        switched: the case without it where it had it, and with it where it had not.
    """

    what: str
    has: Callable[[C], bool]
    switched: Callable[[C], C]


@dataclass(frozen=True)
class Counterfactuals(Generic[C]):
    """How a phantom's cases are rendered again with one thing switched and the noise the same.

    Attributes:
        truth: the column of truth.csv that points at the thing which the label is about (hematoma, object);
            no two phantoms have the same one.
        case: the dataclass of a case's parameters.
        render: a case's image in the cohort's units, (I, J).
        switches: by name; `shortcut` is the planted feature, `marker` what the label is about.
    """

    truth: str
    case: type[C]
    render: Callable[[C], NDArray[np.generic]]
    switches: Mapping[str, Switch[C]]


@dataclass(frozen=True)
class Phantom(Generic[S, C]):
    """A kind of synthetic cohort with known truth.

    Attributes:
        name: as commands and studies call it.
        presets: ready-made specifications by name.
        make: writes a cohort: (out, spec, seed, progress).
        counterfactuals: where its cases can be switched.
    """

    name: str
    presets: Mapping[str, S]
    make: Callable[[Path, S, int, Progress | None], Cohort]
    counterfactuals: Counterfactuals[C] | None = None

    def spec(self, preset: str, changes: Mapping[str, Any], *, where: str) -> S:
        """Return a preset's specification with some of its keys changed.

        Args:
            preset: its name.
            changes: by key.
            where: what an error names.

        Raises:
            UsageError: there is no such preset or key, or a value does not fit.
        """
        if preset not in self.presets:
            hint = did_you_mean(preset, list(self.presets))
            raise UsageError(f"{where}: {self.name} has no preset '{preset}'.{hint}")
        base = self.presets[preset]
        return parse_spec(type(base), {**base.model_dump(), **changes}, where=where, error=UsageError)
