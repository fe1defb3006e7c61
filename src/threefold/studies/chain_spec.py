"""Settings of a chain: propagation, then a sequence of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from threefold.errors import ExperimentError
from threefold.experiment import Experiment, Spec
from threefold.experiments import load_experiment
from threefold.paths import PathPart
from threefold.run import PROPAGATION
from threefold.validation import did_you_mean, parse_spec, parse_yaml, read_yaml

_CHAINS = files("threefold") / "studies" / "chains"


class StageSpec(Spec):
    """One training of a chain."""

    name: PathPart
    """Name of its run folder and prefix of its overrides."""
    recipe: str
    init_from: str | None = None
    """The earlier stage whose weights initialise it."""


class ChainSpec(Spec):
    """Label propagation, followed by trainings on the propagated structures."""

    name: str
    description: str = ""
    propagation: Mapping[str, Any] = {}
    """Settings of the propagation that differ from its defaults."""
    stages: tuple[StageSpec, ...]

    @model_validator(mode="after")
    def _stages_follow(self) -> Self:
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen or stage.name == PROPAGATION:
                raise ValueError(f"stages: the name '{stage.name}' is taken")
            if stage.init_from is not None and stage.init_from not in seen:
                raise ValueError(
                    f"stage '{stage.name}' starts from '{stage.init_from}', which is no earlier stage"
                )
            seen.append(stage.name)
        return self


def chain_names() -> tuple[str, ...]:
    """Return the names of the chains that the package ships."""
    return tuple(sorted(file.name.removesuffix(".yaml") for file in _CHAINS.iterdir()))


def load_chain(chain_or_file: str) -> ChainSpec:
    """Return a shipped chain, or one from a YAML file.

    Raises:
        ExperimentError: naming the nearest chain or key.
    """
    if chain_or_file.endswith((".yaml", ".yml")):
        data = read_yaml(Path(chain_or_file), ExperimentError)
    else:
        names = chain_names()
        if chain_or_file not in names:
            raise ExperimentError(f"there is no chain '{chain_or_file}'.{did_you_mean(chain_or_file, names)}")
        text = (_CHAINS / f"{chain_or_file}.yaml").read_text(encoding="utf-8")
        data = parse_yaml(text, chain_or_file, ExperimentError)
    return parse_spec(ChainSpec, data, where=chain_or_file, error=ExperimentError)


def stage_overrides(chain: ChainSpec, overrides: Sequence[str]) -> dict[str, list[str]]:
    """Divide `key.path=value` overrides among propagation and stages.

    An override whose first key names a stage (or `propagation`) is that one's alone, without that key; any
    other one is every training's.
    """
    names = [stage.name for stage in chain.stages]
    divided: dict[str, list[str]] = {name: [] for name in (PROPAGATION, *names)}
    for override in overrides:
        first, dot, rest = override.partition(".")
        if dot and first in divided and "=" not in first:
            divided[first].append(rest)
        else:
            for name in names:
                divided[name].append(override)
    return divided


def stage_experiments(chain: ChainSpec, overrides: Sequence[str], runs: Path) -> dict[str, Experiment]:
    """Return each stage's experiment, as it is trained in RUNS/<stage>.

    Raises:
        ExperimentError: naming the stage, the key and the nearest valid one.
    """
    divided = stage_overrides(chain, overrides)
    experiments = {}
    for stage in chain.stages:
        changes = list(divided[stage.name])
        if stage.init_from is not None:
            changes += ["pretrain=null", f"initial_weights.path={(runs / stage.init_from).resolve()}"]
        try:
            experiments[stage.name] = load_experiment(stage.recipe, changes)
        except ExperimentError as error:
            raise ExperimentError(f"stage {stage.name}: {error}") from error
    return experiments
