"""Several cohorts as one, for example one per hospital."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from threefold.cohorts.cohort import AtlasSpec, Cohort, CohortSpec, fingerprint
from threefold.cohorts.staging import Staging, file_columns, finished, row_of, staging
from threefold.core.targets import TargetSpec
from threefold.errors import CohortError


def merge_cohorts(
    cohorts: Sequence[Cohort],
    out: Path,
    *,
    name: str | None = None,
    prefix: bool = False,
    copy: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Join cohorts into a new one; sites keep their names.

    Cases whose files are not there are left out, which provenance.json says.

    Args:
        cohorts: two or more, of the same modality, dimensions, intensity unit and window, targets and
            spacing. One that has not a target of the others' has no value of it.
        out: the new folder.
        name: of the new cohort; None: the cohorts' names joined by +.
        prefix: put the cohort's name before case and patient ids, where two cohorts use the same ones for
            different cases and people.
        copy: copy the files; else the new table refers to them where they are, outside its folder.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: if the cohorts differ in what their numbers mean, share ids, or `out` exists.
    """
    if len(cohorts) < 2:
        raise CohortError("merge needs at least 2 cohorts.")
    spec = _merged_spec(cohorts, name)
    _refuse_shared_names(cohorts, prefix)
    if not prefix:
        _refuse_shared_ids(cohorts)
        _refuse_shared_atlases(cohorts)
    total = sum(len(cohort.cases) for cohort in cohorts)
    rows: list[dict[str, Any]] = []
    atlases: list[AtlasSpec] = []
    different: list[tuple[str, ...]] = []
    with staging(out) as stage:
        for cohort in cohorts:
            before = f"{cohort.spec.name}-" if prefix else ""
            atlases += _atlases(stage, cohort, before, copy=copy)
            different += [tuple(before + case for case in group) for group in cohort.spec.not_duplicates]
            for case in cohort.cases:
                row = row_of(case, cohort.spec)
                row["case_id"] = before + case.case_id
                row["patient_id"] = before + case.patient_id
                with stage.sparing(row["case_id"]):
                    for column in file_columns(cohort.spec):
                        if row.get(column) is not None:
                            row[column] = stage.place(row[column], column, row["case_id"], copy=copy)
                    rows.append(row)
                if progress is not None:
                    progress(len(rows) + len(stage.failed), total)
        parts = [{"name": c.spec.name, "cases": len(c.cases), "fingerprint": fingerprint(c)} for c in cohorts]
        spec = spec.model_copy(update={"atlases": tuple(atlases), "not_duplicates": tuple(different)})
        stage.finish(spec, rows, {"made by": "merge", "cohorts": parts}, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _atlases(stage: Staging, cohort: Cohort, before: str, *, copy: bool) -> tuple[AtlasSpec, ...]:
    """Bring a cohort's atlases into the merged one, `before` their names."""
    named = [atlas.model_copy(update={"name": before + atlas.name}) for atlas in cohort.spec.atlases]
    spec = cohort.spec.model_copy(update={"atlases": tuple(named)})
    return stage.place_atlases(spec, cohort.folder, copy=copy).atlases


def _merged_spec(cohorts: Sequence[Cohort], name: str | None) -> CohortSpec:
    first = cohorts[0]
    for key in ("modality", "dimensions", "intensity", "spacing", "channels", "missing_channels"):
        for other in cohorts[1:]:
            _refuse_difference(key, first, other, getattr(first.spec, key), getattr(other.spec, key))
    shared: dict[str, Any] = {}
    for key in ("classes", "positive", "mask", "structures"):
        # A cohort that does not speak of a target has none of it and so can't contradict.
        speaking = [c for c in cohorts if getattr(c.spec, "classes" if key == "positive" else key)]
        for other in speaking[1:]:
            mine, theirs = getattr(speaking[0].spec, key), getattr(other.spec, key)
            _refuse_difference(key, speaking[0], other, mine, theirs)
        if speaking:
            shared[key] = getattr(speaking[0].spec, key)
    targets: dict[str, TargetSpec] = {}
    for cohort in cohorts:
        for name_of, target in cohort.spec.targets.items():
            owner = next(c for c in cohorts if name_of in c.spec.targets)
            _refuse_difference(f"targets: {name_of}", owner, cohort, owner.spec.targets[name_of], target)
            targets[name_of] = target
    groups: dict[str, tuple[str, ...]] = {}
    columns: dict[str, str] = {}
    for cohort in cohorts:
        for group, sites in cohort.spec.site_groups.items():
            groups[group] = tuple(dict.fromkeys((*groups.get(group, ()), *sites)))
        for column, meaning in cohort.spec.columns.items():
            known = columns.get(column)
            columns[column] = meaning if known in (None, meaning) else f"{known} / {meaning}"
    _refuse_two_groups(groups)
    return first.spec.model_copy(
        update={
            "name": name or "+".join(cohort.spec.name for cohort in cohorts),
            "site_groups": groups,
            "columns": columns,
            "targets": targets,
            **shared,
        }
    )


def _refuse_difference(key: str, a: Cohort, b: Cohort, mine: object, theirs: object) -> None:
    if mine != theirs:
        raise CohortError(
            f"cohorts can't be merged: {key} is {_as_yaml(mine)} in {a.folder} and {_as_yaml(theirs)} in "
            f"{b.folder}. "
            "Bring one to the terms of the other first."
        )


def _as_yaml(value: Any) -> str:
    """Return a part of a cohort.yaml on one line."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    plain = list(plain) if isinstance(plain, tuple) else plain
    return (
        yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6)
        .removesuffix("\n...\n")
        .strip()
    )


def _refuse_two_groups(groups: Mapping[str, Iterable[str]]) -> None:
    counts = Counter(site for sites in groups.values() for site in sites)
    twice = sorted(site for site, count in counts.items() if count > 1)
    if twice:
        raise CohortError(
            f"cohorts can't be merged: {', '.join(twice)} would be in more than one site group. "
            "Correct site_groups in their cohort.yaml."
        )


def _refuse_shared_names(cohorts: Sequence[Cohort], prefix: bool) -> None:
    names = Counter(cohort.spec.name for cohort in cohorts)
    twice = [name for name, count in names.items() if count > 1]
    if prefix and twice:
        raise CohortError(
            f"cohorts can't be merged with prefixes: more than one is named '{twice[0]}'. "
            "Change name in a cohort.yaml."
        )


def _refuse_shared_ids(cohorts: Sequence[Cohort]) -> None:
    for column in ("case_id", "patient_id"):
        owner: dict[str, Cohort] = {}
        for cohort in cohorts:
            for case in cohort.cases:
                value = getattr(case, column)
                other = owner.setdefault(value, cohort)
                if other is not cohort:
                    raise CohortError(
                        f"cohorts can't be merged: {column} '{value}' is in {other.folder} and in "
                        f"{cohort.folder}. If they are different, put the cohorts' names before the ids "
                        "(prefix; --prefix)."
                    )


def _refuse_shared_atlases(cohorts: Sequence[Cohort]) -> None:
    owner: dict[str, Cohort] = {}
    for cohort in cohorts:
        for atlas in cohort.spec.atlases:
            other = owner.setdefault(atlas.name, cohort)
            if other is not cohort:
                raise CohortError(
                    f"cohorts can't be merged: both {other.folder} and {cohort.folder} have an atlas "
                    f"'{atlas.name}'. Leave one out of its cohort.yaml, or put the cohorts' names before "
                    "(prefix; --prefix)."
                )
