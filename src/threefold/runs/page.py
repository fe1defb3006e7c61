"""The report of a run: training, results, figures, and how to reproduce it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.audits.audit import Audit, audit
from threefold.cohorts.cohort import Cohort, CohortSpec, fingerprint, read_cohort
from threefold.cohorts.failures import read_failures
from threefold.cohorts.splits import PARTS, Split, read_split
from threefold.errors import CohortError, RunError, some
from threefold.evaluation.groups import natural_order
from threefold.evaluation.metrics import shown_in
from threefold.experiment import Experiment, RampSpec, SegmentationSpec, Weight
from threefold.experiment import Part as SplitPart
from threefold.reporting.audit_texts import association_line, site_rows, split_line, verdict
from threefold.reporting.chapters import Chapter, Need, sections_of, shown_of
from threefold.reporting.html import Block, Code, Facts, Folded, Heading, Notice, Page, Section, Text
from threefold.reporting.results import Part, read_results
from threefold.reporting.table import LEAK_NOTE, Table, cell
from threefold.reporting.tables import title_of
from threefold.reporting.task_reports import FOLDER as TASKS
from threefold.run import RESULTS_NAME, RunFolder
from threefold.runs.checklists import TITLES, Checklist, Known, checklist_blocks
from threefold.runs.evaluate import cohort_if_there, of_run, stopped_early
from threefold.runs.finished import verify_settings
from threefold.tasks.resolve import only_diagnosis, targets_of
from threefold.validation import read_json, read_text

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


def run_page(
    run: RunFolder,
    footer: str,
    *,
    checklists: Sequence[Checklist] = (),
    progress: Progress | None = None,
) -> Page:
    """Return the page of a run, whatever of it is there.

    Nothing is trained, predicted or measured anew; the cohort, where it still is what was trained on, is
    audited (headers, not voxels).

    Args:
        run: the folder.
        footer: who made the page, and when.
        checklists: of reporting guidelines, to be filled from the run.
        progress: told of the cases that are audited.

    Raises:
        RunError: not a run, or its description is damaged.
    """
    verify_settings(run)
    read = _read(run)
    opening = tuple(_opening(read))
    targets = tuple(dict.fromkeys(targets_of(read.experiment, read.trained).values()))
    headline = headline_table(read.results)
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
            Section("Training setup", tuple(_training(read))),
            Section("Split and leaks", tuple(_split(read))),
            *shown,
            *task_sections(run),
            *other_cohorts(run),
            Section(AUDIT, audit_blocks(read.cohort, read.home, read.split, targets, progress)),
            *(Section(TITLES[name], checklist_blocks(name, _known(read))) for name in checklists),
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


def _known(read: _Read) -> Known:
    facts = dict(environment_facts(read.run))
    names = ("threefold", "python", "torch", "lightning", "monai", "numpy", "processor")
    return Known(
        experiment=read.experiment,
        trained=read.trained,
        split=read.split,
        status=read.status,
        results=read.results,
        cohort=read.cohort,
        environment={name: facts[name] for name in names if name in facts},
        failed=len(read_failures(read.run.failed)),
    )


def _lead(read: _Read) -> str:
    tasks = ", ".join(read.experiment.tasks)
    return f"A {read.experiment.network.kind} network trained for {tasks} on the cohort {read.trained.name}."


def _opening(read: _Read) -> Iterator[Block]:
    state, epoch, epochs = (read.status.get(key) for key in ("state", "epoch", "epochs"))
    if state != "finished":
        outside = " --allow-outside" if leaves_its_folder(read.home) else ""
        yield Notice(
            "warning",
            f"The training has not finished: {state}, {epoch} of {epochs} epochs. Resume it: `threefold "
            f"train {read.run.experiment} --cohort {read.home} --out {read.run.path} --resume{outside}`.",
        )
    elif "evaluate" not in read.results:
        yield Notice(
            "warning",
            f"The run has not been evaluated. `threefold evaluate {read.run.path}` creates its tables and "
            "figures.",
        )
    early = stopped_early(read.status)
    if early is not None:
        yield Notice("warning", early)
    yield from stale_tables(read.run)
    yield leak_of_run(read.split)


def headline_table(results: Mapping[str, Part]) -> Table | None:
    """Return the first numbers that a reader asks for; None where the run has not been evaluated."""
    if "evaluate" not in results:
        return None
    found = [entry.estimate for entry in results["evaluate"].numbers if not entry.about]
    headlines = shown_in("headline", (estimate.metric for estimate in found))
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
    tasks = (f"{name} (weight {_weight(task.weight)})" for name, task in experiment.tasks.items())
    start = "random weights"
    if experiment.initial_weights is not None:
        start = f"the weights of {experiment.initial_weights.path}"
    elif experiment.pretrain is not None:
        start = f"pretraining with {experiment.pretrain}"
    best = ""
    if status.get("best_epoch") is not None:
        best = f"; best is epoch {status['best_epoch']} by validation {status['metric']}"
        if experiment.training.selection.weights == "last":
            best += "; predicted with the last"
    facts = [
        ("experiment", experiment.name),
        ("description", " ".join(experiment.description.split())),
        ("paper", " ".join(experiment.paper.split())),
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
        ("channels", ", ".join(trained.channels)),
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
        return chapter.none or f"nothing to show: {command} was run, and no test case has the required data."
    return f"{command} creates it."


def _weight(weight: Weight) -> str:
    return f"from {weight.start:g}" if isinstance(weight, RampSpec) else f"{weight:g}"


def _has(need: Need, read: _Read) -> bool:
    trained, asked = read.trained, only_diagnosis(read.experiment, read.trained)
    diagnosed = asked is not None
    segments = (
        bool(read.experiment.tasks_of(SegmentationSpec))
        or read.run.structures.is_file()
        or read.run.masks.is_dir()
    )
    return {
        "two classes": asked is not None and asked.positive_class is not None,
        "a diagnosis": diagnosed,
        "site groups": bool(trained.site_groups),
        "masks or structures": segments,
        "structures": segments and bool(trained.structures),
    }[need]


def other_cohorts(run: RunFolder) -> Iterator[Section]:
    """Yield a section for each other cohort that the run was evaluated on."""
    for folder in _folders(run.path / "evaluations"):
        of_tasks = (block for each in task_sections(RunFolder(folder)) for block in each.blocks)
        if blocks := (*_all_of(folder), *of_tasks):
            yield Section(f"On the cohort {folder.name}", blocks)


def task_sections(run: RunFolder) -> Iterator[Section]:
    """Yield a section for each task that has columns of its own, each finding of one folded."""
    for folder in _folders(run.path / TASKS):
        findings = [(each.name, tuple(_all_of(each))) for each in _folders(folder)]
        folded = (Folded(name, blocks) for name, blocks in findings if blocks)
        if blocks := (*_all_of(folder), *folded):
            yield Section(f"Task {folder.name}", blocks)


def _folders(parent: Path) -> list[Path]:
    """Return the folders in one that hold results, by name."""
    return sorted(path.parent for path in parent.glob(f"*/{RESULTS_NAME}"))


def _all_of(folder: Path) -> Iterator[Block]:
    """Yield everything that the results of a folder show, under the headings of the chapters."""
    found = shown_of(read_results(folder), RunFolder(folder).figures)
    main = [found.tables.pop("main")] if "main" in found.tables else []
    yield from main
    for chapter, section in sections_of(found):
        if section.blocks:
            yield Heading(chapter.title)
            yield from section.blocks
    yield from found.rest()


AUDIT = "Data audit"
"""The section's title."""
_CASES_SHOWN = 6


def audit_blocks(
    cohort: Cohort | None,
    home: Path,
    split: Split | None,
    targets: Collection[str] | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Block, ...]:
    """Return what an audit of a cohort finds now, its headers read but not its voxels.

    Args:
        cohort: as trained on; None where it was moved or changed.
        home: where it was.
        split: a run's; None: the cohort's own column, where it is filled.
        targets: what the training asked for; None: all that the cohort speaks of.
        progress: told of each case.
    """
    if cohort is None:
        text = (
            f"The cohort is not in {home} as it was trained on: it was moved or changed, or the study was "
            "packed, which leaves images out. `threefold check COHORT` audits it where it is."
        )
        return (Notice("note", text),)
    return tuple(_blocks(audit(cohort, split=split, targets=targets, read_voxels=False, progress=progress)))


def _blocks(found: Audit) -> list[Block]:
    header, rows = site_rows(found)
    blocks: list[Block] = [
        Notice("bad" if found.refused else "good", f"{verdict(found)}."),
        Text(f"{found.cohort}: {found.cases} cases of {found.patients} patients, audited for this report."),
        Table("Sites", tuple(header), tuple(map(tuple, rows))),
    ]
    blocks += [Text(f"{line}.") for line in (split_line(found), association_line(found)) if line is not None]
    if found.findings:
        blocks.append(
            Table(
                "Findings",
                ("check", "severity", "finding", "cases"),
                tuple(
                    (each.check, each.severity, each.message, some(each.cases, _CASES_SHOWN))
                    for each in found.findings
                ),
            )
        )
    return blocks


def leak_of_run(split: Split) -> Notice:
    """Return whether a run's split shares patients."""
    if split.leaks:
        return Notice("bad", f"Leak: {shared_patients(split)}. {LEAK_NOTE}")
    return Notice("good", f"No leak: split by {split.kind}; no patient is in two parts.")


def leaks_of_runs(splits: Mapping[str, Split]) -> Notice:
    """Return whether the split of any of several runs shares patients, and of which.

    Args:
        splits: by the run's name; at least one.
    """
    leaking: dict[str, list[str]] = {}
    for name, split in splits.items():
        if split.leaks:
            leaking.setdefault(shared_patients(split), []).append(name)
    if not leaking:
        kinds = ", ".join(dict.fromkeys(split.kind for split in splits.values()))
        runs = "the one run that has" if len(splits) == 1 else f"any of the {len(splits)} runs that have"
        return Notice("good", f"No leak: split by {kinds}; no patient is in two parts of {runs} begun.")
    number = sum(map(len, leaking.values()))
    said = " ".join(f"{shared} in {some(names, 10)}." for shared, names in leaking.items())
    return Notice("bad", f"Leak in {number} of the {len(splits)} runs that have begun. {said} {LEAK_NOTE}")


def shared_patients(split: Split) -> str:
    """Return how many patients a split that leaks shares."""
    number = len(split.leaking_patients)
    return f"{number} {'patient has' if number == 1 else 'patients have'} cases in more than one part"


def left_by(verb: str, run: RunFolder) -> Path:
    """Return a file that is there once `evaluate` or `explain` has been through a run."""
    return {"evaluate": run.tables / "metrics.csv", "explain": run.evidence}[verb]


def stale_tables(run: RunFolder) -> Iterator[Notice]:
    """Yield whether what `evaluate` and `explain` left is older than the predictions that it is of."""
    for verb in ("evaluate", "explain"):
        left = left_by(verb, run)
        if left.is_file() and is_older([left], [run.predictions, run.structures]):
            yield Notice(
                "warning",
                f"The results of `threefold {verb}` are older than the predictions. `threefold {verb} "
                f"{run.path}` updates them.",
            )


def is_older(made: Iterable[Path], of: Iterable[Path]) -> bool:
    """Whether a file was written after all those that were made of it; absent ones don't count."""
    newest = max((path.stat().st_mtime for path in made), default=0.0)
    return any(path.stat().st_mtime > newest for path in of if path.is_file())


_STUDY_AND_RUN = 3
"""Words of a study's own process: the program, the study, the run."""


def environment_facts(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Yield what a run's training ran with: versions and machine."""
    found = _environment(run)
    if not found:
        yield "environment", f"{run.environment.name} is missing or unreadable."
        return
    yield "started", str(found.get("started", ""))
    yield "python", str(found.get("python", ""))
    packages = found.get("packages")
    for name, version in packages.items() if isinstance(packages, dict) else ():
        if version is not None:
            yield str(name), str(version)
    yield "platform", str(found.get("platform", ""))
    cores, threads = found.get("cores"), found.get("threads")
    yield "processor", f"{found.get('processor', '')}, {cores} cores, {threads} threads"
    gpus = found.get("gpus")
    yield "GPUs", ", ".join(map(str, gpus if isinstance(gpus, list) else ())) or "none"


def reproduction(run: RunFolder, experiment: Experiment, home: Path) -> Iterator[Block]:
    """Yield the commands and the experiment that give the same run again.

    Args:
        run: the folder.
        experiment: as run.
        home: where the cohort was.
    """
    command = _environment(run).get("command")
    command = command if isinstance(command, list | str) else None
    if command:
        yield Heading("Original command")
        yield Code(typed(command))
    yield Heading("To reproduce it")
    again = run.path.with_name(f"{run.path.resolve().name}-again")
    words = ["threefold", "train", str(run.experiment), "--cohort", str(home), "--out", str(again)]
    if "--allow-outside" in (command or ()) or leaves_its_folder(home):
        words.append("--allow-outside")
    verbs = ("evaluate", "explain", "report") if run.evidence.is_file() else ("evaluate", "report")
    lines = [shlex.join(words), *(shlex.join(["threefold", verb, str(again)]) for verb in verbs)]
    yield Code("\n".join(lines))
    yield Text(
        f"With the versions above, on the cohort with the fingerprint above; the seed "
        f"{experiment.training.seed} of the training and {experiment.data.split.seed} of the split are in "
        "the experiment. On the CPU with as many threads, the weights are the same."
    )
    try:
        written = read_text(run.experiment, RunError)
    except RunError:
        return
    yield Folded("The experiment as run, every default written out", (Code(written),))


def leaves_its_folder(home: Path) -> bool:
    """Whether a cohort is there, and can be read only where its paths may leave its folder."""
    try:
        read_cohort(home)
    except CohortError:
        return cohort_if_there(home) is not None
    return False


def typed(command: object) -> str:
    """Return what a user types for it, from the arguments of the process: not where the program lies."""
    words = [str(word) for word in command] if isinstance(command, list) else [str(command)]
    program = Path(words[0]).name if words else ""
    if program == "study_worker.py" and len(words) == _STUDY_AND_RUN:
        study, run = words[1:]
        words[1:] = ["study", "run", f"{study}/study.yaml", "--out", study, "--only", run]
    return shlex.join(["threefold", *words[1:]])


def _environment(run: RunFolder) -> dict[str, Any]:
    try:
        return read_json(run.environment, RunError, "")
    except RunError:
        return {}
