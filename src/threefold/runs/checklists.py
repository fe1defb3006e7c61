"""The items of reporting guidelines, filled from a run as far as it knows them; the others listed as missing.

CLAIM: Mongan, Moy and Kahn, Radiology: Artificial Intelligence 2020 (42 items). TRIPOD+AI: Collins et al.,
BMJ 2024 (27 items). Items have their numbers there and short names here; the guidelines say what each asks
for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from threefold.cohorts.cohort import Cohort, CohortSpec
from threefold.cohorts.splits import PARTS, Split
from threefold.core.targets import ClassTarget
from threefold.experiment import Experiment
from threefold.reporting.html import Block, Text
from threefold.reporting.results import Part
from threefold.reporting.table import Table, cell
from threefold.reporting.tables import title_of

Checklist = Literal["claim", "tripod-ai"]
_TO_WRITE = "to be written"
_HEADLINES = ("auc", "dice", "mae", "average_precision")


@dataclass(frozen=True)
class Known:
    """What a run knows of its study.

    Attributes:
        experiment, trained, split: of the run.
        status: state, epochs, threshold.
        results: of the commands that were asked of it.
        cohort: as it was trained on; None where it is not there any more.
        environment: versions and machine, by name.
        failed: cases that could not be predicted.
    """

    experiment: Experiment
    trained: CohortSpec
    split: Split
    status: Mapping[str, object]
    results: Mapping[str, Part]
    cohort: Cohort | None
    environment: Mapping[str, str]
    failed: int


TITLES: Mapping[Checklist, str] = {"claim": "CLAIM checklist", "tripod-ai": "TRIPOD+AI checklist"}
_ITEMS: Mapping[Checklist, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    "claim": (
        ("1", "title: an AI method is named", ()),
        ("2", "structured summary", ()),
        ("3", "background and intended use", ()),
        ("4", "objectives and hypotheses", ()),
        ("5", "prospective or retrospective", ()),
        ("6", "goal of the study", ()),
        ("7", "sources of the data", ("data",)),
        ("8", "eligibility criteria", ()),
        ("9", "preprocessing", ("preprocessing",)),
        ("10", "subsets of the data", ("subsets",)),
        ("11", "definitions of the data elements", ("targets",)),
        ("12", "de-identification", ()),
        ("13", "missing data", ("missing",)),
        ("14", "definition of the reference standard", ()),
        ("15", "rationale of the reference standard", ()),
        ("16", "annotators and their qualifications", ()),
        ("17", "annotation tools", ()),
        ("18", "variability of annotators", ()),
        ("19", "sample size", ("size",)),
        ("20", "assignment to partitions", ("split",)),
        ("21", "level at which partitions are disjoint", ("disjoint",)),
        ("22", "model", ("model",)),
        ("23", "software", ("software",)),
        ("24", "initialisation", ("start",)),
        ("25", "training", ("training", "augmentation")),
        ("26", "choice of the final model", ("selection",)),
        ("27", "ensembling", ("ensemble",)),
        ("28", "metrics", ("metrics",)),
        ("29", "uncertainty and significance", ("uncertainty",)),
        ("30", "robustness", ("robustness",)),
        ("31", "explainability", ("explanation",)),
        ("32", "external data", ("external",)),
        ("33", "flow of participants", ("flow",)),
        ("34", "characteristics by partition", ("characteristics",)),
        ("35", "performance on all partitions", ("performance",)),
        ("36", "accuracy and its precision", ("performance",)),
        ("37", "failure analysis", ("failures",)),
        ("38", "limitations", ()),
        ("39", "implications for practice", ()),
        ("40", "registration", ()),
        ("41", "protocol, data and code", ("code",)),
        ("42", "funding", ()),
    ),
    "tripod-ai": (
        ("1", "title", ()),
        ("2", "abstract", ()),
        ("3a-c", "background, target population, inequalities", ()),
        ("4", "objectives", ()),
        ("5a", "sources of the data", ("data",)),
        ("5b", "dates", ()),
        ("6a", "setting", ("sites",)),
        ("6b", "eligibility criteria", ()),
        ("6c", "treatments", ()),
        ("7", "data preparation", ("preprocessing",)),
        ("8a-c", "outcome, its assessors, blinding", ("targets",)),
        ("9a-c", "predictors", ("inputs",)),
        ("10", "sample size", ("size",)),
        ("11", "missing data", ("missing",)),
        ("12a", "use of the data", ("split", "disjoint")),
        ("12b", "handling of predictors", ("preprocessing",)),
        ("12c", "model and training", ("model", "training", "augmentation", "selection")),
        ("12d", "heterogeneity between clusters", ("robustness",)),
        ("12e", "performance measures", ("metrics", "uncertainty")),
        ("12f", "model updating", ()),
        ("12g", "how predictions are computed", ("output",)),
        ("13", "class imbalance", ("imbalance",)),
        ("14", "fairness", ()),
        ("15", "model output", ("output",)),
        ("16", "training against evaluation data", ("external",)),
        ("17", "ethical approval", ()),
        ("18a-b", "funding, conflicts of interest", ()),
        ("18c-d", "protocol, registration", ()),
        ("18e", "data sharing", ()),
        ("18f", "code sharing", ("code",)),
        ("19", "patient and public involvement", ()),
        ("20a", "flow of participants", ("flow",)),
        ("20b-c", "characteristics; development against evaluation", ("characteristics",)),
        ("21", "numbers in development", ("size",)),
        ("22", "full model", ("model", "code")),
        ("23a", "performance with intervals", ("performance",)),
        ("23b", "heterogeneity in performance", ("robustness",)),
        ("24", "results of updating", ()),
        ("25", "interpretation", ()),
        ("26", "limitations", ()),
        ("27a", "poor or missing input", ("poor input",)),
        ("27b-c", "interaction with users; further research", ()),
    ),
}


def checklist_blocks(name: Checklist, known: Known) -> tuple[Block, ...]:
    """Return a guideline's items, each with what the run knows, and which of them are left to the authors."""
    facts = {key: text for key, text in _facts(known).items() if text}
    rows = [
        (number, topic, "; ".join(facts[key] for key in keys if key in facts) or _TO_WRITE)
        for number, topic, keys in _ITEMS[name]
    ]
    missing = [f"{number} ({topic})" for number, topic, told in rows if told == _TO_WRITE]
    filled = len(rows) - len(missing)
    return (
        Text(
            f"{filled} of {len(rows)} items have something from this run; check that it is what the "
            f"guideline asks for. To be written by the authors: {'; '.join(missing)}."
        ),
        Table(TITLES[name], ("item", "asks for", "from this run"), tuple(rows)),
    )


def _facts(known: Known) -> dict[str, str]:
    """Return what the run knows, by the keys of the items."""
    experiment, trained, split = known.experiment, known.trained, known.split
    preprocessing, training, evaluation = (
        experiment.data.preprocessing,
        experiment.training,
        experiment.evaluation,
    )
    counts, hold_out = Counter(split.parts.values()), experiment.data.split.hold_out
    size = ", ".join(f"{counts[part]} {part}" for part in PARTS) + " cases"
    window = trained.intensity.window or preprocessing.windows or "percentiles 1 and 99 of the image"
    spacing = "scaled to fit" if preprocessing.spacing is None else f"at {preprocessing.spacing} mm"
    weights, start = experiment.initial_weights, f"random weights, seed {training.seed}"
    if weights is not None:
        start = f"the weights of {weights.path}"
    elif experiment.pretrain is not None:
        start = f"pretraining with {experiment.pretrain}"
    balanced = [name for name, task in experiment.tasks.items() if _is_balanced(task)]
    threshold = known.status.get("threshold")
    cut = (
        f"; positive from {threshold:.4g} on ({evaluation.threshold})" if isinstance(threshold, float) else ""
    )
    augmented = ", ".join(experiment.data.augmentation.model_dump(exclude_defaults=True)) or "none"
    return {
        "data": f"cohort {trained.name}, {trained.dimensions}D {trained.modality}",
        "inputs": f"the image alone, channels: {', '.join(trained.channels) or 'one'}",
        "preprocessing": f"{trained.intensity.unit}, window {window}, to 0..1; grid "
        f"{' x '.join(map(str, preprocessing.size))}, {spacing}",
        "targets": "; ".join(
            f"{name} ({', '.join(one.classes)})" if isinstance(one, ClassTarget) else f"{name} ({one.kind})"
            for name, one in trained.all_targets.items()
        ),
        "subsets": f"{len(split.parts)} cases of the table",
        "size": size,
        "split": f"{experiment.data.split.kind} split, seed {experiment.data.split.seed}; held out: "
        f"{', '.join(hold_out) or 'nothing' if hold_out is not None else 'the site group external, if any'}",
        "disjoint": _disjoint(known),
        "model": f"{experiment.network.kind} for {', '.join(experiment.tasks)}; settings: How to reproduce",
        "software": ", ".join(f"{name} {version}" for name, version in known.environment.items()),
        "start": start,
        "training": f"{known.status.get('epoch')} epochs, batches of {training.batch_size}, "
        f"{training.optimiser.name} at {training.optimiser.learning_rate:g}",
        "augmentation": f"augmentation: {augmented}",
        "selection": f"{training.selection.weights} epoch; best is {known.status.get('best_epoch')} by "
        f"validation {known.status.get('metric')}",
        "ensemble": "none: a single network",
        "imbalance": f"cases are sampled: {experiment.data.sampling}; class weights: "
        f"{', '.join(balanced) or 'none'}",
        "output": f"a probability, a mask or a number for each task{cut}",
        "poor input": "inputs are held against the training images (modality, unit, intensities, spacing, "
        "size): proven mismatches are refused, others noted",
        "flow": f"{known.failed} validation and test cases could not be predicted and are in no number",
        "uncertainty": f"{evaluation.confidence:.0%} intervals by {evaluation.replicates} bootstrap "
        "resamples of patients",
        "code": "How to reproduce, in this report",
        **_of_cohort(known),
        **_measured(known),
    }


def _is_balanced(task: object) -> bool:
    return getattr(task, "class_weights", "none") == "balanced"


def _disjoint(known: Known) -> str:
    if "patient" in known.trained.unknown:
        return "patients are not known, so one may have cases in several parts"
    if known.split.leaks:
        return f"LEAKS: {len(known.split.leaking_patients)} patients have cases in several parts"
    return "patients: none has cases in two parts"


def _of_cohort(known: Known) -> dict[str, str]:
    """Return what is known while the cohort is there."""
    cohort, trained = known.cohort, known.trained
    if cohort is None:
        return {}
    patients, sites = ({getattr(case, name) for case in cohort.cases} for name in ("patient_id", "site"))
    groups = "; ".join(f"{name}: {', '.join(of)}" for name, of in trained.site_groups.items())
    lacking = {name: sum(name not in case.targets for case in cohort.cases) for name in trained.all_targets}
    told = ", ".join(f"{name} in {count}" for name, count in lacking.items() if count) or "none"
    found = {
        "data": f"cohort {trained.name}, {trained.dimensions}D {trained.modality}, {len(cohort.cases)} cases "
        f"of {len(patients)} patients",
        "missing": f"targets that cases lack: {told}; a task learns from the cases that have its target",
        "characteristics": "cases by site and part, and the data audit, in this report",
    }
    if "site" not in trained.unknown:
        found["sites"] = f"{len(sites)} sites{f' ({groups})' if groups else ''}"
    return found


def _measured(known: Known) -> dict[str, str]:
    """Return what the evaluations found."""
    part = known.results.get("evaluate")
    if part is None:
        return {}
    rows = [entry.estimate for entry in part.numbers if not entry.about]
    of_cases = [row for row in rows if row.level == "case" and not row.class_name]
    whole = [row for row in of_cases if row.group_kind == "all" and row.metric in _HEADLINES]
    by_kind = {
        kind: {row.group for row in of_cases if row.group_kind == kind} for kind in ("site", "site group")
    }
    found = {
        "metrics": ", ".join(dict.fromkeys(title_of(row.metric, "") for row in of_cases)),
        "performance": "; ".join(f"{title_of(row.metric, '')} {cell(row)}" for row in whole),
        "external": ", ".join(f"test cases of {name}" for name in sorted(by_kind["site group"])),
    }
    if len(by_kind["site"]) > 1:
        found["robustness"] = f"metrics of {len(by_kind['site'])} sites and of the worst one, in this report"
    if "explain" in known.results:
        found["explanation"] = "attention compared with the lesion, in this report"
    if known.trained.mask is not None or known.trained.classes:
        found["failures"] = "wrong diagnoses and the worst masks, in this report"
    return found
