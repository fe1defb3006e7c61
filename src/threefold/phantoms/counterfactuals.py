"""The same phantom case with one thing switched, and the truth of every site: for evaluation alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.errors import CohortError
from threefold.phantoms.parameters_file import PARAMETERS, read_parameters
from threefold.phantoms.phantom import Counterfactuals
from threefold.phantoms.registry import PHANTOMS
from threefold.validation import read_table

_DIFFERS_AT_MOST = 0.02
"""Share of the pixels that another processor's rounding may change; other parameters change nearly all."""


@dataclass(frozen=True)
class PhantomCase:
    """A case of a phantom that can be rendered again.

    Attributes:
        case_id: its name.
        parameters: all that determines its image.
        of: how the phantom's cases are switched and rendered.
    """

    case_id: str
    parameters: Any
    of: Counterfactuals[Any]

    @property
    def switches(self) -> tuple[str, ...]:
        """The names of what can be switched."""
        return tuple(self.of.switches)

    def has(self, name: str) -> bool:
        """Whether the case has what a switch is about (`shortcut`, `marker`)."""
        return self.of.switches[name].has(self.parameters)

    def verify(self, original: NDArray[np.generic]) -> None:
        """Make sure that the parameters render an image, (I, J), of the cohort.

        Raises:
            CohortError: they don't.
        """
        image = self.of.render(self.parameters)
        if image.shape != original.shape or np.mean(image != original) > _DIFFERS_AT_MOST:
            raise CohortError(
                f"case {self.case_id}: its image is not the one that {PARAMETERS} describes, so that it "
                "can't be rendered again with one thing changed. Make the cohort again with this version."
            )

    def render_switched(self, name: str) -> NDArray[np.generic]:
        """Render the case with one thing switched and the noise the same: (I, J) in the cohort's units."""
        return self.of.render(self.of.switches[name].switched(self.parameters))


def phantom_cases(folder: Path) -> dict[str, PhantomCase]:
    """Return a phantom's cases that can be switched, by case id; empty for any other cohort.

    Raises:
        CohortError: parameters.json is damaged.
    """
    of = _counterfactuals(folder)
    if of is None or not (folder / PARAMETERS).is_file():
        return {}
    return {case.case_id: PhantomCase(case.case_id, case, of) for case in read_parameters(folder, of.case)}


def lesion_files(folder: Path) -> dict[str, Path]:
    """Return the file of each case's true hematoma or object, of all sites; empty without such a truth."""
    of = _counterfactuals(folder)
    return {} if of is None else _truth(folder)[of.truth]


def _counterfactuals(folder: Path) -> Counterfactuals[Any] | None:
    """Return how the cases of a phantom's folder are switched: the columns of truth.csv tell which it is."""
    columns = _truth(folder)
    known = (phantom.counterfactuals for phantom in PHANTOMS.values())
    return next((of for of in known if of is not None and of.truth in columns), None)


def _truth(folder: Path) -> Mapping[str, dict[str, Path]]:
    """Return truth.csv: by column, the file of each case."""
    path = folder / "truth.csv"
    if not path.is_file():
        return {}
    again = "Make the cohort again with `threefold phantom`."
    rows = read_table(path, CohortError, again)
    if "case_id" not in rows:
        raise CohortError(f"{path}: expected a column case_id. {again}")
    cases = list(rows.pop("case_id"))
    return {
        str(name): {case: folder / file for case, file in zip(cases, files, strict=True) if file}
        for name, files in rows.items()
    }
