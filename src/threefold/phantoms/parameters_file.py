"""parameters.json of a phantom's folder: what every case was rendered from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from threefold.errors import CohortError
from threefold.experiment import Spec
from threefold.run import write_new
from threefold.validation import read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PARAMETERS = "parameters.json"

C = TypeVar("C")


def write_parameters(
    folder: Path,
    spec: Spec,
    seed: int,
    cases: Iterable[DataclassInstance],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a cohort's specification and the parameters of its cases, a line each.

    Args:
        folder: the cohort's.
        spec: of the cohort.
        seed: that it was drawn with.
        cases: their parameters.
        facts: more that a reader may need.
    """
    head = json.dumps({"spec": spec.model_dump(mode="json"), "seed": seed, **(facts or {})})
    lines = ",\n".join(json.dumps(asdict(case)) for case in cases)
    write_new(folder / PARAMETERS, f'{head[:-1]}, "cases": [\n{lines}\n]}}\n')


def read_parameters(folder: Path, case: type[C]) -> tuple[C, ...]:
    """Read back the parameters of a cohort's cases; rendering them gives the cohort's images.

    Args:
        folder: of a cohort that `threefold phantom` made.
        case: the dataclass of a case's parameters.

    Raises:
        CohortError: there is no such file, or it is damaged or of another phantom.
    """
    from pydantic import TypeAdapter

    path = folder / PARAMETERS
    if not path.is_file():
        raise CohortError(f"{path}: not found. Expected a folder that `threefold phantom` made.")
    try:
        content = read_json(path, CohortError, "Make the cohort again with `threefold phantom`.")
        return TypeAdapter(tuple[case, ...]).validate_python(content["cases"])  # type: ignore[valid-type]
    except (ValueError, KeyError, TypeError) as error:
        raise CohortError(
            f"{path}: can't be read ({error}). Make the cohort again with `threefold phantom`."
        ) from error
