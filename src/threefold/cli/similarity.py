"""`threefold similarity`: similarity of the features of runs, stage by stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device
from threefold.cli.progress import end_with_left_out, progress_of


def similarity(
    runs: Annotated[list[Path], typer.Argument(help="Two or more run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for similarity.md, similarity.csv and similarity.png.")
    ] = None,
    cohort: Annotated[
        Path | None,
        typer.Option(help="Use all cases of this cohort (default: the test cases that the runs share)."),
    ] = None,
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    allow_outside: AllowOutside = False,
) -> None:
    """Print the linear CKA of each pair of runs, at each stage of the encoder that both have.

    1: the features are equal up to rotation and scale. About 0: they are unrelated. The estimate is unbiased,
    so small samples do not appear similar by chance.

    A case with an unreadable image is excluded for all runs and reported; the exit status is then 1.

    Example: `threefold similarity cls cls-seg cls-seg-rec --out similarity`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.cohorts.failures import Failures
    from threefold.experiments import read_experiment
    from threefold.reporting.table import show
    from threefold.run import RunFolder, make_folder
    from threefold.runs.similarity import compare_runs, table_of, write_similarities

    folders = [RunFolder(path) for path in runs]
    for folder in folders:
        folder.read_status()
    if out is not None:
        make_folder(out)
    shown = None if cohort is None else read_cohort(cohort, allow_outside=allow_outside)
    failed: Failures = {}
    with progress_of("Reading features") as progress:
        found = compare_runs(
            folders, cohort=shown, device=device, batch_size=batch_size, failed=failed, progress=progress
        )
    spec = read_experiment(folders[0].experiment).evaluation
    show(table_of(found, spec))
    for path in () if out is None else write_similarities(found, spec, out):
        typer.echo(f"Similarity: {path}")
    end_with_left_out(failed)
