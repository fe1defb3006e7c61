"""`threefold export`: write a cohort or a run's network in another program's format."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from threefold.cli.options import AllowOutside, Weights
from threefold.run import Epoch

if TYPE_CHECKING:
    from threefold.interchange.engines import Engine


class _EitherOrder(TyperGroup):
    """Commands whose first argument may stand before their name: `export my-run onnx`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name, and the rest of them."""
        if len(args) > 1 and args[0] not in self.commands and args[1] in self.commands:
            args = [args[1], args[0], *args[2:]]
        return super().resolve_command(ctx, args)


exporting = typer.Typer(
    cls=_EitherOrder,
    help="Write a cohort or a run's network for another program. "
    "Example: `threefold export onnx my-run --out my-network`",
    no_args_is_help=True,
)


class ListsBy(StrEnum):
    """What decides which list a case is in."""

    COLUMN = "column"
    PATIENT = "patient"
    SITE = "site"


@exporting.command("decathlon")
def decathlon(
    cohort: Annotated[Path, typer.Argument(help="The cohort's folder, with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="The JSON file to write; its paths are relative to its folder.")],
    split: Annotated[
        ListsBy,
        typer.Option(
            help="column: the table's own split; cases without one go to the list inference. patient, site: "
            "a new split."
        ),
    ] = ListsBy.COLUMN,
    hold_out: Annotated[
        list[str] | None, typer.Option(help="A site or site group for testing; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of a new split.")] = 0,
    allow_outside: AllowOutside = False,
) -> None:
    """Write a dataset file (Decathlon-style lists) for the published aortic-arch implementation.

    The cohort's files are not copied. `threefold import decathlon` restores the same cohort.

    Example: `threefold export decathlon my-cohort --split patient --out my-cohort/data.json`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.cohorts.decathlon_export import export_decathlon, summary
    from threefold.cohorts.splits import make_split
    from threefold.errors import UsageError
    from threefold.experiment import SplitSpec

    if split is ListsBy.COLUMN and (hold_out or seed):
        raise UsageError("--hold-out and --seed are for a new split: add --split patient or --split site.")
    loaded = read_cohort(cohort, allow_outside=allow_outside)
    spec = SplitSpec(kind=split.value, hold_out=tuple(hold_out or ()) or None, seed=seed)
    parts = None if split is ListsBy.COLUMN else make_split(loaded, spec).parts
    lacking = export_decathlon(loaded, out, parts=parts)
    lists = ", ".join(f"{count} {name}" for name, count in summary(loaded, parts).items())
    typer.echo(f"{out}: {len(loaded.cases)} cases ({lists})")
    for key, cases in lacking.items():
        typer.echo(
            f"note: {len(cases)} cases of training and validation have no {key}, for example {cases[0]}; "
            "the published training needs it"
        )


@exporting.command("nnunet")
def nnunet(
    cohort: Annotated[Path, typer.Argument(help="The cohort's folder, with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="The new folder, for example nnUNet_raw/Dataset501_Hearts.")],
    target: Annotated[
        str | None, typer.Option(help="The mask or structures to segment. [default: the only one]")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds, divided by patient.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the folds.")] = 0,
    allow_outside: AllowOutside = False,
) -> None:
    """Write a raw data set of nnU-Net: images as NIfTI or PNG, one label map per case, and folds.

    Test cases and cases without a label map go to imagesTs. Copy splits_final.json into the data set's folder
    in nnUNet_preprocessed before training: nnU-Net's own folds divide cases, not patients. `threefold import
    nnunet` restores the same cohort.

    Example: `threefold export nnunet my-cohort --out nnUNet_raw/Dataset501_Hearts`
    """
    from threefold.cli.progress import progress_of
    from threefold.cohorts.cohort import read_cohort
    from threefold.cohorts.nnunet import export_nnunet

    loaded = read_cohort(cohort, allow_outside=allow_outside)
    with progress_of("Exporting cases") as progress:
        made = export_nnunet(loaded, out, target=target, folds=folds, seed=seed, progress=progress)
    typer.echo(
        f"{out}: {made.training} cases for training in {made.folds} folds by patient, {made.test} others"
    )
    _end(made.failed)


@exporting.command("bids")
def bids(
    cohort: Annotated[Path, typer.Argument(help="The cohort's folder, with cohort.yaml and cases.csv.")],
    out: Annotated[Path, typer.Option(help="The new folder.")],
    suffix: Annotated[
        str | None, typer.Option(help="Suffix of MRI, for example T2w; channels have their names.")
    ] = None,
    allow_outside: AllowOutside = False,
) -> None:
    """Write a folder in the Brain Imaging Data Structure (BIDS); masks and label maps are derivatives.

    `threefold import bids` restores the same cohort, without its atlases.

    Example: `threefold export bids my-cohort --suffix T2w --out my-bids`
    """
    from threefold.cli.progress import progress_of
    from threefold.cohorts.bids import export_bids
    from threefold.cohorts.cohort import read_cohort

    loaded = read_cohort(cohort, allow_outside=allow_outside)
    with progress_of("Exporting cases") as progress:
        made = export_bids(loaded, out, suffix=suffix, progress=progress)
    typer.echo(f"{out}: {made.cases} cases of {made.participants} participants")
    _end(made.failed)


def _end(failed: Mapping[str, str]) -> None:
    """Report cases that could not be written; the exit status is then 1."""
    from threefold.cohorts.failures import listed

    if failed:
        typer.echo("\n".join(listed(failed)), err=True)
        raise typer.Exit(1)


Run = Annotated[Path, typer.Argument(help="The run folder of `threefold train`.")]
Out = Annotated[Path, typer.Option(help="The new folder.")]
Bf16 = Annotated[
    bool, typer.Option("--bf16", help="Compare in bfloat16, by Dice and decisions instead of probabilities.")
]


@exporting.command("onnx")
def onnx(run: Run, out: Out, weights: Weights = None) -> None:
    """Write a run's network as ONNX, with a description of what goes in and comes out (export.json).

    It is compared with PyTorch on random images and on test cases of the cohort, and refused if its answers
    differ; parity.json lists the differences. Networks of slices take any number of images per batch,
    networks of volumes one, and both the size of the training.

    Example: `threefold export onnx my-run --out my-network`
    """
    _write(run, out, weights, "onnx")


@exporting.command("openvino")
def openvino(run: Run, out: Out, weights: Weights = None, bf16: Bf16 = False) -> None:
    """Write a run's network for OpenVINO (model.xml, model.bin), with its description, compared as for ONNX.

    Example: `threefold export openvino my-run --out my-network`
    """
    _write(run, out, weights, "openvino-bf16" if bf16 else "openvino")


def _write(run: Path, out: Path, weights: Epoch | None, engine: Engine) -> None:
    from threefold.inference.predictor import Predictor
    from threefold.interchange.engines import format_of, require_engine
    from threefold.interchange.exports import export_run
    from threefold.run import RunFolder
    from threefold.runs.ensembles import comparison_cases

    require_engine(format_of(engine))
    cases = comparison_cases(RunFolder(run))
    found = export_run(Predictor.from_run(run, weights=weights), out, engine, cases)
    difference, dice = max(one.difference for one in found), min(one.dice for one in found)
    typer.echo(
        f"{out}: compared with PyTorch on {len(found)} images ({len(cases)} of the cohort): largest "
        f"difference {difference:.1e}, smallest Dice {dice:.4f}, the same decisions"
    )
    if not cases:
        typer.echo("note: the cohort that it was trained on is not there: compared on random images alone")
