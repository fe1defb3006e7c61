"""The interface of a phantom: settings with presets, a function that makes a cohort, counterfactuals."""

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
    """Settings of a phantom that can also provide a number per case."""

    measured: bool = False
    """Also write a number measured in each case, as a target of kind number."""

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Without it, what is written down of a phantom is what earlier versions wrote.
        data: dict[str, Any] = write(self)
        return {name: value for name, value in data.items() if name != "measured" or value}


@dataclass(frozen=True)
class Switch(Generic[C]):
    """A feature that can be added to or removed from a case.

    Attributes:
        what: the feature in words, such as `the clip`.
        has: whether the case has it.
        switched: the case with the feature added or removed.
    """

    what: str
    has: Callable[[C], bool]
    switched: Callable[[C], C]


@dataclass(frozen=True)
class Counterfactuals(Generic[C]):
    """Rendering of a phantom's cases with one feature switched and the same noise.

    Attributes:
        truth: the column of truth.csv with the mask of the labelled object (hematoma, object); unique to the
            phantom.
        case: the dataclass of a case's parameters.
        render: returns a case's image in the cohort's units, (I, J).
        switches: by name; `shortcut` is the planted feature, `marker` the feature that defines the label.
    """

    truth: str
    case: type[C]
    render: Callable[[C], NDArray[np.generic]]
    switches: Mapping[str, Switch[C]]


@dataclass(frozen=True)
class Phantom(Generic[S, C]):
    """A kind of synthetic cohort with known ground truth.

    Attributes:
        name: its name in commands and studies.
        presets: settings by name.
        make: function that writes a cohort: (out, spec, seed, progress).
        counterfactuals: how to switch features of its cases, if possible.
    """

    name: str
    presets: Mapping[str, S]
    make: Callable[[Path, S, int, Progress | None], Cohort]
    counterfactuals: Counterfactuals[C] | None = None

    def spec(self, preset: str, changes: Mapping[str, Any], *, where: str) -> S:
        """Return the settings of a preset with overrides.

        Args:
            preset: its name.
            changes: overrides by key.
            where: location named in errors.

        Raises:
            UsageError: the preset or a key does not exist, or a value is invalid.
        """
        if preset not in self.presets:
            hint = did_you_mean(preset, list(self.presets))
            raise UsageError(f"{where}: {self.name} has no preset '{preset}'.{hint}")
        base = self.presets[preset]
        return parse_spec(type(base), {**base.model_dump(), **changes}, where=where, error=UsageError)
