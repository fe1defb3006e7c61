"""A run folder as a page: what was trained on what, its numbers and pictures, how to repeat it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import Cohort, CohortSpec, fingerprint
from threefold.cohorts.splits import PARTS, Split, read_split, required_targets
from threefold.errors import some
from threefold.evaluation.groups import natural_order
from threefold.evaluation.metrics import shown_in
from threefold.experiment import Experiment
from threefold.experiment import Part as SplitPart
from threefold.finished_runs import verify_settings
from threefold.reporting.evidence import Chapter, Need, sections_of, shown_of
from threefold.reporting.html import Block, Facts, Heading, Notice, Page, Section, Text
from threefold.reporting.results import Part, read_results
from threefold.reporting.structure_tables import title_of
from threefold.reporting.table import Table, cell
from threefold.run import RunFolder
from threefold.studies.audit_section import AUDIT, audit_blocks
from threefold.studies.evaluations import cohort_if_there, of_run
from threefold.studies.notices import leak_of_run, shared_patients, stale_tables, stopped_early
from threefold.studies.reproduction import environment_facts, leaves_its_folder, reproduction

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Read:
    """What a page is made from.

    Attributes:
        cohort: as it was trained on; None where it was moved or changed.
        home: where it was.
        there: a cohort is there, changed or not.
        results: of the commands that were asked of it.
    """

    run: RunFolder
    status: Mapping[str, Any]
    experiment: Experiment
    trained: CohortSpec
    split: Split
    home: Path
    there: bool
    cohort: Cohort | None
    known: str
    results: Mapping[str, Part]


def run_page(run: RunFolder, footer: str, *, progress: Progress | None = None) -> Page:
    """Return the page of a run, whatever of it is there.

    Nothing is trained, predicted or measured anew; the cohort, where it still is what was trained on, is
    audited (headers, not voxels).

    Args:
        run: the folder.
        footer: who made the page, and when.
        progress: told of the cases that are audited.

    Raises:
        RunError: not a run, or its description is damaged.
    """
    verify_settings(run)
    read = _read(run)
    opening = tuple(_opening(read))
    targets = required_targets(read.experiment.tasks)
    headline = _headline(read.results)
    shown, absent = [], []
    for chapter, section in sections_of(found := shown_of(read.results, run.figures)):
        if section.blocks:
            shown.append(section)
        else:
            absent.append((chapter.title, _why_absent(chapter, read)))
    if rest := found.rest():
        shown.append(Section("Further tables and figures", rest))
    return Page(
        title=f"{read.experiment.name}: {run.path.resolve().name}",
        lead=_lead(read),
        opening=(*opening, *((headline,) if headline is not None else ())),
        sections=(
            Section("What was trained on what", tuple(_training(read))),
            Section("Split and leaks", tuple(_split(read))),
            *shown,
            *_other_cohorts(run),
            Section(AUDIT, audit_blocks(read.cohort, read.home, read.split, targets, progress)),
            *((Section("Not in this report", (Facts(tuple(absent)),)),) if absent else ()),
            Section("Environment", (Facts(tuple(environment_facts(run))),)),
            Section("How to reproduce", tuple(reproduction(run, read.experiment, read.home))),
        ),
        footer=footer,
    )


def _read(run: RunFolder) -> _Read:
    status = run.read_status()
    experiment, trained, home = of_run(run)
    cohort = cohort_if_there(home)
    known = run.read_cohort()["fingerprint"]
    same = cohort is not None and fingerprint(cohort) == known
    return _Read(
        run=run,
        status=status,
        experiment=experiment,
        trained=trained,
        split=read_split(run.split),
        home=home,
        there=cohort is not None,
        cohort=cohort if same else None,
        known=known,
        results=read_results(run.path),
    )


def _lead(read: _Read) -> str:
    tasks = ", ".join(read.experiment.tasks.names)
    return f"A {read.experiment.network.kind} network trained for {tasks} on the cohort {read.trained.name}."


def _opening(read: _Read) -> Iterator[Block]:
    state, epoch, epochs = (read.status.get(key) for key in ("state", "epoch", "epochs"))
    if state != "finished":
        outside = " --allow-outside" if leaves_its_folder(read.home) else ""
        yield Notice(
            "warning",
            f"The training has not finished: {state}, {epoch} of {epochs} epochs. Go on with it: `threefold "
            f"train {read.run.experiment} --cohort {read.home} --out {read.run.path} --resume{outside}`.",
        )
    elif "evaluate" not in read.results:
        yield Notice(
            "warning",
            f"The run has not been evaluated. `threefold evaluate {read.run.path}` makes its tables and "
            "figures.",
        )
    early = stopped_early(read.status)
    if early is not None:
        yield Notice("warning", early)
    yield from stale_tables(read.run)
    yield leak_of_run(read.split)


def _headline(results: Mapping[str, Part]) -> Table | None:
    """Return the first numbers that a reader asks for; None where the run has not been evaluated."""
    if "evaluate" not in results:
        return None
    found = [entry.estimate for entry in results["evaluate"].numbers if not entry.about]
    headlines = shown_in("headline")
    rows = [row for row in found if row.level == "case" and not row.class_name and row.metric in headlines]
    groups = list(dict.fromkeys(row.group for row in rows if row.group_kind in ("all", "site group")))
    by_place = {(row.metric, row.group): row for row in rows if row.group_kind in ("all", "site group")}
    names = [metric for metric in headlines if any(row.metric == metric for row in rows)]
    if not names:
        return None
    return Table(
        title="At a glance: test cases",
        columns=("metric", *groups),
        rows=tuple(
            (title_of(metric, ""), *(cell(by_place.get((metric, group))) for group in groups))
            for metric in names
        ),
    )


def _training(read: _Read) -> Iterator[Block]:
    experiment, status, trained = read.experiment, read.status, read.trained
    tasks = (f"{name} (weight {getattr(experiment.tasks, name).weight:g})" for name in experiment.tasks.names)
    start = "random weights"
    if experiment.initial_weights is not None:
        start = f"the weights of {experiment.initial_weights.path}"
    elif experiment.before is not None:
        start = f"what {experiment.before} learned first"
    best = ""
    if status.get("best_epoch") is not None:
        best = f"; best is epoch {status['best_epoch']} by validation {status['metric']}"
    facts = [
        ("experiment", experiment.name),
        ("description", " ".join(experiment.description.split())),
        ("after the paper", " ".join(experiment.paper.split())),
        ("network", experiment.network.kind),
        ("tasks", ", ".join(tasks) + f"; balance: {experiment.balancing.method}"),
        ("starts from", start),
        ("epochs", f"{status.get('epoch')} of {status.get('epochs')}{best}"),
        ("seed", str(experiment.training.seed)),
    ]
    if status.get("threshold") is not None:
        rule = experiment.evaluation.threshold
        facts.append(("threshold", f"{status['threshold']:.4g} ({rule}, on the validation part)"))
    yield Facts(tuple((term, said) for term, said in facts if said))
    yield Heading("The cohort")
    groups = (f"{name}: {', '.join(sites)}" for name, sites in trained.site_groups.items())
    targets = [
        ("classes", ", ".join(trained.classes)),
        ("mask", trained.mask.name if trained.mask is not None else ""),
        ("structures", ", ".join(trained.structures)),
    ]
    facts = [
        ("name", trained.name),
        ("images", f"{trained.dimensions}D {trained.modality}"),
        *targets,
        ("site groups", "; ".join(groups)),
        ("folder", f"{read.home}{'' if read.there else ' (no longer there)'}"),
        ("fingerprint", read.known),
    ]
    yield Facts(tuple((term, said) for term, said in facts if said))


def _split(read: _Read) -> Iterator[Block]:
    split = read.split
    if split.leaks:
        yield Notice("bad", f"{shared_patients(split)}. They are {some(split.leaking_patients, 10)}.")
    else:
        yield Text(f"The split is by {split.kind}. No patient has cases in more than one part.")
    if read.cohort is None:
        changed = "is another one now" if read.there else "is no longer there"
        counts = Counter(split.parts.values())
        yield Table(
            title="Cases by part",
            columns=("part", "cases"),
            rows=tuple((part, str(counts[part])) for part in PARTS),
            notes=(f"Sites and patients are not known: the cohort of {read.home} {changed}.",),
        )
        return
    yield _parts_table(read.cohort, split)


def _parts_table(cohort: Cohort, split: Split) -> Table:
    parts = {part: split.cases(cohort, part) for part in PARTS}
    sites = natural_order({case.site for case in cohort.cases})

    def count(part: SplitPart, site: str | None) -> str:
        cases = [case for case in parts[part] if site in (None, case.site)]
        return f"{len(cases)}/{len({case.patient_id for case in cases})}" if cases else ""

    return Table(
        title="Cases and patients by site and part",
        columns=("site", "group", *PARTS),
        rows=(
            *(
                (site, cohort.spec.site_group(site) or "", *(count(part, site) for part in PARTS))
                for site in sites
            ),
            ("all", "", *(count(part, None) for part in PARTS)),
        ),
        notes=("Cases/patients.",),
    )


def _why_absent(chapter: Chapter, read: _Read) -> str:
    """Say what a chapter without tables and figures needs, or which command makes them."""
    lacking = [need for need in chapter.needs if not _has(need, read)]
    if lacking:
        return f"needs {' and '.join(lacking)}, which this run does not have."
    if read.status.get("state") != "finished":
        return f"the training has to finish first, then `threefold {chapter.verb} {read.run.path}`."
    command = f"`threefold {chapter.verb} {read.run.path}`"
    if chapter.verb in read.results:
        return chapter.none or f"nothing to show: {command} was asked, and no test case has what this needs."
    return f"{command} makes it."


def _has(need: Need, read: _Read) -> bool:
    tasks, trained = read.experiment.tasks, read.trained
    diagnosed = tasks.classification is not None
    segments = tasks.segmentation is not None or read.run.structures.is_file() or read.run.masks.is_dir()
    return {
        "two classes": diagnosed and trained.positive_class is not None,
        "a diagnosis": diagnosed,
        "site groups": bool(trained.site_groups),
        "masks or structures": segments,
        "structures": segments and bool(trained.structures),
    }[need]


def _other_cohorts(run: RunFolder) -> Iterator[Section]:
    """Yield a section for each other cohort that the run was evaluated on."""
    for folder in sorted(path for path in (run.path / "evaluations").glob("*") if path.is_dir()):
        other = RunFolder(folder)
        found = shown_of(read_results(folder), other.figures)
        blocks: list[Block] = []
        for chapter, section in sections_of(found):
            if section.blocks:
                blocks += (Heading(chapter.title), *section.blocks)
        blocks += found.rest()
        if blocks:
            yield Section(f"On the cohort {folder.name}", tuple(blocks))
