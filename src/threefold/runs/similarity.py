"""How alike runs see the same cases, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.failures import Failures
from threefold.cohorts.splits import read_split
from threefold.csv_tables import frame_text
from threefold.errors import CohortError, RunError, UsageError
from threefold.evaluation.estimate import Estimate
from threefold.evaluation.similarity import similarity
from threefold.experiment import EvaluationSpec
from threefold.experiments import read_experiment
from threefold.reporting.figures import save
from threefold.reporting.results import Entry, frame_of
from threefold.reporting.similarity import POOLED, similarity_figure, similarity_table
from threefold.reporting.table import Table, page
from threefold.run import RunFolder, make_folder, write_atomically
from threefold.runs.evaluate import cohort_of_run

if TYPE_CHECKING:
    from threefold.inference.features import Features

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StageSimilarity:
    """The likeness of one stage of two runs.

    Attributes:
        first, second: names of the runs.
        stage: its name; `features` is what the classifier reads.
        found: the likeness.
    """

    first: str
    second: str
    stage: str
    found: Estimate


def compare_runs(
    runs: Sequence[RunFolder],
    *,
    cohort: Cohort | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    failed: Failures | None = None,
    progress: Progress | None = None,
) -> tuple[StageSimilarity, ...]:
    """Return the likeness of each pair of runs, at each stage that both have, over the same cases.

    Stages are matched by name. The cases are those that every run has in its test part; of a cohort that is
    given, all.

    Args:
        runs: finished, two or more; the first one's evaluation settings hold.
        cohort: whose cases they are shown; None: that which all of them were trained on.
        device: for the networks.
        batch_size: images a pass of a network.
        failed: gets each case that a run can't be shown, and why; it counts for none. None: the first raises.
        progress: told of cases done, over all runs.

    Raises:
        UsageError: fewer than two runs, or one twice.
        RunError: no finished run; or the runs are of other cohorts, or share no test case.
        CohortError: the cohort given asks what a network was not trained for.
        ImageError: naming the case that can't be read, where `failed` is None; else, no case can be read.
    """
    if len({run.path.resolve() for run in runs}) < max(2, len(runs)):
        raise UsageError("name two or more different runs to compare.")
    spec = read_experiment(runs[0].experiment).evaluation
    where, cases = _shared_cases(runs, cohort)
    seen = list(_features(runs, cases, where, device, batch_size, failed, progress))
    if failed:
        cases = [case for case in cases if case.case_id not in failed]
        seen = [each.of([case.case_id for case in cases]) for each in seen]
    patients = [case.patient_id for case in cases]
    return tuple(
        StageSimilarity(first, second, stage, found)
        for (first, one), (second, two) in combinations(zip(distinct_names(runs), seen, strict=True), 2)
        for stage, found in _stages(one, two, patients, spec)
    )


def write_similarities(
    found: Sequence[StageSimilarity], spec: EvaluationSpec, folder: Path
) -> tuple[Path, ...]:
    """Write similarity.md, similarity.csv and similarity.png into a folder; return their paths.

    Args:
        found: what `compare_runs` returned.
        spec: the settings of the intervals.
        folder: made where it is not there.
    """
    make_folder(folder)
    entries = [
        Entry(each.found, {"first": each.first, "second": each.second, "stage": each.stage}) for each in found
    ]
    contents = {
        "similarity.md": page([table_of(found, spec)]),
        "similarity.csv": frame_text(frame_of(entries)),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    figure = save(similarity_figure(_by_pair(found)), folder / "similarity.png")
    return (*(folder / name for name in contents), figure)


def table_of(found: Sequence[StageSimilarity], spec: EvaluationSpec) -> Table:
    """Return the likenesses as a table, a row a pair of runs and a column a stage."""
    return similarity_table(_by_pair(found), spec)


def distinct_names(runs: Sequence[RunFolder]) -> tuple[str, ...]:
    """Return the runs' paths without what all of them begin and end with."""
    parts = [run.path.resolve().parts for run in runs]
    shortest = min(map(len, parts))
    first = next((i for i in range(shortest) if len({each[i] for each in parts}) > 1), shortest - 1)
    last = next((i for i in range(shortest) if len({each[-1 - i] for each in parts}) > 1), 0)
    return tuple("/".join(each[first : max(len(each) - last, first + 1)]) for each in parts)


def _shared_cases(runs: Sequence[RunFolder], given: Cohort | None) -> tuple[Cohort, list[Case]]:
    """Return the cohort, and which of its cases the runs are compared on."""
    if given is not None:
        return given, list(given.cases)
    where = cohort_of_run(runs[0])
    for run in runs[1:]:
        try:
            cohort_of_run(run, where)
        except CohortError as error:
            raise RunError(
                f"{runs[0].path} and {run.path} were trained on other cohorts. Name the one whose cases both "
                "are shown with --cohort."
            ) from error
    splits = [read_split(run.split).parts for run in runs]
    cases = [case for case in where.cases if all(parts.get(case.case_id) == "test" for parts in splits)]
    if not cases:
        raise RunError(
            f"no case is in the test part of all {len(runs)} runs: they were split in other ways. Name a "
            "cohort that none of them was trained on with --cohort."
        )
    return where, cases


def _features(
    runs: Sequence[RunFolder],
    cases: Sequence[Case],
    cohort: Cohort,
    device: str,
    batch_size: int,
    failed: Failures | None,
    progress: Progress | None,
) -> Iterator[Features]:
    from threefold.inference.features import stage_features
    from threefold.inference.predictor import Predictor

    for number, run in enumerate(runs):

        def told(done: int, _: int, before: int = number * len(cases)) -> None:
            if progress is not None:
                progress(before + done, len(runs) * len(cases))

        predictor = Predictor.from_run(run.path, device=device)
        yield stage_features(
            predictor, cases, cohort.spec, batch_size=batch_size, failed=failed, progress=told
        )


def _stages(
    one: Features, two: Features, patients: Sequence[str], spec: EvaluationSpec
) -> Iterator[tuple[str, Estimate]]:
    for name, values in one.stages.items():
        if name in two.stages:
            yield name, similarity(values, two.stages[name], patients, spec)
    yield POOLED, similarity(one.pooled, two.pooled, patients, spec)


def _by_pair(found: Sequence[StageSimilarity]) -> dict[tuple[str, str], dict[str, Any]]:
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    for each in found:
        pairs.setdefault((each.first, each.second), {})[each.stage] = each.found
    return pairs
