"""Running a chain: propagation, then each training, each stage once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from threefold.atlases.outcome import QUALITY_NAME, left_out_of
from threefold.atlases.propagation import propagate
from threefold.atlases.spec import PropagationSpec, load_propagation
from threefold.cohorts.cohort import Cohort
from threefold.cohorts.failures import listed
from threefold.cohorts.splits import Split, make_split
from threefold.csv_tables import as_numbers, frame_text
from threefold.errors import CohortError
from threefold.evaluation.paired import MEASURES, Gain, registration_gains, variant_gains
from threefold.experiment import EvaluationSpec, Experiment
from threefold.reporting.run_report import Report
from threefold.reporting.table import page
from threefold.reporting.tables import gain_table, write_comparison
from threefold.run import PROPAGATION, make_folder, write_atomically
from threefold.runs.evaluate import evaluate_propagated, evaluate_run
from threefold.studies.chain_spec import ChainSpec, stage_experiments, stage_overrides
from threefold.training.devices import require_one_process
from threefold.training.plan import require_settings, require_split, seen_of
from threefold.training.progress import TrainingProgress
from threefold.training.run import train
from threefold.validation import read_table


@dataclass(frozen=True)
class ChainReport:
    """What a chain gave.

    Attributes:
        stages: evaluations by stage, in order.
        gains: what registration gains over affine alignment, and each stage over propagation alone.
        spec: replicates and confidence of the gains' intervals.
        tables: folder of comparison.md and gains.md.
    """

    stages: dict[str, Report]
    gains: tuple[Gain, ...]
    spec: EvaluationSpec
    tables: Path


@dataclass(frozen=True)
class Chain:
    """A chain with everything that it will do, checked before anything is computed.

    Attributes:
        spec: as shipped or read.
        propagation: how labels are propagated.
        experiments: by stage.
        out: gets `propagated`, the cohort with propagated structures, `runs/<stage>`, and `tables`, in which
            the stages are side by side and what each gains is told.
    """

    spec: ChainSpec
    propagation: PropagationSpec
    experiments: dict[str, Experiment]
    out: Path

    @property
    def propagated(self) -> Path:
        """The cohort with propagated structures."""
        return self.out / "propagated"

    def run_folder(self, stage: str) -> Path:
        """Return where a stage is trained."""
        return self.out / "runs" / stage


def plan_chain(spec: ChainSpec, overrides: Sequence[str], out: Path) -> Chain:
    """Return what a chain will do.

    Args:
        spec: the chain.
        overrides: `STAGE.key.path=value`, `propagation.key=value`, or `key.path=value` of every training.
        out: the chain's folder.

    Raises:
        ExperimentError: naming the stage and the key.
    """
    changes = stage_overrides(spec, overrides)[PROPAGATION]
    return Chain(
        spec=spec,
        propagation=load_propagation(spec.propagation, changes),
        experiments=stage_experiments(spec, overrides, out / "runs"),
        out=out,
    )


def run_chain(chain: Chain, cohort: Cohort, progress: TrainingProgress) -> ChainReport:
    """Run a chain on a cohort with atlases; what is already there is not done again.

    Args:
        chain: from `plan_chain`.
        cohort: cases and atlases.
        progress: told of each step.

    Returns:
        Evaluations and gains. Where the cohort has reference structures, the propagated labels themselves are
        evaluated as a first stage, `propagation`.

    Raises:
        UsageError: a launcher started several processes; a stage asks for devices or extras that are not
            there. This and all of the next that does not depend on voxels comes before anything is done.
        CohortError: the cohort can't be split, propagated or trained on; a stage tests what an earlier stage,
            whose weights it starts from, trains on; the folder holds another propagation.
        RunError: a stage's folder holds another experiment's run.
        ImageError, WeightsError, TrainingError: naming the case, the file or the epoch.
    """
    require_one_process("a chain")
    splits = _stage_splits(chain, cohort)
    folder = chain.propagated
    there = "already there" if folder.is_dir() else "the atlases' labels are propagated into it"
    progress.say(f"{folder}: {there}")
    make_folder(chain.out)
    propagated = propagate(
        cohort,
        folder,
        chain.propagation,
        held_out={case.case_id for split in splits.values() for case in split.cases(cohort, "test")},
        # What runs were trained on is not replaced under them.
        renew=not any(chain.run_folder(stage).exists() for stage in chain.experiments),
        progress=partial(progress.step, "propagating"),
        say=progress.say,
    )
    for line in listed(left_out_of(propagated)):
        progress.say(f"warning: left out of {folder}: {line}")
    first = next(iter(chain.experiments.values()))
    reports = {}
    for stage, experiment in chain.experiments.items():
        progress.say(f"stage {stage}: {experiment.name}, into {chain.run_folder(stage)}")
        run = train(experiment, propagated, chain.run_folder(stage), resume=True, progress=progress)
        reports[stage] = evaluate_run(run)
        for line in listed(reports[stage].predictions.left_out):
            progress.say(f"warning: left out of stage {stage}: {line}")
    split = make_split(propagated, first.data.split)
    tested = split.cases(propagated, "test")
    if any(case.reference for case in tested):
        if not any(case.structures for case in tested):
            progress.say("warning: no test case has propagated structures, every registration of them failed")
        alone = evaluate_propagated(propagated, split, chain.out, first.evaluation)
        for line in listed(alone.predictions.left_out):
            progress.say(f"warning: left out of the labels' own numbers: {line}")
        reports = {PROPAGATION: alone, **reports}
    tables = chain.out / "tables"
    write_comparison({name: each.evaluation for name, each in reports.items()}, tables)
    gains = tuple(_gains(propagated, reports, first.evaluation))
    report = ChainReport(reports, gains, first.evaluation, tables)
    if report.gains:
        write_atomically(tables / "gains.md", page([gain_table(report.gains, first.evaluation)]))
        numbers = pd.DataFrame([each.record() for each in report.gains])
        write_atomically(tables / "gains.csv", frame_text(numbers))
    return report


def _stage_splits(chain: Chain, cohort: Cohort) -> dict[str, Split]:
    """Return each stage's split, and refuse now what would end a stage hours later.

    Which registrations will fail is not known yet: every case counts as if it had structures.
    """
    cases = tuple(replace(case, targets={"structures": case.image, **case.targets}) for case in cohort.cases)
    expected, splits = replace(cohort, cases=cases), dict[str, Split]()
    starts = {stage.name: stage.init_from for stage in chain.spec.stages}
    for stage, experiment in chain.experiments.items():
        require_settings(experiment)
        split = splits[stage] = require_split(experiment, expected)
        tested = [case.case_id for case in split.cases(cohort, "test")]
        earlier = starts[stage]
        while earlier is not None:
            seen = seen_of(splits[earlier], tested)
            if seen:
                raise CohortError(
                    f"{cohort.folder}: stage {stage} tests {len(seen)} cases (for example {seen[0]}) that "
                    f"stage {earlier}, whose weights it starts from, trains or validates on. Give both the "
                    "same data.split."
                )
            earlier = starts[earlier]
    return splits


def _gains(propagated: Cohort, reports: Mapping[str, Report], spec: EvaluationSpec) -> Iterator[Gain]:
    """Yield what registration gains over affine alignment, and each stage over propagation alone."""
    quality = read_table(
        propagated.folder / QUALITY_NAME,
        CohortError,
        "It is of the propagation: put it back, or propagate again.",
    )
    numbers = [name for name in MEASURES if name in quality]
    quality[numbers] = as_numbers(quality[numbers])
    patients = {case.case_id: case.patient_id for case in propagated.cases}
    yield from registration_gains(quality, patients, spec)
    if PROPAGATION in reports:
        predictions = {name: report.predictions for name, report in reports.items()}
        yield from variant_gains(predictions, PROPAGATION, spec)
