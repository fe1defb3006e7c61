"""Checks of a cohort's table and split, for which no file is opened."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from threefold.cohorts.alike_ids import alike_ids
from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.findings import Finding, Severity
from threefold.cohorts.splits import PARTS, Split
from threefold.core.targets import ClassTarget
from threefold.errors import some
from threefold.file_names import folded, unportable
from threefold.validation import did_you_mean


def check_size(cohort: Cohort) -> Iterator[Finding]:
    """Refuse a cohort that no split can divide."""
    patients = {case.patient_id for case in cohort.cases}
    if len(patients) < 2:
        yield Finding(
            "refuse",
            "size",
            f"{len(cohort.cases)} case(s) of {len(patients)} patient; training and validation need different "
            "patients. Add patients.",
        )


def check_site_groups(cohort: Cohort) -> Iterator[Finding]:
    """Warn of sites that are named in site_groups only, and of sites in no group."""
    for group, sites in cohort.spec.site_groups.items():
        for site in sorted(set(sites) - set(cohort.sites)):
            yield Finding(
                "warn",
                "sites",
                f"Site group {group} contains '{site}', which has no cases."
                + did_you_mean(site, cohort.sites),
            )
    loose = [site for site in cohort.sites if cohort.spec.site_group(site) is None]
    if cohort.spec.site_groups and loose:
        yield Finding("warn", "sites", f"In no site group: {', '.join(loose)}. Add them to cohort.yaml.")


def check_patient_ids(cohort: Cohort) -> Iterator[Finding]:
    """Warn of patients at several sites: often two people whom two hospitals gave the same number."""
    sites: dict[str, set[str]] = defaultdict(set)
    for case in cohort.cases:
        sites[case.patient_id].add(case.site)
    several = sorted(patient for patient, found in sites.items() if len(found) > 1)
    if several:
        yield Finding(
            "warn",
            "patients",
            f"{len(several)} patient(s) at more than one site: {some(several)}. They count as one person "
            "each. If they are different people, add the site to patient_id.",
            _cases_of(cohort, several),
        )


def check_unknown(cohort: Cohort) -> Iterator[Finding]:
    """Say what is not known of patients and sites, so that nothing is claimed of it."""
    ids = [case.patient_id for case in cohort.cases]
    if "patient" in cohort.spec.unknown:
        yield Finding(
            "warn",
            "patients",
            "The patients are not known: each case counts as one person. Cases of one person may lie in "
            f"several parts of a split, so every number carries the mark of a leak. {_ADD_PATIENTS}",
        )
    elif len(ids) > 1 and all(case.patient_id == case.case_id for case in cohort.cases):
        yield Finding(
            "warn",
            "patients",
            "Every patient_id is its case_id, as if made of it: whether cases share a person can't be told "
            f"from the table. {_ADD_PATIENTS} Or declare them unknown (cohort.yaml: `unknown: [patient]`).",
        )
    elif len(ids) > 1 and len(set(ids)) == len(ids):
        yield Finding(
            "note",
            "patients",
            "Every patient has one case. That no person is in two parts of a split rests on these ids alone.",
        )
    if "site" in cohort.spec.unknown:
        yield Finding(
            "warn",
            "sites",
            "The sites are not known: nothing can be said of how a network does at a hospital that it "
            "has not seen, and a diagnosis that goes with the hospital is not noticed. Add the column site.",
        )


_ADD_PATIENTS = "Add the column patient_id, from the headers or the data's source."


def check_empty_masks(cohort: Cohort) -> Iterator[Finding]:
    """Prompt for empty masks of classes that have none, where another class has masks."""
    if cohort.spec.mask is None or len(cohort.spec.classes) < 2:
        return
    masked: dict[str, list[bool]] = defaultdict(list)
    for case in cohort.cases:
        if case.label is not None:
            masked[cohort.spec.classes[case.label]].append(case.mask is not None)
    without = [name for name, found in masked.items() if not any(found)]
    if without and len(without) < len(masked):
        names = " and ".join(f"'{name}'" for name in without)
        yield Finding(
            "note",
            "masks",
            f"No case of {names} has a mask. If there is nothing to find in them, empty masks say so: the "
            "segmenter then learns from these cases, and its false alarms in them are counted (`threefold "
            f"import table ... --empty-masks-for {without[0]}`).",
        )


def check_atlases(
    cohort: Cohort, digests: Mapping[str, str], atlases: Mapping[str, str]
) -> Iterator[Finding]:
    """Find atlases that are cases too: their labels would be tested on the image that they were drawn on.

    Args:
        cohort: its cases.
        digests: hash of the voxels by case id.
        atlases: hash of the voxels by atlas name; empty where no voxels were read.
    """
    files = {(cohort.folder / atlas.image).resolve(): atlas.name for atlas in cohort.spec.atlases}
    by_digest = {digest: name for name, digest in atlases.items()}
    found: dict[str, list[str]] = defaultdict(list)
    for case in cohort.cases:
        atlas = files.get(case.image.resolve()) or by_digest.get(digests.get(case.case_id, ""))
        if atlas is not None:
            found[atlas].append(case.case_id)
    for atlas, cases in found.items():
        yield Finding(
            "warn",
            "atlases",
            f"Atlas {atlas} is a case too: {some(cases)}. What is propagated to it is its own drawing: leave "
            "it out of the test part (`split` column), or take it out of the table.",
            tuple(cases),
        )


def check_registrations(cohort: Cohort) -> Iterator[Finding]:
    """Warn of propagated structures whose registration is to be checked."""
    cases = tuple(
        case.case_id
        for case in cohort.cases
        if case.structures is not None and case.extra.get("registration") == "check"
    )
    if cases:
        yield Finding(
            "warn",
            "registrations",
            f"{len(cases)} case(s) have structures of a registration that is to be checked: {some(cases)}. "
            "Look at them in the propagation's report.html; empty the structures cells of the wrong ones.",
            cases,
        )


def check_unused_split(cohort: Cohort, split: Split) -> Iterator[Finding]:
    """Say that a filled split column does not decide."""
    named = [case for case in cohort.cases if case.split is not None]
    if named and split.kind != "column":
        moved = sum(split.parts.get(case.case_id) != case.split for case in named)
        yield Finding(
            "warn",
            "split",
            f"The split column is filled for {len(named)} case(s), and the {split.kind} split does not "
            f"follow it: {moved} of them are in another part. data.split.kind=column follows it.",
        )


def check_case_ids(cohort: Cohort) -> Iterator[Finding]:
    """Warn of ids that name files which not every system can hold, or tell apart."""
    held = {case.case_id: unportable(case.case_id) for case in cohort.cases}
    unheld = [f"'{name}' ({why})" for name, why in held.items() if why is not None]
    if unheld:
        yield Finding(
            "warn",
            "ids",
            f"{len(unheld)} case_id(s) are not valid file names on Windows: {some(unheld)}. Masks are "
            "named by them: rename these cases if the cohort or its runs may go there.",
            tuple(name for name, why in held.items() if why is not None),
        )
    several = alike_ids(cohort)
    if several:
        yield Finding(
            "refuse",
            "ids",
            "Ids that differ only in upper and lower case or in accent encoding: "
            f"{some(['/'.join(names) for names in several])}. Windows and macOS do not tell their files "
            "apart: rename them.",
            tuple(name for names in several for name in names),
        )


def check_alike_names(cohort: Cohort) -> Iterator[Finding]:
    """Warn of patients and of sites whose names differ by case, spaces or accents' form alone."""
    names = {"patients": [case.patient_id for case in cohort.cases], "sites": list(cohort.sites)}
    for check, known in names.items():
        alike: dict[str, set[str]] = defaultdict(set)
        for name in known:
            alike["".join(folded(name).split())].add(name)
        pairs = [
            " and ".join(f"'{name}'" for name in sorted(found)) for found in alike.values() if len(found) > 1
        ]
        if pairs:
            yield Finding(
                "warn",
                check,
                f"{len(pairs)} {check} spelled in several ways (case, spaces or accent encoding): "
                f"{some(pairs)}. Each spelling counts separately, so a split may put them in several "
                "parts. If they are the same, use one spelling.",
            )


def check_targets(cohort: Cohort, asked: Collection[str], *, needed: bool) -> Iterator[Finding]:
    """Check that each target that is asked for is there, and say at which sites one is absent.

    Args:
        cohort: its cases.
        asked: names of targets.
        needed: training asks for all of them; else they are only declared, and one is enough.
    """
    sites = by_site(cohort)
    absent = {target for target in asked if all(target not in case.targets for case in cohort.cases)}
    for target in asked:
        if target in absent:
            fatal = needed or len(absent) == len(asked)
            yield Finding(
                "refuse" if fatal else "note",
                "targets",
                f"No case has a {target}. Fill the {target} column, or omit its task.",
            )
            continue
        without = sorted(
            site for site, cases in sites.items() if all(target not in case.targets for case in cases)
        )
        if without:
            yield Finding(
                "note",
                "targets",
                f"No {target} at {some(without)}: its task is trained and evaluated only at the other "
                f"{len(sites) - len(without)} site(s).",
            )
    for target in asked:
        kind = cohort.spec.all_targets.get(target)
        if isinstance(kind, ClassTarget):
            yield from _check_classes(cohort, target, kind.classes)


def check_channels(cohort: Cohort) -> Iterator[Finding]:
    """Say which channels are missing, and where: a network may learn who lacks one."""
    for name in cohort.spec.channels:
        without = [case for case in cohort.cases if name not in case.channels]
        if len(without) == len(cohort.cases):
            yield Finding(
                "refuse", "channels", f"No case has the channel {name}. Leave it out of cohort.yaml."
            )
        elif without:
            counts = {site: sum(case.site == site for case in without) for site in cohort.sites}
            there = some([f"{site} {count}" for site, count in counts.items() if count])
            yield Finding(
                "warn",
                "channels",
                f"The channel {name} is missing in {len(without)} of {len(cohort.cases)} cases, which have "
                f"zeros in its place (missing_channels: zeros): {there}. Where that goes with the site or "
                "the diagnosis, a network can learn it in place of the disease.",
                tuple(case.case_id for case in without),
            )


def by_site(cohort: Cohort) -> dict[str, list[Case]]:
    """Return the cases of each site."""
    sites: dict[str, list[Case]] = defaultdict(list)
    for case in cohort.cases:
        sites[case.site].append(case)
    return sites


def awaits_propagation(cohort: Cohort) -> bool:
    """Whether structures are on atlases only, and no case has any yet."""
    return bool(cohort.spec.atlases) and all("structures" not in case.targets for case in cohort.cases)


def note_atlases(cohort: Cohort) -> Iterator[Finding]:
    """Say where the structures of a cohort with atlases will come from."""
    if awaits_propagation(cohort):
        names = ", ".join(atlas.name for atlas in cohort.spec.atlases)
        yield Finding(
            "note",
            "targets",
            f"No case has structures yet; the atlases {names} have. `threefold propagate` transfers them.",
        )


def check_split(cohort: Cohort, split: Split, asked: Collection[str]) -> Iterator[Finding]:
    """Check a split: leaking patients, and what each part can teach or measure."""
    if split.leaks and "patient" not in cohort.spec.unknown:
        yield Finding(
            "warn" if split.kind == "slice" else "refuse",
            "patients",
            f"{len(split.leaking_patients)} patient(s) in more than one part of the {split.kind} split: "
            f"{some(split.leaking_patients)}. Test patients were seen in training; every number of it "
            "carries that mark.",
            _cases_of(cohort, split.leaking_patients),
        )
    for part in PARTS:
        cases = split.cases(cohort, part)
        for target in asked:
            yield from _check_part(cohort, split, part, cases, target)


def check_split_column(cohort: Cohort, severity: Severity) -> Iterator[Finding]:
    """Find patients whom the table's own split column puts on two sides."""
    parts: dict[str, set[str]] = defaultdict(set)
    for case in cohort.cases:
        if case.split is not None:
            parts[case.patient_id].add(case.split)
    leaking = sorted(patient for patient, found in parts.items() if len(found) > 1)
    if leaking:
        yield Finding(
            severity,
            "patients",
            f"{len(leaking)} patient(s) in more than one part of the split column: {some(leaking)}. Give "
            "all cases of a patient the same part, or don't split by column.",
            _cases_of(cohort, leaking),
        )


def check_duplicates(cohort: Cohort, digests: Mapping[str, str], split: Split | None) -> Iterator[Finding]:
    """Find images that are in the table under two ids: same file and slice, or same voxels."""
    alike: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in cohort.cases:
        files = " ".join(map(str, case.images.values()))
        place = f"{files}#{'' if case.slice_index is None else case.slice_index}"
        alike["voxels" if case.case_id in digests else "place", digests.get(case.case_id, place)].append(case)
    contents: dict[Path, str] = {}
    for cases in alike.values():
        if len(cases) > 1:
            yield _duplicate(cohort, cases, _sameness(cases, contents), split)


def _check_classes(cohort: Cohort, target: str, names: Sequence[str]) -> Iterator[Finding]:
    patients: dict[str, set[str]] = {name: set() for name in names}
    for case in cohort.cases:
        if target in case.targets:
            patients[names[case.targets[target]]].add(case.patient_id)
    there = [name for name, found in patients.items() if found]
    if len(there) == 1:
        yield Finding(
            "refuse",
            "classes",
            f"Every labelled case is '{there[0]}'{_of(target)}. A classification needs two classes: add "
            f"cases of {_other(names, there[0])}, or leave the classification task out.",
        )
        return
    for name, found in patients.items():
        if there and not found:
            yield Finding(
                "warn",
                "classes",
                f"No case of class '{name}'{_of(target)}: it can be neither learnt nor measured.",
            )
        elif there and len(found) < 3:
            yield Finding(
                "warn",
                "classes",
                f"Class '{name}'{_of(target)} has {len(found)} patient(s), too few for one in each of "
                f"{', '.join(PARTS)}.",
            )


def _check_part(
    cohort: Cohort, split: Split, part: str, cases: Sequence[Case], target: str
) -> Iterator[Finding]:
    if not cases:
        return
    having = [case for case in cases if target in case.targets]
    severity: Severity = "refuse" if part == "train" else "warn"
    consequence = "can't be learnt" if part == "train" else "can't be measured there"
    if not having:
        yield Finding(
            severity,
            "split",
            f"No {part} case of the {split.kind} split has a {target}: it {consequence}.",
        )
        return
    kind = cohort.spec.all_targets[target]
    if isinstance(kind, ClassTarget) and len({case.targets[target] for case in having}) == 1:
        yield Finding(
            severity,
            "split",
            f"All {len(having)} labelled {part} cases of the {split.kind} split are "
            f"'{kind.classes[having[0].targets[target]]}'{_of(target)}: telling classes apart {consequence}.",
        )


def _sameness(cases: Sequence[Case], files: dict[Path, str]) -> str:
    if len({(case.image, case.slice_index) for case in cases}) == 1:
        return "the same file" if cases[0].slice_index is None else "the same slice of the same file"
    if len({case.slice_index for case in cases}) == 1 and len({_content(case, files) for case in cases}) == 1:
        return "files with the same content"
    if len({case.image for case in cases}) == 1:
        return "slices of one file with the same voxels"
    return "different files with the same voxels"


def _content(case: Case, files: dict[Path, str]) -> str:
    """Return the hash of a file; a folder, which is a series of files, is as its path."""
    if case.image not in files:
        try:
            with case.image.open("rb") as stream:
                files[case.image] = hashlib.file_digest(stream, "blake2b").hexdigest()
        except OSError:
            files[case.image] = str(case.image)
    return files[case.image]


def _duplicate(cohort: Cohort, cases: Sequence[Case], sameness: str, split: Split | None) -> Finding:
    reasons: list[str] = []
    if len({case.patient_id for case in cases}) > 1:
        reasons.append("they are assigned to different patients, so a split can't keep them together")
    told = [
        {name: value for name, value in case.targets.items() if not isinstance(value, Path)} for case in cases
    ]
    if any(len({one[name] for one in told if name in one}) > 1 for name in dict.fromkeys(chain(*told))):
        reasons.append("their labels contradict each other")
    if split is not None and len({split.parts.get(case.case_id) for case in cases}) > 1:
        reasons.append("the split puts them in different parts")
    what = f"One image under {len(cases)} ids: {some([case.case_id for case in cases])} are {sameness}"
    ids = tuple(case.case_id for case in cases)
    if reasons:
        return Finding("refuse", "duplicates", f"{what}; {'; '.join(reasons)}. Keep one.", ids)
    return Finding(
        "warn", "duplicates", f"{what}, of one patient. It counts {len(cases)} times; keep one.", ids
    )


def _cases_of(cohort: Cohort, patients: Iterable[str]) -> tuple[str, ...]:
    wanted = set(patients)
    return tuple(case.case_id for case in cohort.cases if case.patient_id in wanted)


def _of(target: str) -> str:
    """Name a target in a sentence, where the cohort has more than its diagnosis."""
    return "" if target == "label" else f" ({target})"


def _other(names: Iterable[str], there: str) -> str:
    others = [f"'{name}'" for name in names if name != there]
    return " or ".join(others) if others else "a second class"
