"""A folder of predictions: a table, and a label map for each image on the image's own grid.

OUT/
  predictions.csv    one row per case; with a checksum file
  failed.csv         one row per input that could not be predicted, with the reason; absent if there is none
  passed_over.csv    one row per file of a folder that is no image, with what it is; absent if there is none
  masks/             predicted label maps
  disagreement/      how far an ensemble's members are apart at each voxel, where asked for
  dicom/             segmentation and report of each DICOM input, if asked for
  received/          images that were received from a PACS
  journal.jsonl      a log with one line per input, used to resume
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.checksums import remove_table, write_table
from threefold.csv_tables import table_text
from threefold.errors import ImageError, RunError
from threefold.evaluation.predictions import (
    CALIBRATED_PREFIX,
    PREDICTION_SET,
    SET_SEPARATOR,
    probability_column,
)
from threefold.file_names import printable
from threefold.images.geometry import Image
from threefold.images.writing import label_map_suffix, write_label_map, write_value_map
from threefold.inference.journal import Content, Journal
from threefold.inference.listing import Listing, PassedOver, Source
from threefold.inference.naming import MaskNames
from threefold.inference.out_of_distribution import OutOfDistribution
from threefold.interruption import undisturbed
from threefold.locks import alone_in
from threefold.partials import remove_abandoned
from threefold.paths import open_file
from threefold.run import make_folder, write_atomically

if TYPE_CHECKING:
    from threefold.interchange.dicom_results import DicomResults

DISAGREEMENT = "disagreement"
"""The folder of the maps of how far an ensemble's members are apart, and their column."""
RECEIVED = "received"
"""Folder within one of predictions for the images that were received from a PACS."""
WRITE_EVERY = 20.0
"""Seconds between updates of the tables while rows are added; longer if writing takes long."""


@dataclass(frozen=True)
class VolumeInterval:
    """The volume of a mask, and an interval that contains the true one in a stated share of cases.

    Attributes:
        value: of the predicted mask.
        low, high: of the interval; `high` None: no bound, there were too few validation cases.
        unit: mL; of a slice mm2; voxels or px where the image states no spacing.
    """

    value: float
    low: float
    high: float | None
    unit: str


@dataclass(frozen=True)
class Prediction:
    """The prediction of a run for one image.

    Attributes:
        case_id: the case's name; NAME#k for slice k of a volume predicted by a 2D network.
        probabilities: by class name; empty without classification, and for a blank slice.
        decision: the predicted class. With two classes and a threshold, the positive one if its probability
            reaches the run's threshold; otherwise the most probable class. None without probabilities.
        mask: uint8 labels on the image's own grid and axis order, 0 is background; None without segmentation.
        image: the input image.
        slice_index, volume: index and volume of a slice; None for other images.
        note: how an image larger than the network's grid was predicted; otherwise empty.
        remarks: unverified or unusual properties of the image (`cohorts.meaning`), and contradictions between
            decision and mask.
        topology: the aortic arch in the label map (arch, topology_class, agrees), if the structures have the
            required names; review a diagnosis that it contradicts.
        mask_file: file of the mask (for a slice, written with the volume's last slice); None without a
            folder.
        answers: other predictions by column: TASK.probability_FINDING, TASK.predicted and the like, and what
            the run's calibration says of them: TASK.calibrated_probability_FINDING, TASK.interval_low.
        masks: with several segmentation tasks, the labels of each (`mask` is then None).
        members: of an ensemble, how far its members are apart, by column (`inference.ensemble`).
        disagreement: the same at each voxel of the image's own grid, by segmentation task, if asked for.
        calibrated: the probabilities at the temperature fitted on the run's validation cases; empty without
            probabilities, and for a run without calibration.
        prediction_set: classes that contain the true one with the run's coverage, in new cases that are like
            the validation cases; empty as `calibrated`.
        volume_interval: of the mask; None without a mask or a calibration.
        out_of_distribution: whether the image is unlike the training images, and why; None for a blank slice.
    """

    case_id: str
    probabilities: Mapping[str, float]
    decision: str | None
    mask: NDArray[np.uint8] | None = field(repr=False)
    image: Image = field(repr=False)
    slice_index: int | None = None
    volume: Image | None = field(default=None, repr=False)
    note: str = ""
    remarks: tuple[str, ...] = ()
    topology: Mapping[str, str] = field(default_factory=dict)
    mask_file: Path | None = None
    answers: Mapping[str, Any] = field(default_factory=dict)
    masks: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict, repr=False)
    members: Mapping[str, float] = field(default_factory=dict)
    disagreement: Mapping[str, NDArray[np.float32]] = field(default_factory=dict, repr=False)
    calibrated: Mapping[str, float] = field(default_factory=dict)
    prediction_set: tuple[str, ...] = ()
    volume_interval: VolumeInterval | None = None
    out_of_distribution: OutOfDistribution | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes on the prediction."""
        return (*self.image.notes, *((self.note,) if self.note else ()), *self.remarks)


@dataclass
class _Unit:
    """An input under way: its results come in order, and are written when the last is there.

    Attributes:
        given, answered: images that went to the network, and that came back or failed.
        ended: no more will go.
        slices: masks of a volume by task (empty: the only one), until it is whole.
        predictions, maps: where DICOM objects are asked for, those of an image or volume until it is whole,
            its label maps by task.
    """

    source: Source
    stamp: str
    given: int = 0
    answered: int = 0
    ended: bool = False
    rows: list[Content] = field(default_factory=list)
    failed: list[Content] = field(default_factory=list)
    masks: dict[str, str] = field(default_factory=dict)
    slices: dict[str, dict[int, NDArray[Any]]] = field(default_factory=dict)
    broken: bool = False
    predictions: list[Prediction] = field(default_factory=list)
    maps: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


class PredictionFolder:
    """Writes predictions.csv, failed.csv and masks/, and knows what it holds already.

    Each input is written down when it is done, the tables now and then and at the end. An input that is done
    is not done again as long as its files have the same size and time of change, and its masks are there as
    they were written.
    """

    def __init__(
        self,
        path: Path,
        *,
        labels: Mapping[str, int],
        same: Mapping[str, Any],
        options: Mapping[str, Any],
        dicom: DicomResults | None = None,
    ) -> None:
        """Look at the folder; nothing is made.

        Args:
            path: is new, empty, or holds predictions of the same run, options and inputs.
            labels: number of labels beside the background, by segmentation task.
            same: further columns, the same for each row (run, version, threshold).
            options: whatever else decides what is predicted: inputs, images a pass, what to do with uneven
                series.
            dicom: makes DICOM objects of the results of DICOM inputs; None: none are written.

        Raises:
            RunError: there is something else in it.
        """
        self.path = path
        self._dicom = dicom
        self._labels, self._same = dict(labels), dict(same)
        self._head: Content = json.loads(
            json.dumps({"what": "threefold predict", **same, **options, "dicom": dicom and dicom.kind})
        )
        self._journal = Journal(path / "journal.jsonl")
        self._refuse_others()
        self._names = MaskNames(())
        self._sources: Sequence[Source] = ()
        self._passed = PassedOver()
        self._units: dict[int, _Unit] = {}
        self._order: deque[int] = deque()
        self._written, self._took = time.monotonic(), 0.0

    @contextmanager
    def opened(self, listing: Listing) -> Iterator[None]:
        """Hold the folder, alone, while predictions are added; the tables are written however this ends.

        Raises:
            RunError: another process predicts into it, or the disk refuses.
        """
        make_folder(self.path)
        with alone_in(self.path, f"{self.path}: another `threefold predict` is at work in it."):
            self._refuse_others()
            masks = self.path / "masks"
            apart = self.path / DISAGREEMENT
            of_tasks = (folder / task for folder in (masks, apart) for task in self._labels)
            for folder in (self.path, masks, apart, *of_tasks, self.path / "dicom"):
                remove_abandoned(folder)
            self._sources, self._passed = listing.sources, listing.passed
            self._names = MaskNames(source.name for source in listing.sources)
            self._journal.begin(self._head)
            whole = False
            try:
                yield
                whole = True
            finally:
                with undisturbed():
                    if whole:
                        self._settle()
                    self._write_tables()

    def begin(self, number: int) -> bool:
        """Take up an input, by its number; False where it is done already and unchanged."""
        source = self._sources[number]
        stamp = _stamp(source)
        if self._is_done(source, stamp):
            return False
        self._units[number] = _Unit(source, stamp)
        self._order.append(number)
        return True

    def give(self, number: int) -> None:
        """Count an image that goes to the network."""
        self._units[number].given += 1

    def end(self, number: int) -> None:
        """No more images of an input go to the network."""
        self._units[number].ended = True
        self._commit()

    def fail(
        self,
        number: int,
        case_id: str,
        image: str,
        error: str,
        *,
        answered: bool = False,
        slices: bool = False,
    ) -> bool:
        """Keep why an input, or a part of one, can't be predicted.

        Args:
            number: of the input.
            case_id, image: what fails.
            error: why.
            answered: it had gone to the network.
            slices: it is a slice of a volume, which fails as a whole.

        Returns:
            Whether it is news: of the slices of one volume the first alone is.
        """
        unit = self._units[number]
        news = not unit.broken
        if news:
            unit.failed.append({"case_id": printable(case_id), "image": printable(image), "error": error})
        unit.broken = unit.broken or slices
        unit.answered += answered
        self._commit()
        return news

    def add(self, number: int, prediction: Prediction) -> Prediction:
        """Write a prediction's mask and keep its row.

        Returns:
            The prediction, with its mask's file.

        Raises:
            ImageError: if the mask can't be written.
            RunError: if the journal can't be.
        """
        unit = self._units[number]
        mask = "" if prediction.mask is None else self._write_mask(unit, prediction, prediction.mask, "")
        further = {
            f"{task}.mask": self._write_mask(unit, prediction, labels, task)
            for task, labels in prediction.masks.items()
        }
        several = len(prediction.disagreement) > 1
        for task, values in prediction.disagreement.items():
            written = self._write_disagreement(unit, prediction, values, task if several else "")
            further[f"{task}.{DISAGREEMENT}" if several else DISAGREEMENT] = written
        if self._dicom is not None:
            prediction = self._write_dicom(unit, prediction, self._dicom)
        unit.rows.append(_row(prediction, mask, further))
        unit.answered += 1
        self._commit()
        if time.monotonic() - self._written > max(WRITE_EVERY, 20 * self._took):
            self._write_tables()
        return replace(prediction, mask_file=self.path / mask) if mask else prediction

    def rows(self) -> Iterator[Content]:
        """Yield what is known of each case that is done, in the order of the inputs."""
        for row in self._rows():
            yield {**row, "mask": str(self.path / row["mask"])} if row["mask"] else row

    def failures(self) -> Iterator[Content]:
        """Yield case_id, image and error of each failure, in the order of the inputs."""
        for _, entry in self._entries():
            yield from entry["failed"]

    def dicom_files(self) -> Iterator[Path]:
        """Yield the DICOM objects of the inputs, in their order."""
        for _, entry in self._entries():
            yield from (self.path / name for name in entry["masks"] if name.startswith("dicom/"))

    def _passed_over(self) -> Iterator[Content]:
        for reason, names in self._passed.names.items():
            yield from ({"file": name, "reason": reason} for name in names)

    def _rows(self) -> Iterator[Content]:
        for _, entry in self._entries():
            yield from entry["rows"]

    def _entries(self) -> Iterator[tuple[str, Content]]:
        return self._journal.entries(source.name for source in self._sources)

    def _refuse_others(self) -> None:
        if not self.path.exists():
            return
        found = self._journal.head() if self.path.is_dir() else None
        if found is None:
            if not self.path.is_dir() or any(
                one.name[0] != "." and one.name != RECEIVED for one in self.path.iterdir()
            ):
                raise RunError(
                    f"{self.path}: exists already and has no complete {self._journal.path.name} to resume; "
                    "predictions are never overwritten. Choose another --out."
                )
            return
        differing = [name for name, value in self._head.items() if found.get(name) != value]
        if differing:
            told = "; ".join(
                f"{name}: {_short(found.get(name))} there, {_short(self._head[name])} now"
                for name in differing
            )
            raise RunError(
                f"{self.path}: holds predictions made with other options or inputs ({told}), which are never "
                "overwritten. Repeat the original command to resume, or choose another --out."
            )

    def _is_done(self, source: Source, stamp: str) -> bool:
        entry = self._journal.read(source.name)
        if entry is None or entry["stamp"] != stamp or entry["failed"]:
            return False
        return all(_digest(self.path / name) == digest for name, digest in entry["masks"].items())

    def _commit(self) -> None:
        """Write down the inputs that are done, in their order."""
        while self._order:
            unit = self._units[self._order[0]]
            if not unit.ended or unit.answered < unit.given:
                return
            if unit.slices or unit.broken:  # a volume that isn't whole
                unit.rows.clear()
            if unit.failed and not unit.masks:  # one may lie there from before a kill
                several = len(self._labels) > 1
                stem = self._names.stem(unit.source.name)
                kinds = ("masks", DISAGREEMENT)
                tasks = [f"/{task}" for task in self._labels] if several else [""]
                for folder in (f"{kind}{task}" for kind in kinds for task in tasks):
                    for suffix in (".nii.gz", ".png"):
                        (self.path / folder / f"{stem}{suffix}").unlink(missing_ok=True)
                for kind in ("seg", "sr"):
                    (self.path / "dicom" / f"{stem}-{kind}.dcm").unlink(missing_ok=True)
            before = self._journal.read(unit.source.name)
            content = {"stamp": unit.stamp, "rows": unit.rows, "failed": unit.failed, "masks": unit.masks}
            self._journal.append(unit.source.name, content)
            self._remove_masks(before, unit.masks)
            del self._units[self._order.popleft()]

    def _settle(self) -> None:
        """Leave what belongs to the inputs, and nothing of inputs that are gone."""
        names = [source.name for source in self._sources]
        for gone in self._journal.places.keys() - set(names):
            self._remove_masks(self._journal.read(gone), ())
        self._journal.settle(names)

    def _remove_masks(self, entry: Content | None, kept: Iterable[str]) -> None:
        for name in () if entry is None else entry["masks"].keys() - set(kept):
            (self.path / name).unlink(missing_ok=True)

    def _write_tables(self) -> None:
        """Write the tables as far as they go, each in one step.

        Raises:
            RunError: if one can't be written; the rows are in the journal.
        """
        started = time.monotonic()
        try:
            self._write_table("predictions.csv", lambda: map(self._table_row, self._rows()))
            self._write_table("failed.csv", self.failures)
            self._write_table("passed_over.csv", self._passed_over)
        except RunError as error:
            raise RunError(
                f"{error} The rows of {len(self._journal.places)} input(s) that are done are kept in "
                f"{self._journal.path}: the same command resumes from there."
            ) from error
        self._written = time.monotonic()
        self._took = self._written - started

    def _write_table(self, name: str, rows: Callable[[], Iterator[Mapping[str, Any]]]) -> None:
        """Write a table of rows, which are gone through twice rather than kept."""
        widest: Mapping[str, Any] = {}
        found: dict[str, None] = {}
        for row in rows():
            widest = max(widest, row, key=len)  # whose columns are in their order
            found |= dict.fromkeys(row)
        columns = [*dict.fromkeys((*widest, *found))]
        if columns:
            lines = ([row.get(column) for column in columns] for row in rows())
            write_table(self.path / name, table_text(chain([columns], lines)))
        else:
            remove_table(self.path / name)

    def _table_row(self, row: Content) -> dict[str, Any]:
        cells: dict[str, Any] = {name: row[name] for name in ("case_id", "image", "slice")}
        cells |= {probability_column(name): value for name, value in row["probabilities"].items()}
        if row["decision"] is not None:
            cells["decision"] = row["decision"]
        for part in ("topology", "answers", "members", "trust"):
            cells |= row.get(part, {})
        if row["voxels"] is not None:
            cells |= {"mask_predicted_voxels": row["voxels"], "mask": row["mask"]}
        return {**cells, **self._same, "notes": "; ".join(row["notes"])}

    def _write_mask(self, unit: _Unit, prediction: Prediction, mask: NDArray[np.uint8], task: str) -> str:
        """Write a mask, or keep it until its volume is whole; return its path within the folder."""
        case_id, image = _whole_input(prediction)
        whole = _whole_array(unit, prediction, mask, task)
        if whole is None:
            return self._mask_path(case_id, image, task)
        return self._write_map(unit, case_id, whole, image, task)

    def _write_disagreement(
        self, unit: _Unit, prediction: Prediction, values: NDArray[np.float32], task: str
    ) -> str:
        """Write a map of how far an ensemble's members are apart, as `_write_mask` a mask."""
        case_id, image = _whole_input(prediction)
        name = f"{'/'.join(filter(None, (DISAGREEMENT, task)))}/{self._names.stem(case_id)}.nii.gz"
        whole = _whole_array(unit, prediction, values, f"{DISAGREEMENT} {task}")
        if whole is not None:
            make_folder((self.path / name).parent)
            write_value_map(self.path / name, whole, image)
            unit.masks[name] = _digest(self.path / name)
        return name

    def _write_dicom(self, unit: _Unit, prediction: Prediction, dicom: DicomResults) -> Prediction:
        """Write the DICOM objects of an image, or of a volume with its last slice.

        Where they can't be made, the prediction is kept: the input counts as failed, and is done again.
        """
        volume = prediction.volume
        unit.predictions.append(replace(prediction, mask=None, masks={}))
        if volume is not None and len(unit.predictions) < volume.array.shape[2]:
            return prediction
        case_id = prediction.case_id if volume is None else prediction.case_id.rpartition("#")[0]
        predictions, maps, unit.predictions, unit.maps = unit.predictions, unit.maps, [], {}
        image = prediction.image if volume is None else volume
        if image.facts.format != "dicom":
            return prediction
        try:
            objects = dicom.objects_of(image, maps, predictions)
        except ImageError as error:
            reason = f"no DICOM objects were written: {error}"
            unit.failed.append(
                {"case_id": printable(case_id), "image": printable(image.source), "error": reason}
            )
            return replace(prediction, remarks=(*prediction.remarks, reason))
        make_folder(self.path / "dicom")
        for ending, content in objects.items():
            name = f"dicom/{self._names.stem(case_id)}-{ending}.dcm"
            write_atomically(self.path / name, content)
            unit.masks[name] = _digest(self.path / name)
        return prediction

    def _write_map(
        self, unit: _Unit, case_id: str, labels: NDArray[np.uint8], image: Image, task: str
    ) -> str:
        name = self._mask_path(case_id, image, task)
        make_folder((self.path / name).parent)
        count = self._labels[task] if task else next(iter(self._labels.values()))
        write_label_map(self.path / name, labels, image, labels=count)
        if self._dicom is not None:
            unit.maps[task] = labels
        unit.masks[name] = _digest(self.path / name)
        return name

    def _mask_path(self, case_id: str, image: Image, task: str) -> str:
        folder = f"masks/{task}" if task else "masks"
        return f"{folder}/{self._names.stem(case_id)}{label_map_suffix(image)}"


def _whole_input(prediction: Prediction) -> tuple[str, Image]:
    """Return the id and the image of the input that a prediction is of: of a slice, its volume's."""
    if prediction.volume is None:
        return prediction.case_id, prediction.image
    return prediction.case_id.rpartition("#")[0], prediction.volume


def _whole_array(unit: _Unit, prediction: Prediction, array: NDArray[Any], what: str) -> NDArray[Any] | None:
    """Return an array of the whole input; of slices, (I, J, K) with the last one, and None until then."""
    volume, index = prediction.volume, prediction.slice_index
    if volume is None or index is None:
        return array
    slices = unit.slices.setdefault(what, {})
    slices[index] = array
    if len(slices) < volume.array.shape[2]:
        return None
    del unit.slices[what]
    return np.stack([slices[k] for k in range(len(slices))], axis=-1)


def _row(prediction: Prediction, mask: str, further: Mapping[str, str]) -> Content:
    return {
        "case_id": printable(prediction.case_id),
        "image": printable(prediction.image.source),
        "slice": prediction.slice_index,
        "probabilities": dict(prediction.probabilities),
        "decision": prediction.decision,
        "topology": dict(prediction.topology),
        "answers": {**prediction.answers, **further},
        "members": dict(prediction.members),
        "voxels": None if prediction.mask is None else int((prediction.mask > 0).sum()),
        "mask": mask or None,
        "notes": [*prediction.notes],
        "trust": _trust(prediction),
    }


def _trust(prediction: Prediction) -> Content:
    """Return how far a prediction can be trusted, as columns of the table."""
    found: Content = {f"{CALIBRATED_PREFIX}{name}": value for name, value in prediction.calibrated.items()}
    if prediction.prediction_set:
        found[PREDICTION_SET] = SET_SEPARATOR.join(prediction.prediction_set)
    if (volume := prediction.volume_interval) is not None:
        found |= {"mask_volume": volume.value, "mask_volume_unit": volume.unit}
        found |= {"mask_volume_low": volume.low, "mask_volume_high": volume.high}
    if prediction.out_of_distribution is not None:
        found |= prediction.out_of_distribution.columns()
    return found


def _stamp(source: Source) -> str:
    """Return what changes when an input does: size and time of change of its files, what is said of it."""
    digest = hashlib.sha256()
    try:
        if source.files:
            files = [source.path / name for name in source.files]
        else:
            paths = [Path(path) for _, path in source.channels] or [source.path]
            files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
        for path in files:
            state = path.stat()
            digest.update(f"{printable(path)} {state.st_size} {state.st_mtime_ns}\n".encode())
    except OSError as error:
        digest.update(str(error.errno).encode())
    if source.channels:
        digest.update(str([name for name, _ in source.channels]).encode())
    if source.cohort is not None:
        digest.update(f"{source.slice_index} {source.cohort.model_dump_json()}".encode())
    return digest.hexdigest()[:32]


def _digest(path: Path) -> str:
    """Return a file's SHA-256; empty where it can't be read."""
    try:
        with open_file(path) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
