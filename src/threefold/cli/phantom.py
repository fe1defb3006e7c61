"""`threefold phantom`: synthetic cohorts with known truth."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli.progress import progress_of
from threefold.errors import UsageError

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort

phantom = typer.Typer(
    help="Make a synthetic cohort with known truth. Example: `threefold phantom head-ct my-phantom`",
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
    """Make a synthetic cohort with known truth.

    Example: `threefold phantom head-ct my-phantom`
    """


@phantom.command("head-ct")
def head_ct(
    out: Annotated[Path, typer.Argument(help="The cohort's folder: new, or empty.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any key of the specification, for example noise=0.5."),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="study: the studies' protocol. demo: small and easy, learned in minutes.")
    ] = Preset.STUDY,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    patients_per_site: Annotated[
        int | None, typer.Option("--patients-per-site", "--patients", help="At each of sites 1 to 4.")
    ] = None,
    external_patients_per_site: Annotated[int | None, typer.Option(help="At each of sites 5 to 11.")] = None,
    slices: Annotated[
        tuple[int, int] | None, typer.Option(help="Fewest and most slices of a patient.", metavar="MIN MAX")
    ] = None,
    shortcut: Annotated[
        float | None,
        typer.Option(help="Strength 0..1 of the planted shortcut at sites 1 to 4."),
    ] = None,
    external_shortcut: Annotated[
        ExternalShortcut | None, typer.Option(help="The shortcut's feature at sites 5 to 11.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make head-CT slices of hematomas with and without hypodensities, from eleven scanners.

    Example: `threefold phantom head-ct cohort --shortcut 0.9 --external-shortcut reversed --seed 1`
    """
    changes = _changes(settings or [])
    options = {
        "patients_per_site": patients_per_site,
        "external_patients_per_site": external_patients_per_site,
        "slices": slices,
        "shortcut": shortcut,
        "external_shortcut": external_shortcut and external_shortcut.value,
    }
    changes |= {key: value for key, value in options.items() if value is not None}

    from threefold.phantoms.head_protocol import PRESETS, HeadCtSpec
    from threefold.validation import parse_spec

    spec = parse_spec(
        HeadCtSpec, {**PRESETS[preset.value].model_dump(), **changes}, where="head-ct", error=UsageError
    )
    from threefold.phantoms.head_ct import make_head_ct_cohort

    with progress_of("Making slices") as progress:
        cohort = make_head_ct_cohort(out, spec, seed, progress)
    summary = _summary(cohort, seed)
    if as_json:
        typer.echo(json.dumps({**summary, "spec": spec.model_dump(mode="json")}, indent=2))
        return
    typer.echo(
        f"{out}: {summary['cases']} slices of {summary['patients']} patients from {summary['sites']} sites, "
        f"{summary['positives']} slices with hypodensities, {summary['masks']} with a mask (seed {seed})"
    )
    typer.echo(f"Pictures: {out / 'previews'}")
    typer.echo(f"Next: threefold check {out}")


@phantom.command("fetal-heart")
def fetal_heart(
    out: Annotated[Path, typer.Argument(help="The cohort's folder: new, or empty.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any key of the specification, for example shift=0.5."),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="study: the studies' protocol. demo: small volumes, learned in minutes.")
    ] = Preset.STUDY,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    patients: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Patients with CoA, RAA and DAA.", metavar="COA RAA DAA"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make fetal heart volumes with coarctation, right or double aortic arch, with atlases and known truth.

    Example: `threefold phantom fetal-heart cohort --preset demo --seed 1`
    """
    changes = _changes(settings or [])
    if patients is not None:
        changes["patients"] = patients

    from threefold.phantoms.fetal_protocol import PRESETS, FetalHeartSpec
    from threefold.validation import parse_spec

    content = {**PRESETS[preset.value].model_dump(), **changes}
    spec = parse_spec(FetalHeartSpec, content, where="fetal-heart", error=UsageError)
    from threefold.phantoms.fetal_heart import make_fetal_heart_cohort

    with progress_of("Making volumes") as progress:
        cohort = make_fetal_heart_cohort(out, spec, seed, progress)
    counts = {
        name: sum(case.label == index for case in cohort.cases)
        for index, name in enumerate(cohort.spec.classes)
    }
    masks = sum(case.mask is not None for case in cohort.cases)
    if as_json:
        summary = {"cohort": str(out), "seed": seed, "cases": len(cohort.cases), "diagnoses": counts}
        summary |= {"masks": masks, "sites": len(cohort.sites), "spec": spec.model_dump(mode="json")}
        typer.echo(json.dumps(summary, indent=2))
        return
    words = ", ".join(f"{count} {name}" for name, count in counts.items())
    typer.echo(
        f"{out}: {len(cohort.cases)} volumes from {len(cohort.sites)} sites ({words}), {masks} with a manual "
        f"mask, {len(cohort.spec.atlases)} atlases (seed {seed})"
    )
    typer.echo(f"Pictures: {out / 'previews'}")
    typer.echo(f"Next: threefold propagate {out} --out {out}-propagated")


@phantom.command("object-background")
def object_background(
    out: Annotated[Path, typer.Argument(help="The cohort's folder: new, or empty.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any key of the specification, for example noise=0.5."),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="study: the studies' protocol. demo: small, with plainer objects.")
    ] = Preset.STUDY,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    shortcut: Annotated[
        float | None, typer.Option(help="Strength 0..1 with which the background goes with the object.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make pictures of objects before backgrounds that go with them in training and not elsewhere.

    Example: `threefold phantom object-background cohort --shortcut 0.9 external_shortcut=random`
    """
    changes = _changes(settings or [])
    if shortcut is not None:
        changes["shortcut"] = shortcut

    from threefold.phantoms.object_background import (
        PRESETS,
        ObjectBackgroundSpec,
        make_object_background_cohort,
    )
    from threefold.validation import parse_spec

    content = {**PRESETS[preset.value].model_dump(), **changes}
    spec = parse_spec(ObjectBackgroundSpec, content, where="object-background", error=UsageError)
    with progress_of("Making pictures") as progress:
        cohort = make_object_background_cohort(out, spec, seed, progress)
    summary = _summary(cohort, seed)
    if as_json:
        typer.echo(json.dumps({**summary, "spec": spec.model_dump(mode="json")}, indent=2))
        return
    typer.echo(
        f"{out}: {summary['cases']} pictures from {summary['sites']} sites, {summary['positives']} "
        f"{cohort.spec.positive}, {summary['masks']} with a mask (seed {seed})"
    )
    typer.echo(f"Pictures: {out / 'previews'}")
    typer.echo(f"Next: threefold train hematoma/mtl-cls-seg --cohort {out} --out RUN")


def _changes(settings: list[str]) -> dict[str, Any]:
    import yaml

    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"'{setting}': expected KEY=VALUE, for example noise=0.5.")
        try:
            changes[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(
                f"'{setting}': the value is not valid YAML; expected a number, a word or [low, high]."
            ) from None
    return changes


def _summary(cohort: Cohort, seed: int) -> dict[str, Any]:
    return {
        "cohort": str(cohort.folder),
        "seed": seed,
        "cases": len(cohort.cases),
        "patients": len({case.patient_id for case in cohort.cases}),
        "sites": len(cohort.sites),
        "positives": sum(case.label == cohort.spec.positive_class for case in cohort.cases),
        "masks": sum(case.mask is not None for case in cohort.cases),
    }
