"""`threefold import`: create cohorts from existing data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli.options import AllowOutside
from threefold.cli.progress import end_with_failures, progress_of
from threefold.errors import CohortError, UsageError
from threefold.validation import read_json

if TYPE_CHECKING:
    from threefold.cohorts.cohort import Cohort

importing = typer.Typer(
    help="Create a cohort from a table, a Decathlon-style data.json, DICOM series or a public data set, or "
    "merge cohorts. "
    "Example: `threefold import table scans.csv --meaning cohort.yaml --out my-cohort`",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(help="Folder for the new cohort.")]
Reference = Annotated[
    bool,
    typer.Option(
        "--reference",
        help="Refer to the original files instead of copying them (later commands need --allow-outside).",
    ),
]
OutsideSource = Annotated[
    bool,
    typer.Option("--allow-outside", help="Accept files outside the folder of the table."),
]


class Uneven(StrEnum):
    """What to do with a DICOM series whose slices are unevenly spaced or tilted."""

    REFUSE = "refuse"
    RESAMPLE = "resample"
    KEEP = "keep"


class Unknown(StrEnum):
    """What a table may not tell."""

    PATIENT = "patient"
    SITE = "site"


@importing.command("table")
def table(
    csv: Annotated[Path, typer.Argument(help="CSV with a header; its paths are relative to its folder.")],
    meaning: Annotated[Path, typer.Option(help="A cohort.yaml that describes the columns.")],
    out: Out,
    column: Annotated[
        list[str] | None, typer.Option(help="COLUMN=NAME: the column's name in your table; repeatable.")
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: the same value for every case; repeatable.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="VALUE=CLASS: the class that a value means; repeatable.")
    ] = None,
    unknown: Annotated[
        list[Unknown] | None,
        typer.Option(
            help="What the table does not tell: patient (each case then counts as one person, and every "
            "number says so), site; repeatable."
        ),
    ] = None,
    empty_masks_for: Annotated[
        list[str] | None,
        typer.Option(
            help="A class with nothing to find: its cases without a mask get an empty one; repeatable."
        ),
    ] = None,
    outside: Annotated[
        list[int] | None, typer.Option(help="A mask value that means outside, such as -32768; repeatable.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="Make grey pictures of coloured ones.")] = False,
    resample_masks: Annotated[
        bool,
        typer.Option(
            "--resample-masks", help="Bring label maps onto their images' grids (nearest neighbour)."
        ),
    ] = False,
    reference: Reference = False,
    allow_outside: OutsideSource = False,
) -> None:
    """Create a cohort from a CSV and the files it lists. Repairs are recorded in provenance.json.

    Example: `threefold import table scans.csv --meaning cohort.yaml --out my-cohort --column image=file
    --constant site=north --label 1=haemorrhage --label 0=none`
    """
    from threefold.cohorts.cohort import CohortSpec
    from threefold.cohorts.importers import import_table
    from threefold.cohorts.repairs import Repairs
    from threefold.validation import parse_spec, read_yaml

    spec = parse_spec(CohortSpec, read_yaml(meaning, CohortError), where=str(meaning), error=CohortError)
    if outside:
        if spec.mask is None:
            raise UsageError(f"--outside: {meaning} has no mask. Add its name and values.")
        values = {**spec.mask.model_dump(), "outside": tuple(dict.fromkeys((*spec.mask.outside, *outside)))}
        mask = parse_spec(type(spec.mask), values, where=f"{meaning}: mask", error=CohortError)
        spec = spec.model_copy(update={"mask": mask})
    with progress_of("Importing cases") as progress:
        cohort = import_table(
            csv,
            out,
            spec,
            columns=_pairs(column, "--column"),
            constants=_pairs(constant, "--constant"),
            labels=_pairs(label, "--label"),
            unknown=[each.value for each in unknown or []],
            empty_masks_for=empty_masks_for or [],
            repairs=Repairs(grey=grey, resample_masks=resample_masks),
            copy=not reference,
            allow_outside=allow_outside,
            progress=progress,
        )
    _say(cohort)


@importing.command("decathlon")
def decathlon(
    source: Annotated[Path, typer.Argument(help="The JSON file, or a folder with data.json.")],
    out: Out,
    name: Annotated[
        list[str] | None,
        typer.Option("--class", help="Name of diagnosis 0, then of 1, ...; required if the file has none."),
    ] = None,
    site: Annotated[
        str | None, typer.Option(help="Site of entries without one. [default: the dataset's name]")
    ] = None,
    patient_per_image: Annotated[
        bool, typer.Option("--patient-per-image", help="Treat each image without patient_id as one patient.")
    ] = False,
    reference: Reference = False,
    allow_outside: OutsideSource = False,
) -> None:
    """Create a cohort from a dataset file of the published aortic-arch implementation (lists of image, mask,
    LP and label).

    Example: `threefold import decathlon data.json --out my-cohort --class CoA --class RAA --class DAA
    --patient-per-image`
    """
    from threefold.cohorts.decathlon import import_decathlon

    with progress_of("Importing cases") as progress:
        cohort = import_decathlon(
            source,
            out,
            classes=name or (),
            site=site,
            patient_per_image=patient_per_image,
            copy=not reference,
            allow_outside=allow_outside,
            progress=progress,
        )
    _say(cohort)


class Modality(StrEnum):
    """What made the images."""

    CT = "ct"
    MRI = "mri"
    PHOTO = "photo"


@importing.command("nnunet")
def nnunet(
    source: Annotated[Path, typer.Argument(help="A raw data set of nnU-Net, with dataset.json.")],
    out: Out,
    site: Annotated[str | None, typer.Option(help="Name of the hospital. [default: not known]")] = None,
    modality: Annotated[
        Modality | None, typer.Option(help="What made the images, if the channels' names do not say it.")
    ] = None,
    reference: Reference = False,
) -> None:
    """Create a cohort from a raw data set of nnU-Net (dataset.json, imagesTr, labelsTr).

    One label becomes the target mask, several become structures, and regions become a mask each. nnU-Net does
    not record patients, so each case counts as one, and every number says so; a data set of `threefold export
    nnunet` restores patients, hospitals and diagnoses.

    Example: `threefold import nnunet nnUNet_raw/Dataset004_Hippocampus --out hippocampus`
    """
    from threefold.cohorts.nnunet import import_nnunet

    with progress_of("Importing cases") as progress:
        cohort = import_nnunet(
            source,
            out,
            site=site,
            modality=None if modality is None else modality.value,
            copy=not reference,
            progress=progress,
        )
    _say(cohort)


@importing.command("bids")
def bids(
    source: Annotated[Path, typer.Argument(help="A BIDS folder, with dataset_description.json.")],
    out: Out,
    suffix: Annotated[
        list[str] | None,
        typer.Option(
            help="Suffix of the images, for example T2w; repeat for channels. [default: the only one]"
        ),
    ] = None,
    masks: Annotated[
        str | None, typer.Option(help="Which masks, for example desc-lesion. [default: the only ones]")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column of participants.tsv that is the diagnosis.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Name of the hospital. [default: the column site]")] = None,
    reference: Reference = False,
) -> None:
    """Create a cohort from a folder in the Brain Imaging Data Structure (BIDS).

    A participant is a patient. Columns of participants.tsv and what the JSON files say of the scanner become
    columns; masks and label maps are found in the derivatives.

    Example: `threefold import bids ds000001 --suffix T1w --label group --out my-cohort`
    """
    from threefold.cohorts.bids import import_bids

    with progress_of("Importing cases") as progress:
        cohort = import_bids(
            source,
            out,
            suffixes=suffix or (),
            masks=masks,
            label=label,
            site=site,
            copy=not reference,
            progress=progress,
        )
    _say(cohort)


@importing.command("ct-ich")
def ct_ich(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Folder with ct_scans, masks and the diagnoses, or with slices.csv and pictures."
        ),
    ],
    out: Out,
    site: Annotated[str, typer.Option(help="Name of the hospital.")] = "ct-ich",
    reference: Reference = False,
) -> None:
    """Create a cohort from CT-ICH: the scans published on PhysioNet, or pictures in a brain window.

    Pictures are converted back to HU and rewritten, so --reference is refused for them.

    Example: `threefold import ct-ich ct-ich-1.3.1 --out ct-ich-cohort`
    """
    from threefold.cohorts.public.ct_ich import import_ct_ich

    with progress_of("Importing slices") as progress:
        cohort = import_ct_ich(folder, out, site=site, copy=not reference, progress=progress)
    _say(cohort)


@importing.command("bhsd")
def bhsd(
    folder: Annotated[Path, typer.Argument(help="Folder with label_192 (and unlabel_2000).")],
    out: Out,
    slices: Annotated[
        bool, typer.Option("--slices", help="Make each slice a case, not each volume.")
    ] = False,
    reference: Reference = False,
) -> None:
    """Create a cohort from BHSD: head-CT volumes with five kinds of segmented haemorrhage.

    Example: `threefold import bhsd BHSD --out bhsd-cohort`
    """
    from threefold.cohorts.public.bhsd import import_bhsd

    with progress_of("Importing volumes") as progress:
        cohort = import_bhsd(
            folder, out, dimensions=2 if slices else 3, copy=not reference, progress=progress
        )
    _say(cohort)


@importing.command("cq500")
def cq500(
    folder: Annotated[Path, typer.Argument(help="Folder with reads.csv and the scans.")],
    out: Out,
    thin: Annotated[bool, typer.Option("--thin", help="Use the thin-slice series.")] = False,
    reference: Reference = False,
) -> None:
    """Create a cohort from CQ500: head-CT scans read by three radiologists.

    Example: `threefold import cq500 cq500 --out cq500-cohort --reference`
    """
    from threefold.cohorts.public.cq500 import import_cq500

    with progress_of("Importing scans") as progress:
        cohort = import_cq500(folder, out, thin=thin, copy=not reference, progress=progress)
    _say(cohort)


@importing.command("rsna")
def rsna(
    folder: Annotated[Path, typer.Argument(help="Folder with stage_2_train.csv and stage_2_train.")],
    out: Out,
    patients: Annotated[int | None, typer.Option(min=1, help="Number of patients. [default: all]")] = None,
    reference: Reference = False,
) -> None:
    """Create a cohort from the RSNA 2019 haemorrhage challenge: slices with labels, grouped by patient.

    Example: `threefold import rsna rsna-2019 --out rsna-cohort --patients 500 --reference`
    """
    from threefold.cohorts.public.rsna import import_rsna

    with progress_of("Reading headers") as progress:
        cohort = import_rsna(folder, out, patients=patients, copy=not reference, progress=progress)
    _say(cohort)


@importing.command("waterbirds")
def waterbirds(
    folder: Annotated[Path, typer.Argument(help="Folder with metadata.csv and the photographs.")],
    out: Out,
    segmentations: Annotated[
        Path | None, typer.Option(help="Folder with the segmentations of CUB-200-2011, used as masks.")
    ] = None,
) -> None:
    """Create a cohort from Waterbirds: birds on land and water, in grey, with the published split.

    Example: `threefold import waterbirds waterbird_complete95_forest2water2 --out waterbirds`
    """
    from threefold.cohorts.public.waterbirds import import_waterbirds

    with progress_of("Importing photographs") as progress:
        cohort = import_waterbirds(folder, out, segmentations=segmentations, progress=progress)
    _say(cohort)


@importing.command("dicom")
def dicom(
    folder: Annotated[Path, typer.Argument(help="Folder with DICOM series, of one patient or of many.")],
    out: Out,
    meaning: Annotated[Path, typer.Option(help="A cohort.yaml that describes the new cohort.")],
    site: Annotated[
        str | None, typer.Option(help="Name of the hospital. [default: the headers' InstitutionName]")
    ] = None,
    patient: Annotated[
        str | None, typer.Option(help="Pseudonym of the only patient. [default: the headers' PatientID]")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="A secret: with it, a patient has the same pseudonym in every import."),
    ] = None,
    keep_identifiers: Annotated[
        bool, typer.Option("--keep-identifiers", help="Keep ids and names of the headers as they are.")
    ] = False,
    label: Annotated[str | None, typer.Option(help="Class of every case.")] = None,
    uneven: Annotated[
        Uneven,
        typer.Option(help="Uneven or tilted slices: refuse, resample to an even grid, or keep as scanned."),
    ] = Uneven.REFUSE,
) -> None:
    """Create a cohort from DICOM series: slices, or one volume per series (`dimensions`).

    Patients, sites and acquisition come from the headers. Ids become pseudonyms (a keyed hash) and names are
    left out, unless you pass --keep-identifiers.

    A series with an unreadable file is skipped as a whole and reported; the exit status is then 1.

    Example: `threefold import dicom export/ --meaning cohort.yaml --key-file secret --out my-cohort`
    """
    from threefold.cohorts.cohort import CohortSpec
    from threefold.cohorts.dicom_import import Identity, import_dicom
    from threefold.validation import parse_spec, read_yaml

    spec = parse_spec(CohortSpec, read_yaml(meaning, CohortError), where=str(meaning), error=CohortError)
    identity = Identity(patient, site, keep_identifiers)
    if key_file is not None:
        identity = replace(identity, key=_secret(key_file))
    with progress_of("Importing series") as progress:
        cohort = import_dicom(
            folder,
            out,
            spec=spec,
            identity=identity,
            label=label,
            uneven=uneven.value,
            progress=progress,
        )
    _say(cohort)


@importing.command("merge")
def merge(
    cohorts: Annotated[list[Path], typer.Argument(help="Two or more cohort folders.")],
    out: Out,
    name: Annotated[str | None, typer.Option(help="Name of the new cohort.")] = None,
    prefix: Annotated[
        bool, typer.Option("--prefix", help="Put each cohort's name before its case and patient ids.")
    ] = False,
    reference: Reference = False,
    allow_outside: AllowOutside = False,
) -> None:
    """Merge cohorts, for example one per hospital; sites keep their names.

    Example: `threefold import merge north south --out both`
    """
    from threefold.cohorts.cohort import read_cohort
    from threefold.cohorts.merging import merge_cohorts

    parts = [read_cohort(folder, allow_outside=allow_outside) for folder in cohorts]
    with progress_of("Merging cases") as progress:
        cohort = merge_cohorts(parts, out, name=name, prefix=prefix, copy=not reference, progress=progress)
    _say(cohort)


def _secret(path: Path) -> bytes:
    """Return the content of a key file.

    Raises:
        UsageError: it can't be read, or is too short to be a secret.
    """
    try:
        content = path.read_bytes().strip()
    except OSError as error:
        raise UsageError(f"--key-file {path}: can't be read ({error.strerror}). Correct its path.") from error
    if len(content) < 16:
        raise UsageError(
            f"--key-file {path}: holds {len(content)} bytes; expected 16 or more that nobody can guess, for "
            "example of `openssl rand -hex 32`."
        )
    return content


def _pairs(values: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not name or not equals or not rest:
            raise UsageError(f"{option} {value}: expected NAME=VALUE.")
        pairs[name] = rest
    return pairs


def _say(cohort: Cohort) -> None:
    """Report the new cohort and its failed cases; with failures, the exit status is 1."""
    patients = len({case.patient_id for case in cohort.cases})
    typer.echo(f"{cohort.folder}: {len(cohort.cases)} cases of {patients} patients")
    provenance = read_json(cohort.folder / "provenance.json", CohortError, "Import the cohort again.")
    left_out = provenance.get("left out", ())
    if left_out:
        typer.echo(f"Skipped: {len(left_out)}; provenance.json lists them with reasons.")
    typer.echo(f"Next: threefold check {cohort.folder}")
    end_with_failures(cohort.folder)
