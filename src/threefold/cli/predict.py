"""`threefold predict`: probabilities and masks of images, from a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from threefold.cli.options import AllowOutside, BatchSize, Device
from threefold.cli.progress import count, interruptible, progress_of

if TYPE_CHECKING:
    from threefold.errors import ThreefoldError
    from threefold.inference.listing import Source
    from threefold.inference.output import Prediction


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
    out: Annotated[
        Path, typer.Option(help="Folder for predictions.csv and masks: a new one, or one to go on with.")
    ],
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

    Each image is held against what the run was trained on (modality, unit, intensities, spacing, size). What
    is proven to be something else is refused; what can't be proven, and a mask that contradicts the decision,
    is in the column `notes`.

    With data.preprocessing.spacing an image larger than the network's grid is predicted whole: in one pass
    where its memory, estimated before, is free, else in overlapping windows; the column `notes` says which.

    An image that can't be predicted is reported, is listed in failed.csv, and the others are done. An
    interrupted prediction keeps the rows and masks of what was done, and the same command goes on with the
    rest; inputs that were changed, and those that failed, are done anew.

    Exit status: 0 all inputs are predicted; 1 some failed, or nothing could be done; 2 the command is wrong;
    130, 143 or 129 interrupted by Ctrl-C, SIGTERM or SIGHUP.

    Example: `threefold predict my-run scans/ patient7.nii.gz --out my-predictions`
    """
    from threefold.inference.listing import find_sources
    from threefold.inference.predictor import Predictor

    def fail(source: Source, error: ThreefoldError) -> None:
        print(f"error: {error}", file=sys.stderr, flush=True)

    predictor = Predictor.from_run(run, device=device)
    listing = find_sources(images, allow_outside=allow_outside)
    folder = predictor.folder(out, listing, batch_size=batch_size, uneven=uneven.value)
    for note in (*predictor.notes, *(f"passed over: {line}" for line in listing.passed.lines())):
        print(f"note: {note}", file=sys.stderr, flush=True)
    said = f"interrupted. What was done is in {out}; the same command goes on where it was."
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
            "out": str(out),
            "notes": list(predictor.notes),
            "passed_over": {
                kind: {"count": number, "first": listing.passed.names[kind]}
                for kind, number in listing.passed.counts.items()
            },
        }
        _print_json(content, {"predictions": map(_as_asked, folder.rows()), "failures": folder.failures()})
    else:
        done = _length(folder.rows())
        where = f" in {out / 'predictions.csv'}" if done else ""
        beside = f"; {count(passed, 'file')} passed over" if passed else ""
        typer.echo(f"{count(done, 'prediction')}{where}; {count(failed, 'input')} failed{beside}")
    raise typer.Exit(1 if failed else 0)


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
        for note in prediction.notes:
            if note not in self._said:
                self._said.add(note)
                print(f"note: {printable(self._source)}: {note}", file=sys.stderr, flush=True)


def _as_asked(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("case_id", "image", "slice", "probabilities", "decision", "mask", "notes")
    return {**{name: row[name] for name in names}, **row["topology"]}


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
