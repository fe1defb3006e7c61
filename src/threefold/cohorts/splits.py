"""Splits: which cases train, validate and test, without a patient on two sides by accident."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from threefold.cohorts.cohort import UNKNOWN, Case, Cohort, CohortSpec
from threefold.cohorts.stratification import Stratum, apportion, assign
from threefold.core.targets import ClassTarget, MultilabelTarget, TargetSpec
from threefold.csv_tables import table_rows, table_text
from threefold.errors import CohortError, RunError, some
from threefold.experiment import Part, SplitSpec
from threefold.paths import open_file
from threefold.run import COPY_AGAIN, write_atomically
from threefold.validation import did_you_mean

PARTS: tuple[Part, ...] = get_args(Part)
_HEADER = ("case_id", "part")
# The site group that is held out where an experiment does not say what to hold out.
_EXTERNAL = "external"


@dataclass(frozen=True)
class Split:
    """The part of every case of a cohort.

    Attributes:
        kind: how it was made (`SplitSpec.kind`).
        parts: part by case id.
        leaking_patients: patients with cases in more than one part, by name; only a slice split has any.
            UNKNOWN alone where the cohort says that its patients are not known.
    """

    kind: str
    parts: Mapping[str, Part]
    leaking_patients: tuple[str, ...] = ()

    @property
    def leaks(self) -> bool:
        """Whether a patient is, or may be, in more than one part, which must be said beside every number."""
        return bool(self.leaking_patients)

    def cases(self, cohort: Cohort, part: Part) -> tuple[Case, ...]:
        """Return the cases of a part in the order of the cohort's table.

        Raises:
            CohortError: if the cohort has a case that the split does not know.
        """
        unknown = [case.case_id for case in cohort.cases if case.case_id not in self.parts]
        if unknown:
            raise CohortError(
                f"{cohort.folder}: {_some(unknown)} of the cohort not in the split. The table changed since "
                "the split was made: make a new one, or use the cohort that it was made for."
            )
        return tuple(case for case in cohort.cases if self.parts[case.case_id] == part)


def make_split(cohort: Cohort, spec: SplitSpec) -> Split:
    """Divide a cohort into train, validation and test.

    - patient: whole patients, spread evenly by label, site and presence of masks (or of structures, where no
      atlas could propagate them). A patient with several labels or sites counts for each of them. With
      `folds` the patients are divided into so many folds in this way first, and number `fold` is the test
      part.
    - site: the cases of `hold_out` (sites or site groups) are the test part; of the other patients,
      `validation` are for validation and the rest train.
    - leave-one-site-out: the same, where the held-out site is number `fold` of the sites in the order of
      their names; sites in `hold_out` are tested in every fold and are no fold of their own.
    - slice: single cases, spread like patients. It leaks patients; the split names them.
    - column: the table's own `split` column.

    A patient seen both at a held-out site and elsewhere goes to the test part with all cases (except with
    kinds slice and column, which go by case): nothing leaks and no case is lost, and numbers by site still
    tell the two places apart.

    The same seed gives the same parts on every machine, whatever the order of the rows.

    With `hold_out` None the site group `external` is held out by the kinds patient, site and slice, where
    cohort.yaml has one with cases.

    Args:
        cohort: the cases.
        spec: kind, fractions (of the patients that are not held out; of the cases for kind slice) and seed.

    Raises:
        CohortError: if the train or the validation part, or a test part that was asked for, would be
            empty; if a held-out site does not exist; for kind column, if a case has no part or a patient
            has two.
    """
    held_out = _held_out_sites(cohort, spec)
    if spec.kind == "column":
        parts = _column_parts(cohort, held_out)
    else:
        by_case = spec.kind == "slice"
        groups: dict[str, list[Case]] = defaultdict(list)
        for case in cohort.cases:
            groups[case.case_id if by_case else case.patient_id].append(case)
        parts = _grouped_parts(cohort, spec, groups, held_out)
    split = Split(spec.kind, parts, _leaking(cohort, parts))
    if split.leaks and spec.kind != "slice" and "patient" not in cohort.spec.unknown:
        raise CohortError(_leak_message(cohort, split))
    for part in PARTS[:2]:
        if part not in parts.values():
            raise CohortError(
                f"{cohort.folder}: the {part} part of the {spec.kind} split has no case. "
                "Hold out fewer sites, or name cases for it in the split column."
            )
    return split


def require_targets(cohort: Cohort, split: Split, targets: Collection[str]) -> None:
    """Refuse a split whose train part can't teach a target.

    Args:
        cohort: the cases.
        split: their parts.
        targets: what the tasks learn from .

    Raises:
        CohortError: if no train case has the target or, for the label, if the train part has one class.
    """
    train = split.cases(cohort, "train")
    for target in targets:
        having = [case for case in train if target in case.targets]
        if not having:
            raise CohortError(
                f"{cohort.folder}: none of the {len(train)} train cases of the {split.kind} split has a "
                f"{target}. Fill the {target} column, hold out other sites, or leave that task out."
            )
        kind = cohort.spec.all_targets[target]
        if isinstance(kind, ClassTarget) and len({case.targets[target] for case in having}) == 1:
            only = kind.classes[having[0].targets[target]]
            raise CohortError(
                f"{cohort.folder}: all {len(having)} labelled train cases of the {split.kind} split are "
                f"'{only}'. A classification needs two classes: add cases of another one, hold out other "
                "sites, or leave the classification task out."
            )


def write_split(path: Path, split: Split) -> None:
    """Write a split: a CSV of case_id and part, below comment lines with its kind and leaking patients.

    Raises:
        RunError: if the disk refuses; the file that was there is untouched.
    """
    head = f"# kind: {split.kind}\n# leaking patients: {json.dumps(split.leaking_patients)}\n"
    write_atomically(path, head + table_text([_HEADER, *sorted(split.parts.items())]))


def read_split(path: Path) -> Split:
    """Read what `write_split` wrote.

    Raises:
        RunError: naming the file and the row, if it is not a split.
    """
    try:
        with open_file(path) as stream:
            text = stream.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: the split can't be read ({error}). {COPY_AGAIN}") from error
    kind, leaking, table = (*text.split("\n", 2), "", "")[:3]
    try:
        patients = tuple(json.loads(leaking.removeprefix("# leaking patients: ")))
        header, *rows = table_rows(table)
        if not all(isinstance(name, str) for name in patients):
            raise TypeError
    except (ValueError, TypeError, RecursionError, csv.Error):
        header, rows, patients = [], [], ()
    if not kind.startswith("# kind: ") or tuple(header) != _HEADER:
        raise RunError(
            f"{path}: not a split. Expected the kind, the leaking patients and a table of "
            f"{' and '.join(_HEADER)}, as `threefold train` writes it: copy the run folder again."
        )
    parts: dict[str, Part] = {}
    for number, row in enumerate(rows, start=4):
        if len(row) != 2 or row[1] not in PARTS or row[0] in parts:
            raise RunError(
                f"{path}: row {number}: expected a case that was not yet named and one of "
                f"{', '.join(PARTS)}; found {row}. {COPY_AGAIN}"
            )
        parts[row[0]] = row[1]
    return Split(kind.removeprefix("# kind: "), parts, patients)


def _named_sites(cohort: Cohort, names: Iterable[str]) -> frozenset[str]:
    """Return the sites that `names` (sites or site groups) stand for."""
    groups = cohort.spec.site_groups
    found: set[str] = set()
    for name in names:
        members = set(groups.get(name, ())) & set(cohort.sites)
        if name in groups and name in cohort.sites and members != {name}:
            raise CohortError(
                f"{cohort.folder}: '{name}' is both a site and a group of sites; "
                "rename the group in cohort.yaml."
            )
        if name in cohort.sites:
            members = {name}
        if not members:
            hint = did_you_mean(name, [*cohort.sites, *groups])
            raise CohortError(f"{cohort.folder}: hold_out names '{name}', where no case is from.{hint}")
        found |= members
    return frozenset(found)


def foldable_sites(cohort: Cohort, spec: SplitSpec) -> tuple[str, ...]:
    """Return the sites of which leave-one-site-out leaves one out in each fold, by number.

    Raises:
        CohortError: there are fewer than two; a site to be held out of all folds does not exist.
    """
    always_held_out = _named_sites(cohort, spec.hold_out or ())
    sites = tuple(site for site in cohort.sites if site not in always_held_out)
    if len(sites) < 2:
        raise CohortError(
            f"{cohort.folder}: leave-one-site-out needs at least 2 sites that are not held out anyway, "
            f"found {len(sites)}. Use a patient split."
        )
    return sites


def _held_out_sites(cohort: Cohort, spec: SplitSpec) -> frozenset[str]:
    hold_out = spec.hold_out
    if hold_out is None:
        external = set(cohort.spec.site_groups.get(_EXTERNAL, ())) & set(cohort.sites)
        hold_out = (_EXTERNAL,) if external and spec.kind in ("patient", "site", "slice") else ()
    named = _named_sites(cohort, hold_out)
    if spec.kind == "site" and not named:
        raise CohortError(
            f"{cohort.folder}: a site split needs hold_out, the sites or site groups to test on. "
            f"Sites: {', '.join(cohort.sites)}."
        )
    if spec.kind != "leave-one-site-out":
        return named
    sites = foldable_sites(cohort, spec)
    if spec.fold >= len(sites):
        raise CohortError(
            f"{cohort.folder}: fold {spec.fold} of leave-one-site-out does not exist; "
            f"the {len(sites)} folds are 0 to {len(sites) - 1} ({', '.join(sites)})."
        )
    return named | {sites[spec.fold]}


def _column_parts(cohort: Cohort, held_out: frozenset[str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    without: list[str] = []
    for case in cohort.cases:
        part = "test" if case.site in held_out else case.split
        if part is None:
            without.append(case.case_id)
        else:
            parts[case.case_id] = part
    if without:
        raise CohortError(
            f"{cohort.folder}: {_some(without)} without a part in the split column, which a column split "
            f"goes by. Fill it ({', '.join(PARTS)}), or use a patient split."
        )
    return parts


def _grouped_parts(
    cohort: Cohort, spec: SplitSpec, groups: Mapping[str, Sequence[Case]], held_out: frozenset[str]
) -> dict[str, Part]:
    tested = {name for name, cases in groups.items() if any(case.site in held_out for case in cases)}
    free = {name: _strata(cases, cohort.spec) for name, cases in groups.items() if name not in tested}
    what = "cases" if spec.kind == "slice" else "patients"
    if spec.folds is not None:
        folds = _folds(cohort, free, spec.folds, spec.seed)
        tested |= {name for name, fold in folds.items() if fold == spec.fold}
        free = {name: strata for name, strata in free.items() if name not in tested}
    without_test = spec.folds is not None or spec.kind in ("site", "leave-one-site-out")
    test = 0.0 if without_test else spec.test
    shares = (1 - spec.validation - test, spec.validation, test)
    if shares[0] <= 1e-9 or shares[1] == 0:
        raise CohortError(
            f"{cohort.folder}: with validation {spec.validation:g} and test {test:g}, nothing is left for "
            f"{'validation' if shares[1] == 0 else 'train'}. Each needs a share above 0."
        )
    wanted = [part for part, share in zip(PARTS, shares, strict=True) if share > 0]
    if len(free) < len(wanted):
        kept = " that are not held out" if tested else ""
        raise CohortError(
            f"{cohort.folder}: {len(free)} {what}{kept}; a {spec.kind} split into {', '.join(wanted)} needs "
            f"at least {len(wanted)}. Add {what}, or give fewer parts a share."
        )
    sizes = dict(zip(PARTS, apportion(len(free), shares), strict=True))
    parts = assign(free, sizes, spec.seed)
    parts.update((name, "test") for name in tested)
    return {case.case_id: parts[name] for name, cases in groups.items() for case in cases}


def folds_of_patients(cohort: Cohort, folds: int, seed: int) -> dict[str, int]:
    """Return the fold of each patient, spread evenly as `make_split` does.

    Raises:
        CohortError: there are fewer patients than folds.
    """
    groups: dict[str, list[Case]] = {}
    for case in cohort.cases:
        groups.setdefault(case.patient_id, []).append(case)
    free = {patient: _strata(cases, cohort.spec) for patient, cases in groups.items()}
    return _folds(cohort, free, folds, seed)


def _folds(cohort: Cohort, free: Mapping[str, Sequence[Stratum]], folds: int, seed: int) -> dict[str, int]:
    """Return the fold of each patient who is not held out.

    Raises:
        CohortError: there are fewer patients than folds.
    """
    if len(free) < folds:
        raise CohortError(
            f"{cohort.folder}: {len(free)} patients that are not held out can't be divided into {folds} "
            "folds. Ask for fewer folds, or add patients."
        )
    sizes = apportion(len(free), [1 / folds] * folds)
    names = assign(free, {str(fold): size for fold, size in enumerate(sizes)}, seed)
    return {patient: int(fold) for patient, fold in names.items()}


def _strata(cases: Sequence[Case], spec: CohortSpec) -> list[Stratum]:
    """Return what a group should be spread by: its labels, its sites, both together, its other targets.

    With atlases structures count for nothing: a cohort and what is propagated from it are split alike,
    whichever registrations fail.
    """
    masked = any(case.mask or (case.structures and not spec.atlases) for case in cases)
    labels = sorted({"" if case.label is None else spec.classes[case.label] for case in cases})
    further = [stratum for name, target in spec.targets.items() for stratum in _further(cases, name, target)]
    sites = sorted({case.site for case in cases})
    return [
        *(("label", label) for label in labels),
        *(("site", site) for site in sites),
        ("both", *labels, "at", *sites),
        ("mask", masked),
        *further,
    ]


def _further(cases: Sequence[Case], name: str, target: TargetSpec) -> Iterator[Stratum]:
    """Yield what a group should be spread by of a further target: its classes, findings, presence."""
    values = [case.targets[name] for case in cases if name in case.targets]
    if isinstance(target, ClassTarget):
        yield from (("target", name, target.classes[value]) for value in sorted({*values}))
    elif isinstance(target, MultilabelTarget):
        for number, finding in enumerate(target.classes):
            yield "target", name, finding, any(value[number] for value in values)
    yield "target", name, bool(values)


def _leaking(cohort: Cohort, parts: Mapping[str, Part]) -> tuple[str, ...]:
    if "patient" in cohort.spec.unknown:
        return (UNKNOWN,)
    seen: dict[str, set[Part]] = defaultdict(set)
    for case in cohort.cases:
        seen[case.patient_id].add(parts[case.case_id])
    return tuple(sorted(patient for patient, found in seen.items() if len(found) > 1))


def _leak_message(cohort: Cohort, split: Split) -> str:
    patient = split.leaking_patients[0]
    where = [
        f"{case.case_id} in {split.parts[case.case_id]}"
        for case in cohort.cases
        if case.patient_id == patient
    ]
    return (
        f"{cohort.folder}: {len(split.leaking_patients)} patient(s) in more than one part, for example "
        f"{patient}: {', '.join(where[:4])}. The test would know its patients from training. Correct the "
        "split column, use a patient split, or ask for the leak by name (kind: slice)."
    )


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} case(s) ({some(names)})"
