"""Reading and writing experiments: recipes by name, YAML files, `key.path=value` overrides, JSON schema."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from threefold.errors import ExperimentError, bounded
from threefold.experiment import EnsembleSpec, Experiment, Spec
from threefold.experiment.networks import fitted_to_kind
from threefold.paths import Boundary
from threefold.run import COPY_AGAIN
from threefold.validation import did_you_mean, parse_spec, parse_yaml, read_yaml, yaml_value

_RECIPES = files("threefold") / "recipes"


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that the package ships, for example hematoma/mtl-cls-seg-rec."""
    return tuple(
        sorted(
            f"{group.name}/{recipe.name.removesuffix('.yaml')}"
            for group in _RECIPES.iterdir()
            if group.is_dir()
            for recipe in group.iterdir()
            if recipe.name.endswith(".yaml")
        )
    )


def recipe_text(name: str) -> str:
    """Return a recipe's YAML as shipped, comments included.

    Raises:
        ExperimentError: if there is no such recipe; the nearest name is given.
    """
    names = recipe_names()
    if name not in names:
        raise ExperimentError(f"there is no recipe '{name}'.{did_you_mean(name, names)}")
    group, _, recipe = name.partition("/")
    return (_RECIPES / group / f"{recipe}.yaml").read_text(encoding="utf-8")


def load_ensemble(recipe_or_file: str) -> EnsembleSpec | None:
    """Return the ensemble of a recipe or a YAML file that names members; None: it is of one experiment.

    Raises:
        ExperimentError: as `load_experiment`.
    """
    data = _read_extended(recipe_or_file, ())
    if "members" not in data:
        return None
    return parse_spec(EnsembleSpec, data, where=recipe_or_file, error=ExperimentError)


def read_recipe(name: str) -> Experiment:
    """Return the experiment of a shipped recipe."""
    return load_experiment(name)


def load_experiment(recipe_or_file: str, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Experiment:
    """Return the experiment of a recipe's name or of a YAML file, with overrides applied.

    A recipe or file may say `extends: NAME` (a recipe, or a file beside or below it): its keys then change
    that one. Where the network is to be of another kind, only keys that both kinds have are taken over.

    Args:
        recipe_or_file: a name from `recipe_names()`, or the path of a YAML file.
        overrides: `key.path=value` with a YAML value, for example `training.epochs=3`; or values by the key's
            path.

    Raises:
        ExperimentError: naming the key's path and the nearest valid key.
    """
    data = _read_extended(recipe_or_file, ())
    if "members" in data:
        raise ExperimentError(
            f"{recipe_or_file}: is an ensemble of several trainings, which `threefold train` takes; this "
            "asks for one. Name one of its members (`threefold recipes show` lists them)."
        )
    return experiment_of(data, overrides, recipe_or_file)


def experiment_of(
    data: dict[str, Any], overrides: Sequence[str] | Mapping[str, Any], where: str
) -> Experiment:
    """Return the experiment of plain data, which is changed, with overrides as `load_experiment` takes them.

    Raises:
        ExperimentError: naming where the data are from, the key's path and the nearest valid key.
    """
    if isinstance(overrides, Mapping):
        for path, value in sorted(overrides.items(), key=_names_no_kind):
            set_key(data, path, value)
    else:
        for override in sorted(overrides, key=_names_no_kind):
            apply_override(data, override)
    return parse_spec(Experiment, data, where=where, error=ExperimentError)


def read_experiment(path: Path) -> Experiment:
    """Return the experiment that a run keeps.

    Raises:
        ExperimentError: naming the key, and what to do.
    """
    try:
        return load_experiment(str(path))
    except ExperimentError as error:
        raise ExperimentError(f"{error}\n{COPY_AGAIN}") from None


def experiment_yaml(experiment: Spec) -> str:
    """Return an experiment, or an ensemble, as YAML with every default written out; it reads back equal."""
    # Through JSON, so that tuples become plain lists.
    data = json.loads(experiment.model_dump_json())
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100))


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `key.path=value` in `data`, making the mappings on the way.

    Raises:
        ExperimentError: it has another form, or its value is not YAML.
    """
    path, separator, text = override.partition("=")
    if not separator:
        raise ExperimentError(f"'{override}': expected key.path=value, for example training.epochs=3.")
    set_key(data, path, yaml_value(text, f"'{bounded(override)}'", ExperimentError))


def set_key(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the key of a path, making the mappings on the way.

    Raises:
        ExperimentError: the path has an empty part.
    """
    keys = path.split(".")
    if not all(keys):
        raise ExperimentError(f"'{bounded(path)}': expected the path of a key, such as training.epochs.")
    if keys == ["network", "kind"] and isinstance(data.get("network"), dict):
        data["network"] = fitted_to_kind(data["network"], value)
    inner = data
    for key in keys[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    inner[keys[-1]] = value


def _names_no_kind(override: str | tuple[str, Any]) -> bool:
    """Order overrides: the network's kind first, since its other keys depend on it."""
    path = override.partition("=")[0] if isinstance(override, str) else override[0]
    return path != "network.kind"


def _read_extended(recipe_or_file: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """Return an experiment's plain data with what it extends merged under it.

    Args:
        recipe_or_file: a recipe or a file.
        seen: those that extend it, the first one's folder holding all files.
    """
    if recipe_or_file in seen:
        raise ExperimentError(f"{recipe_or_file}: extends itself ({' -> '.join([*seen, recipe_or_file])}).")
    is_file = recipe_or_file.endswith((".yaml", ".yml"))
    if is_file:
        data = read_yaml(Path(recipe_or_file), ExperimentError)
    else:
        data = parse_yaml(recipe_text(recipe_or_file), recipe_or_file, ExperimentError)
    extends = data.pop("extends", None)
    if extends is None:
        return data
    if not isinstance(extends, str):
        raise ExperimentError(f"{recipe_or_file}: extends: expected a recipe or a file, found {extends!r}.")
    if is_file and extends.endswith((".yaml", ".yml")):
        first = Path([*seen, recipe_or_file][0]).parent
        base = os.path.normpath(Path(recipe_or_file).parent / extends)
        how = Boundary(first, "that folder").leaves(Path(base).absolute())
        if how is not None:
            raise ExperimentError(
                f"{recipe_or_file}: extends: expected a recipe or a file in {first}: {how}. Copy it there."
            )
        extends = base
    base_data, network = _read_extended(extends, (*seen, recipe_or_file)), data.get("network")
    if isinstance(network, Mapping) and "kind" in network and isinstance(base_data.get("network"), Mapping):
        base_data["network"] = fitted_to_kind(base_data["network"], network["kind"])
    return _merged(base_data, data)


def _merged(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `change` laid over it, mapping by mapping."""
    result = dict(base)
    for key, value in change.items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return result
