"""`threefold phantom`: synthetic cohorts with known ground truth."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli.progress import progress_of
from threefold.errors import UsageError

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort

phantom = typer.Typer(
    help="Create a synthetic cohort with known ground truth. Example: `threefold phantom head-ct my-phantom`",
    no_args_is_help=True,
)


class Preset(StrEnum):
    """Ready-made specifications."""

    STUDY = "study"
    DEMO = "demo"


class ExternalShortcut(StrEnum):
    """The planted feature at the external sites."""

    ABSENT = "absent"
    REVERSED = "reversed"
    RANDOM = "random"


@phantom.callback()
def _group() -> None:
    """Create a synthetic cohort with known ground truth.

    Example: `threefold phantom head-ct my-phantom`
    """


Out = Annotated[Path, typer.Argument(help="The cohort's folder, new or empty.")]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the phantom, for example noise=0.5."),
]
PresetName = Annotated[
    Preset, typer.Option(help="study: as in the studies. demo: small and easy, learned in minutes.")
]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")]


@phantom.command("head-ct")
def head_ct(
    out: Out,
    settings: Settings = None,
    preset: PresetName = Preset.STUDY,
    seed: Seed = 0,
    patients_per_site: Annotated[
        int | None,
        typer.Option("--patients-per-site", "--patients", help="Patients at each of sites 1 to 4."),
    ] = None,
    external_patients_per_site: Annotated[
        int | None, typer.Option(help="Patients at each of sites 5 to 11.")
    ] = None,
    slices: Annotated[
        tuple[int, int] | None, typer.Option(help="Range of slices per patient.", metavar="MIN MAX")
    ] = None,
    shortcut: Annotated[
        float | None,
        typer.Option(help="Strength 0..1 of the planted shortcut at sites 1 to 4."),
    ] = None,
    external_shortcut: Annotated[
        ExternalShortcut | None, typer.Option(help="The shortcut at sites 5 to 11.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create head-CT slices of hematomas with and without hypodensities, from eleven scanners.

    Example: `threefold phantom head-ct cohort --shortcut 0.9 --external-shortcut reversed --seed 1`
    """
    options = {
        "patients_per_site": patients_per_site,
        "external_patients_per_site": external_patients_per_site,
        "slices": slices,
        "shortcut": shortcut,
        "external_shortcut": external_shortcut and external_shortcut.value,
    }
    if _make("head-ct", out, preset, seed, settings, options, what="slices", as_json=as_json):
        typer.echo(f"Next: threefold check {out}")


@phantom.command("varied-head")
def varied_head(
    out: Out,
    settings: Settings = None,
    preset: PresetName = Preset.STUDY,
    seed: Seed = 0,
    cases: Annotated[int | None, typer.Option(help="Slices, each of a head of its own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create head-CT slices with and without haemorrhage, of heads and scanners of wide variety.

    Example: `threefold phantom varied-head cohort --cases 500 --seed 1`
    """
    if _make("varied-head", out, preset, seed, settings, {"cases": cases}, what="slices", as_json=as_json):
        typer.echo(f"Next: threefold train hematoma/head-ct --cohort {out} --out RUN")


@phantom.command("fetal-heart")
def fetal_heart(
    out: Out,
    settings: Settings = None,
    preset: PresetName = Preset.STUDY,
    seed: Seed = 0,
    patients: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Patients with CoA, RAA and DAA.", metavar="COA RAA DAA"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create fetal heart volumes with coarctation, right or double aortic arch, with atlases and labels.

    Example: `threefold phantom fetal-heart cohort --preset demo --seed 1`
    """
    options = {"patients": patients}
    if _make("fetal-heart", out, preset, seed, settings, options, what="volumes", as_json=as_json):
        typer.echo(f"Next: threefold propagate {out} --out {out}-propagated")


@phantom.command("object-background")
def object_background(
    out: Out,
    settings: Settings = None,
    preset: PresetName = Preset.STUDY,
    seed: Seed = 0,
    shortcut: Annotated[
        float | None, typer.Option(help="Strength 0..1 of the association of background and object.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create pictures of objects on backgrounds that are associated with them only in training.

    Example: `threefold phantom object-background cohort --shortcut 0.9 external_shortcut=random`
    """
    options = {"shortcut": shortcut}
    if _make("object-background", out, preset, seed, settings, options, what="pictures", as_json=as_json):
        typer.echo(f"Next: threefold train hematoma/mtl-cls-seg --cohort {out} --out RUN")


@phantom.command("own")
def own(
    name: Annotated[str, typer.Argument(help="MODULE:NAME of a Phantom, or a name registered by a package.")],
    out: Out,
    settings: Settings = None,
    preset: Annotated[str, typer.Option(help="A preset of the phantom.")] = "study",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Create a cohort from your own phantom, in a module of the working directory or an installed package.

    Example: `threefold phantom own my_phantoms:KNEE cohort --preset demo size=64`
    """
    if _make(name, out, preset, seed, settings, {}, what="cases", as_json=as_json):
        typer.echo(f"Next: threefold check {out}")


def _make(
    name: str,
    out: Path,
    preset: str,
    seed: int,
    settings: list[str] | None,
    options: Mapping[str, Any],
    *,
    what: str,
    as_json: bool,
) -> bool:
    """Create a phantom's cohort and report it; return False if the report is JSON.

    Options that were not given are None.
    """
    changes = _changes(settings or []) | {key: value for key, value in options.items() if value is not None}

    from threefold.phantoms.registry import phantom_of

    made = phantom_of(name)
    spec = made.spec(preset, changes, where=name)
    with progress_of(f"Making {what}") as progress:
        cohort = made.make(out, spec, seed, progress)
    summary = _summary(cohort, seed)
    if as_json:
        typer.echo(json.dumps({**summary, "spec": spec.model_dump(mode="json")}, indent=2))
        return False
    labels = ", ".join(f"{count} {label}" for label, count in summary["labels"].items())
    atlases = f", {summary['atlases']} atlases" if summary["atlases"] else ""
    typer.echo(
        f"{out}: {summary['cases']} {what} of {summary['patients']} patients from {summary['sites']} sites "
        f"({labels}), {summary['masks']} with a mask{atlases} (seed {seed})"
    )
    typer.echo(f"Pictures: {out / 'previews'}")
    return True


def _changes(settings: list[str]) -> dict[str, Any]:
    from threefold.validation import yaml_value

    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"'{setting}': expected KEY=VALUE, for example noise=0.5.")
        changes[key] = yaml_value(text, f"'{setting}'", UsageError)
    return changes


def _summary(cohort: Cohort, seed: int) -> dict[str, Any]:
    return {
        "cohort": str(cohort.folder),
        "seed": seed,
        "cases": len(cohort.cases),
        "patients": len({case.patient_id for case in cohort.cases}),
        "sites": len(cohort.sites),
        "labels": {
            name: sum(case.label == index for case in cohort.cases)
            for index, name in enumerate(cohort.spec.classes)
        },
        "masks": sum(case.mask is not None for case in cohort.cases),
        "atlases": len(cohort.spec.atlases),
    }
