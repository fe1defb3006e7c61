"""`threefold predict`: probabilities and masks of new images, from a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device, Weights
from threefold.cli.progress import count, interruptible, progress_of
from threefold.errors import UsageError

if TYPE_CHECKING:
    from threefold.errors import ThreefoldError
    from threefold.inference.listing import Source
    from threefold.inference.output import Prediction
    from threefold.interchange.dicom_seg import SegmentationType
    from threefold.interchange.dicomweb import Pacs


class Computes(StrEnum):
    """What computes the network in place of PyTorch."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    OPENVINO_BF16 = "openvino-bf16"


class UnevenSeries(StrEnum):
    """What to do with a DICOM series whose slices are unevenly spaced or tilted."""

    REFUSE = "refuse"
    RESAMPLE = "resample"


def predict(
    run: Annotated[
        Path,
        typer.Argument(
            help="The run folder of `threefold train`, an ensemble (`threefold ensemble`), or a model "
            "(`threefold models list`)."
        ),
    ],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="Images, folders of images, DICOM series (one folder each) or cohorts."),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option(help="Folder for predictions.csv and masks: a new one, or one to resume.")
    ],
    channel: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: one channel of a single case, in place of IMAGES; repeat for each."),
    ] = None,
    weights: Weights = None,
    flips: Annotated[
        bool,
        typer.Option(
            "--flips",
            help="Average over mirror images, along the axes that the recipe's augmentation mirrors.",
        ),
    ] = False,
    disagreement_maps: Annotated[
        bool,
        typer.Option(
            "--disagreement-maps", help="Of an ensemble: write how far its members are apart at each voxel."
        ),
    ] = False,
    device: Device = "cpu",
    engine: Annotated[
        Computes | None,
        typer.Option(help="Compute a run's network with ONNX Runtime or OpenVINO instead of PyTorch."),
    ] = None,
    batch_size: BatchSize = 16,
    uneven: Annotated[
        UnevenSeries,
        typer.Option(help="Unevenly spaced or tilted DICOM series: refuse, or resample with a note."),
    ] = UnevenSeries.REFUSE,
    dicom: Annotated[
        bool,
        typer.Option("--dicom", help="Write a DICOM segmentation and report of each DICOM input."),
    ] = False,
    labelmap: Annotated[
        bool,
        typer.Option("--labelmap", help="With --dicom: one label per voxel, instead of a bit per segment."),
    ] = False,
    source: Annotated[
        str | None,
        typer.Option("--from", help="Address of a DICOMweb service that has the images, in place of IMAGES."),
    ] = None,
    study: Annotated[str | None, typer.Option(help="With --from: the StudyInstanceUID to predict.")] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Address of a DICOMweb service that gets the DICOM results.")
    ] = None,
    allow_outside: AllowOutside = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print predictions and failures as JSON on standard output.")
    ] = False,
) -> None:
    """Predict new images; no labels are needed.

    predictions.csv has one row per case: the probability of each class, the decision at the run's threshold,
    the run's version and the file of the mask. Masks are on each image's own grid (NIfTI, or PNG for a
    picture). A 2D network predicts each slice of a volume (NAME#k), and writes one mask file per volume.

    Beside the raw probabilities are calibrated ones, a prediction set and an interval of the mask's volume
    with the run's coverage, fitted on the validation cases. An image whose features or header are unlike the
    training images' has `yes` in the column `out_of_distribution`, with the reasons.

    Each image is compared with the training data (modality, unit, intensities, spacing, size). An image that
    provably differs is refused; unverified properties, and a mask that contradicts the decision, are recorded
    in the column `notes`.

    With data.preprocessing.spacing, an image larger than the network's grid is predicted in one pass if the
    estimated memory is free, else in overlapping windows; the column `notes` says which.

    An image that cannot be predicted is reported and listed in failed.csv, and the others continue. An
    interrupted prediction keeps its finished rows and masks; the same command resumes it and repeats changed
    and failed inputs.

    With --engine, the network is exported on first use, compared with PyTorch, and kept in RUN/engines;
    openvino-bf16 computes in bfloat16, which rounds probabilities.

    With --dicom, each DICOM input also gets a segmentation (SEG) and a measurement report (SR) in its own
    study, in OUT/dicom. --from and --study predict the images of a study in a PACS, which are kept in
    OUT/received; --to stores the segmentations and reports in a PACS.

    A network with several input channels accepts cohorts that declare them, or a single case whose channels
    are given with --channel.

    Exit status: 0 all inputs predicted; 1 some failed, or none could be predicted; 2 usage error; 130, 143 or
    129 interrupted by Ctrl-C, SIGTERM or SIGHUP.

    Example: `threefold predict my-run scans/ patient7.nii.gz --out my-predictions`

    Example: `threefold predict threefold/head-ct scans/ --out my-predictions`
    """
    from threefold.file_names import printable
    from threefold.inference.listing import Listing, PassedOver, find_sources
    from threefold.inference.output import RECEIVED
    from threefold.interchange.dicomweb import Pacs
    from threefold.runs.ensembles import load_predictor

    def fail(source: Source, error: ThreefoldError) -> None:
        print(f"error: {error}", file=sys.stderr, flush=True)

    named = _named_channels(channel or [])
    if bool(images) + bool(named) + (source is not None) != 1:
        raise UsageError(
            "name either images, folders and cohorts, or each --channel of one case, or a study in a PACS "
            "(--from and --study)."
        )
    if (source is None) != (study is None):
        raise UsageError("--from needs the --study to predict, and --study the address that it is --from.")
    dicom = dicom or to is not None
    if labelmap and not dicom:
        raise UsageError("--labelmap is a type of DICOM segmentation: add --dicom.")
    target = None if to is None else Pacs(to)
    predictor = load_predictor(
        run,
        device=device,
        weights=weights,
        flips=flips,
        maps=disagreement_maps,
        engine=None if engine is None else engine.value,
    )
    kind: SegmentationType | None = ("labelmap" if labelmap else "binary") if dicom else None
    options: dict[str, Any] = {"batch_size": batch_size, "uneven": uneven.value, "dicom": kind}
    lost: list[str] = []
    if source is not None and study is not None:
        images = [out / RECEIVED]
        predictor.folder(
            out, Listing((), PassedOver(), (printable(images[0].absolute()),)), **options
        )  # refuse another's before anything is received
        _receive(Pacs(source), study, images[0], lost)
    listing = find_sources(images or named, allow_outside=allow_outside)
    folder = predictor.folder(out, listing, **options)
    for note in (
        *predictor.notes,
        *predictor.limits,
        *(f"passed over: {line}" for line in listing.passed.lines()),
    ):
        print(f"note: {note}", file=sys.stderr, flush=True)
    said = f"interrupted. Finished predictions are in {out}; repeat the command to resume."
    with interruptible(said), progress_of("Predicting") as progress:
        notes = _Notes(predictor.notes)
        for prediction in predictor.predict(
            listing, folder, batch_size=batch_size, uneven=uneven.value, on_error=fail, progress=progress
        ):
            notes.say(prediction)
    failed = _length(folder.failures())
    passed = sum(listing.passed.counts.values())
    if as_json:
        content = {
            "run": predictor.run,
            "version": predictor.version,
            "threshold": predictor.threshold,
            "coverage": None if predictor.calibration is None else predictor.calibration.coverage,
            "out": str(out),
            "notes": [*predictor.notes, *predictor.limits],
            "passed_over": {
                kind: {"count": len(names), "first": names[:5]}
                for kind, names in listing.passed.names.items()
            },
        }
        _print_json(content, {"predictions": map(_as_asked, folder.rows()), "failures": folder.failures()})
    else:
        done = _length(folder.rows())
        where = f" in {out / 'predictions.csv'}" if done else ""
        beside = f"; {count(passed, 'file')} passed over" if passed else ""
        typer.echo(f"{count(done, 'prediction')}{where}; {count(failed, 'input')} failed{beside}")
    if target is not None:
        files = [*folder.dicom_files()]
        stored = target.send(files, on_failure=partial(_say_lost, lost))
        print(f"{stored} of {count(len(files), 'DICOM object')} stored at {target.name}", file=sys.stderr)
    raise typer.Exit(1 if failed or lost else 0)


def _receive(pacs: Pacs, study: str, into: Path, lost: list[str]) -> None:
    """Bring the images of a study into a folder."""
    said = f"interrupted. What was received is in {into}; repeat the command to resume."
    with interruptible(said), progress_of("Receiving") as progress:
        there = pacs.receive(study, into, on_failure=partial(_say_lost, lost), progress=progress)
    print(f"note: {count(there, 'instance')} of the study received from {pacs.name}", file=sys.stderr)


def _say_lost(lost: list[str], name: str, reason: str) -> None:
    lost.append(name)
    print(f"error: {name}: {reason}", file=sys.stderr, flush=True)


def _named_channels(options: list[str]) -> dict[str, str]:
    """Return the file of each --channel NAME=FILE.

    Raises:
        UsageError: an option is not NAME=FILE, or a name comes twice.
    """
    found: dict[str, str] = {}
    for option in options:
        name, _, path = option.partition("=")
        if not name or not path or name in found:
            raise UsageError(f"--channel {option}: expected NAME=FILE, each channel once.")
        found[name] = path
    return found


class _Notes:
    """Says what was noted of an image, once for all slices of a volume."""

    def __init__(self, said: Iterable[str]) -> None:
        self._always = set(said)
        self._source: Path | None = None
        self._said: set[str] = set()

    def say(self, prediction: Prediction) -> None:
        """Print the notes of a prediction that are new."""
        from threefold.file_names import printable

        if prediction.image.source != self._source:  # slices of a volume follow each other
            self._source, self._said = prediction.image.source, set(self._always)
        judged = prediction.out_of_distribution
        for note in dict.fromkeys((*prediction.notes, *(() if judged is None else judged.reasons))):
            if note not in self._said:
                self._said.add(note)
                print(f"note: {printable(self._source)}: {note}", file=sys.stderr, flush=True)


def _as_asked(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("case_id", "image", "slice", "probabilities", "decision", "mask", "notes")
    return {
        **{name: row[name] for name in names},
        **row["topology"],
        **row.get("members", {}),
        **row["answers"],
        **row.get("trust", {}),
    }


def _print_json(content: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """Print an object, and lists of any length one entry after the other."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False).removesuffix("\n}"), nl=False)
    for name, entries in lists.items():
        typer.echo(f",\n  {json.dumps(name)}: [", nl=False)
        for number, entry in enumerate(entries):
            typer.echo(f"{',' if number else ''}\n    {json.dumps(entry, ensure_ascii=False)}", nl=False)
        typer.echo("\n  ]", nl=False)
    typer.echo("\n}")


def _length(entries: Iterable[Any]) -> int:
    return sum(1 for _ in entries)
