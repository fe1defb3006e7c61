"""The report of a study: its protocol, the verdict of each claim, the progress of its runs."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from threefold.cohorts.cohort import Cohort
from threefold.cohorts.splits import PARTS, Split, read_split
from threefold.errors import CohortError, RunError
from threefold.experiment.spec import Spec
from threefold.reporting.chapters import Chapter, sections_of, shown_of
from threefold.reporting.html import Block, Code, Facts, Folded, Heading, Links, Notice, Page, Section, Text
from threefold.reporting.results import read_results
from threefold.reporting.study_tables import percent
from threefold.reporting.table import LEAK_MARK, Table
from threefold.run import RunFolder
from threefold.runs.evaluate import cohort_if_there, cohort_of_run, of_run
from threefold.runs.page import (
    AUDIT,
    audit_blocks,
    environment_facts,
    is_older,
    leak_of_run,
    leaks_of_runs,
    stale_tables,
)
from threefold.studies.protocol import lines_of, protocol_of
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import CohortSource, RunPlan, StudySpec, VariantSpec
from threefold.studies.study_status import RunStanding, standing_of, status_table
from threefold.tasks.resolve import targets_of
from threefold.validation import read_text

REPORT_NAME = "report.html"

_CHAPTERS = (
    Chapter("Verdict of each claim", "", ("claims*",), ("claims",)),
    Chapter("Variants", "", ("variants*",), ("variants",)),
    Chapter("Shortcut use, probes and calibration", "", ("reliance*",), ("reliance",)),
    Chapter("Pairs of runs", "", ("pairs*",), ("pairs",)),
)
_OF_A_RUN = (
    Chapter("", "", (), ("sites.case",)),
    Chapter("ROC and calibration", "", ("roc", "calibration"), ()),
    Chapter("Shift between sites", "", ("shift",), ("shift",)),
    Chapter("Attention", "", ("attention*",), ()),
    Chapter(
        "The worst cases as well as the best",
        "",
        ("examples*", "volumes-best", "volumes-worst"),
        ("cases.dice", "structures*"),
    ),
    Chapter("Disagreements", "", ("volumes-disagreement",), ("disagreements",)),
)
"""Of a run's tables and figures those that the study's page shows; the run's own report has the rest."""


def study_page(
    folder: StudyFolder, out: Path, footer: str, *, progress: Callable[[int, int], None] | None = None
) -> Page:
    """Return the page of a study, whatever of it is there.

    Nothing is trained or compared anew; the cohorts, where they still are what was trained on, are audited
    (headers, not voxels).

    Args:
        folder: the study's.
        out: the file that the page goes to, from which the runs are linked.
        footer: who made the page, and when.
        progress: told of the cases that are audited.

    Raises:
        RunError: not a study, or an outcome or a split is damaged.
    """
    study, runs = folder.read(), tuple(standing_of(folder))
    splits = {
        run.plan: read_split(folder.run(run.plan.id).split)
        for run in runs
        if folder.run(run.plan.id).split.is_file()
    }
    found = shown_of(read_results(folder.path), folder.figures)
    compared = [(chapter, section) for chapter, section in sections_of(found, _CHAPTERS) if section.blocks]
    rest = found.rest()
    return Page(
        title=f"Study {study.name}",
        lead=_lead(study, runs),
        opening=(
            *_opening(folder, study, runs, compared=bool(compared)),
            *((leaks_of_runs({plan.id: split for plan, split in splits.items()}),) if splits else ()),
        ),
        sections=(
            Section("Protocol", tuple(_protocol(study, folder))),
            *((Section("Splits and leaks", (_splits_table(splits),)),) if splits else ()),
            *(section for _, section in compared),
            *((Section("Further tables and figures", rest),) if rest else ()),
            *_first_runs(folder, runs, splits),
            Section("The runs", tuple(_runs(folder, runs, out))),
            Section(AUDIT, tuple(_audits(folder, study, splits, progress))),
            Section("Environment", tuple(_environments(folder, runs))),
            Section("How to reproduce", tuple(_reproduction(folder))),
        ),
        footer=footer,
    )


def _lead(study: StudySpec, runs: Sequence[RunStanding]) -> str:
    described = " ".join(study.description.split())
    counts = (
        (len(runs), "run"),
        (len({run.plan.variant for run in runs}), "variant"),
        (len(study.cohorts), "cohort"),
        (len(study.splits), "split"),
        (len(study.seeds), "seed"),
        (len(study.claims), "claim"),
    )
    size = ", ".join(f"{number} {what}{'' if number == 1 else 's'}" for number, what in counts)
    return f"{described} {size[:1].upper()}{size[1:]}.".strip()


def _opening(
    folder: StudyFolder, study: StudySpec, runs: Sequence[RunStanding], *, compared: bool
) -> Iterator[Block]:
    counts = Counter(run.state for run in runs)
    unfinished = len(runs) - counts["finished"]
    if unfinished:
        others = ", ".join(f"{number} {state}" for state, number in counts.items() if state != "finished")
        yield Notice(
            "warning",
            f"{counts['finished']} of {len(runs)} runs have finished ({others}): the results are from those. "
            f"`threefold study run {folder.study} --out {folder.path}` resumes the study.",
        )
    compare = f"`threefold study compare {folder.path}`"
    if not study.claims:
        yield Notice("note", "The study makes no claim.")
    if not compared:
        what = "The runs have not been compared" if counts["finished"] else "None of the runs has finished"
        gives = "no claim has a verdict yet" if study.claims else "there are no means of the variants yet"
        yield Notice("warning", f"{what}: {gives}. {compare} gives {'it' if study.claims else 'them'}.")
    elif _is_stale(folder):
        yield Notice(
            "warning",
            f"A run has ended, or the study was changed, since the tables were made. {compare} updates them.",
        )


def _is_stale(folder: StudyFolder) -> bool:
    return is_older([folder.results], [folder.study, *(folder.path / "outcomes").glob("*.json")])


def _protocol(study: StudySpec, folder: StudyFolder) -> Iterator[Block]:
    splits = "; ".join(_keys(split) or "as the recipe says" for split in study.splits)
    facts = [
        ("seeds", ", ".join(map(str, study.seeds))),
        ("splits", splits),
        (
            "confidence",
            f"{percent(study.confidence)}, over {study.replicates} replicates of patients and seeds",
        ),
        ("margin", f"differences up to {study.margin:g} are considered irrelevant" if study.margin else ""),
        ("claims registered", _written(study, folder)),
    ]
    yield Facts(tuple((term, said) for term, said in facts if said))
    if study.overrides:
        yield Heading("Overrides of every training")
        yield Code("\n".join(study.overrides))
    yield Table(
        "Cohorts",
        ("cohort", "from", "further"),
        tuple((name, *_source(source)) for name, source in study.cohorts.items()),
    )
    yield Table(
        "Variants of the protocol",
        ("variant", "recipe", "changes", "further"),
        tuple((name, *_variant(variant)) for name, variant in study.variants.items()),
    )
    if study.claims:
        shown = ("claim", "variant", "baseline", "metric", "group", "expected")
        yield Table(
            "Claims of the protocol",
            (*shown, "further"),
            tuple(
                (*(str(getattr(claim, key)) for key in shown), _further(claim, *shown))
                for claim in study.claims
            ),
        )


def _written(study: StudySpec, folder: StudyFolder) -> str:
    """Return when the study's claims were registered; empty if unknown."""
    now = {*lines_of(study)}
    lines = [each for each in protocol_of(study, folder).lines if each.line in now]
    times = ", ".join(sorted({each.written for each in lines if each.written is not None}))
    late = sum(bool(each.finished_before) for each in lines)
    return f"{times}; {late} of {len(lines)} rows after results were visible" if late else times


def _source(source: CohortSource) -> tuple[str, str]:
    if source.folder is not None:
        return source.folder, _further(source, "folder")
    made = f"phantom {source.phantom}, preset {source.preset}, seed {source.seed}"
    return made, _further(source, "phantom", "preset", "seed")


def _variant(variant: VariantSpec) -> tuple[str, str, str]:
    changes = list(variant.overrides)
    if variant.key is not None:
        changes.append(f"{variant.key} = {', '.join(map(str, variant.values))}")
    return variant.recipe, "; ".join(changes), _further(variant, "recipe", "overrides", "key", "values")


def _further(spec: Spec, *shown: str) -> str:
    """Return what a part of the study says beside the keys that are shown anyway."""
    said = spec.model_dump(mode="json", exclude_defaults=True)
    return _keys({key: value for key, value in said.items() if key not in shown})


def _keys(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in settings.items())


def _splits_table(splits: Mapping[RunPlan, Split]) -> Table:
    """Return the different splits of the runs, a row each."""
    alike: dict[object, tuple[Split, list[RunPlan]]] = {}
    for plan, split in splits.items():
        key = (plan.cohort, split.kind, frozenset(split.parts.items()), split.leaking_patients)
        alike.setdefault(key, (split, []))[1].append(plan)
    rows = []
    for split, plans in alike.values():
        counts = Counter(split.parts.values())
        rows.append(
            (
                plans[0].cohort,
                ", ".join(dict.fromkeys(str(plan.split) for plan in plans)),
                split.kind,
                str(len(split.leaking_patients)) if split.leaks else "none",
                *(str(counts[part]) for part in PARTS),
                ", ".join(dict.fromkeys(plan.variant for plan in plans)),
                str(len(plans)),
            )
        )
    return Table(
        "Splits and leaks",
        ("cohort", "split", "by", "patients in two parts", *PARTS, "variants", "runs"),
        tuple(rows),
        ("Cases by part, of the runs that have begun.",),
    )


def _runs(folder: StudyFolder, runs: Sequence[RunStanding], out: Path) -> Iterator[Block]:
    table = status_table(runs)
    yield table
    for run in runs:
        if run.message and run.state != "finished":
            yield Heading(f"{run.plan.id}: {run.state}")
            yield Code(run.message)
            yield Text(f"Full log: `{folder.log(run.plan.id)}`.")
    links = tuple(_links(folder, runs, out))
    if links:
        yield Folded("The run folders", (Links(links),))


def _first_runs(
    folder: StudyFolder, runs: Sequence[RunStanding], splits: Mapping[RunPlan, Split]
) -> Iterator[Section]:
    """Yield what the first finished run of each variant shows."""
    first: dict[tuple[str, str], RunPlan] = {}
    for run in runs:
        if run.state == "finished":
            first.setdefault((run.plan.cohort, run.plan.variant), run.plan)
    if not first:
        return
    shown: list[Block] = []
    without = []
    for (cohort, variant), plan in first.items():
        place, split = folder.run(plan.id), splits.get(plan)
        blocks = tuple(_of_a_run(place))
        if not blocks:
            without.append(plan.id)
            continue
        leak = (leak_of_run(split),) if split is not None and split.leaks else ()
        summary = f"{cohort}/{variant}, split {plan.split}, seed {plan.seed}{f' {LEAK_MARK}' if leak else ''}"
        shown.append(Folded(summary, (*leak, *stale_tables(place), *blocks)))
    if shown:
        words = (
            "One training of each, not the mean over runs. For a run's full report: `threefold report RUN`."
        )
        shown.insert(0, Text(words))
    if without:
        shown.append(
            Text(
                f"Without tables and figures: {', '.join(without)}. `threefold evaluate RUN` creates them "
                f"from the predictions, in {folder.path / 'runs'}."
            )
        )
    yield Section("The first run of each variant", tuple(shown))


def _of_a_run(run: RunFolder) -> Iterator[Block]:
    for chapter, section in sections_of(shown_of(read_results(run.path), run.figures), _OF_A_RUN):
        if section.blocks and chapter.title:
            yield Heading(chapter.title)
        yield from section.blocks


def _audits(
    folder: StudyFolder,
    study: StudySpec,
    splits: Mapping[RunPlan, Split],
    progress: Callable[[int, int], None] | None,
) -> Iterator[Block]:
    """Yield the audit of each cohort, with the split of its first run and the targets of all variants."""
    for name, source in study.cohorts.items():
        home = folder.cohort(name, source)
        begun = [plan for plan in splits if plan.cohort == name]
        yield Heading(name)
        if begun:
            first, of_variant = begun[0], {plan.variant: folder.run(plan.id) for plan in begun}
            cohort = _as_trained_on(folder.run(first.id), home)
            asked = [of_run(run)[:2] for run in of_variant.values()]
            targets = tuple(dict.fromkeys(one for pair in asked for one in targets_of(*pair).values()))
            verdict, *rest = audit_blocks(cohort, home, splits[first], targets, progress)
            words = f"With the split of {first.id} and the targets of all variants."
        else:
            cohort = cohort_if_there(home)
            if cohort is None:
                yield Text(f"No run on it has begun, and it is not in {home} yet.")
                continue
            verdict, *rest = audit_blocks(cohort, home, None, None, progress)
            words = "No run on it has begun: all of its targets, and the split column if it is filled."
        yield verdict
        if rest:
            yield Folded("Sites and findings", (Text(words), *rest))


def _as_trained_on(run: RunFolder, home: Path) -> Cohort | None:
    """Return a run's cohort, in the study or where the run had it; None where it is not as it was."""
    try:
        return cohort_of_run(run, cohort_if_there(home))
    except CohortError:
        return None


def _links(folder: StudyFolder, runs: Sequence[RunStanding], out: Path) -> Iterator[tuple[str, str]]:
    home = out.resolve().parent
    for run in runs:
        path = folder.run(run.plan.id).path
        if path.is_dir():
            report = path / REPORT_NAME
            target = report if report.is_file() else path
            yield run.plan.id, quote(Path(os.path.relpath(target.resolve(), home)).as_posix())


def _environments(folder: StudyFolder, runs: Sequence[RunStanding]) -> Iterator[Block]:
    """Yield each environment that runs were trained in, and how many were."""
    found: Counter[tuple[tuple[str, str], ...]] = Counter()
    for run in runs:
        place = folder.run(run.plan.id)
        if place.environment.is_file():
            found[tuple(fact for fact in environment_facts(place) if fact[0] != "started")] += 1
    if not found:
        yield Text("No run has begun.")
    for facts, number in found.most_common():
        if len(found) > 1:
            yield Heading(f"{number} of the runs")
        yield Facts(facts)
    times = [run.seconds for run in runs if run.state == "finished" and run.seconds is not None]
    if times:
        hours = sum(times) / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        yield Text(f"Total computing time of the finished runs: {took}.")


def _reproduction(folder: StudyFolder) -> Iterator[Block]:
    again = folder.path.with_name(f"{folder.path.resolve().name}-again")
    lines = [
        shlex.join(["threefold", "study", "run", str(folder.study), "--out", str(again)]),
        shlex.join(["threefold", "study", "compare", str(again)]),
        shlex.join(["threefold", "report", str(again)]),
    ]
    yield Code("\n".join(lines))
    yield Text("A single run: `--only COHORT/VARIANT/split-K-seed-S`, with the name given above.")
    try:
        written = read_text(folder.study, RunError)
    except RunError:
        return
    yield Folded("The study as it was last run", (Code(written),))
