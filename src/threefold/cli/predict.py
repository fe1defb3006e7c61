"""`threefold predict`: probabilities and masks of images, from a run."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device
from threefold.cli.progress import count, progress_of

if TYPE_CHECKING:
    from threefold.errors import ImageError
    from threefold.inference.output import Prediction
    from threefold.inference.sources import Source


class UnevenSeries(StrEnum):
    """What to do with a DICOM series whose slices are unevenly spaced or tilted."""

    REFUSE = "refuse"
    RESAMPLE = "resample"


def predict(
    run: Annotated[Path, typer.Argument(help="The run's folder, as `threefold train` left it.")],
    images: Annotated[
        list[Path],
        typer.Argument(help="Images, folders of images, DICOM series (a folder each) or cohorts."),
    ],
    out: Annotated[Path, typer.Option(help="New folder for predictions.csv and masks.")],
    device: Device = "cpu",
    batch_size: BatchSize = 16,
    uneven: Annotated[
        UnevenSeries,
        typer.Option(
            help="DICOM series that are unevenly spaced or tilted: refuse, or resample and note it."
        ),
    ] = UnevenSeries.REFUSE,
    allow_outside: AllowOutside = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print predictions and failures as JSON on standard output.")
    ] = False,
) -> None:
    """Predict images in one pass; no labels are needed.

    predictions.csv gets a row a case: the probability of each class, the decision by the run's threshold, the
    run's version and the mask's file. Masks lie on each image's own grid (NIfTI, or PNG for a picture). A 2D
    network predicts each slice of a volume (NAME#k), and the volume's mask is one file.

    With data.preprocessing.spacing an image larger than the network's grid is predicted whole: in one pass
    where its memory, estimated before, is free, else in overlapping windows; the column `notes` says which.

    An image that can't be read is reported and the others are done; the exit status is then 1. An interrupted
    prediction leaves the rows and masks of what was done.

    Example: `threefold predict my-run scans/ patient7.nii.gz --out my-predictions`
    """
    from threefold.inference.predictor import Predictor

    failures: list[dict[str, str]] = []

    def fail(source: Source, error: ImageError) -> None:
        failures.append({"case_id": source.name, "image": str(source.path), "error": str(error)})
        print(f"error: {error}", file=sys.stderr, flush=True)

    predictor = Predictor.from_run(run, device=device)
    with progress_of("Predicting") as progress:
        predictions = predictor.predict(
            images,
            out,
            batch_size=batch_size,
            uneven=uneven.value,
            allow_outside=allow_outside,
            on_error=fail,
            progress=progress,
        )
        rows = []
        noted: set[tuple[Path, str]] = set()
        for prediction in predictions:
            rows.append(_row(prediction))
            _say_notes(prediction, noted)
    if as_json:
        content = {
            "run": predictor.run,
            "version": predictor.version,
            "threshold": predictor.threshold,
            "out": str(out),
            "predictions": rows,
            "failures": failures,
        }
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        where = f" in {out / 'predictions.csv'}" if rows else ""
        typer.echo(f"{count(len(rows), 'prediction')}{where}; {count(len(failures), 'input')} failed")
    raise typer.Exit(1 if failures else 0)


def _row(prediction: Prediction) -> dict[str, object]:
    # Only the numbers are kept: the masks and images of a long list would fill the memory.
    return {
        "case_id": prediction.case_id,
        "image": str(prediction.image.source),
        "slice": prediction.slice_index,
        "probabilities": dict(prediction.probabilities),
        "decision": prediction.decision,
        **prediction.topology,
        "mask": None if prediction.mask_file is None else str(prediction.mask_file),
        "notes": _notes(prediction),
    }


def _notes(prediction: Prediction) -> list[str]:
    return [*prediction.image.notes, *([prediction.note] if prediction.note else [])]


def _say_notes(prediction: Prediction, said: set[tuple[Path, str]]) -> None:
    """Print what was noted of an image, once for all slices of a volume."""
    for note in _notes(prediction):
        key = (prediction.image.source, note)
        if key not in said:
            said.add(key)
            print(f"note: {key[0]}: {note}", file=sys.stderr, flush=True)
