"""nnU-Net's raw data sets (DatasetNNN_NAME) as cohorts, and cohorts as such data sets.

    dataset.json                    channel_names, labels, file_ending
    imagesTr/CASE_0000.nii.gz       a case's channels, 0000, 0001, ...
    labelsTr/CASE.nii.gz            its label map
    imagesTs/, labelsTs/            cases for testing, if any

nnU-Net knows one label map a case, and neither patients, hospitals nor diagnoses. Those stand in dataset.json
under a key of our own, which it ignores, and further label maps in a folder of our own, so that a cohort that
is exported and imported again is the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from threefold.cohorts.cohort import UNKNOWN, Case, Cohort, CohortSpec
from threefold.cohorts.failures import Failures, sparing_others
from threefold.cohorts.splits import folds_of_patients
from threefold.cohorts.staging import axes_of, ending, file_columns, finished, row_of, staging
from threefold.cohorts.targets import read_label_map_of
from threefold.core.targets import DENSE, LabelsTarget, MaskTarget
from threefold.errors import CohortError, ImageError, some
from threefold.file_names import case_stem
from threefold.images.reading import read_image
from threefold.images.writing import write_label_map, write_nifti, write_png
from threefold.run import copy_new, whole_folder, write_new
from threefold.validation import parse_spec, read_json

EXTRA = "threefold"
"""Key of dataset.json, and folder, of what nnU-Net has no place for."""
FORMAT = 1
_NAME = re.compile(r"Dataset\d{3}_\w+")
_PARTS = {"Tr": "training", "Ts": "test"}
_PART = "nnunet_part"
_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")
Modality = Literal["ct", "mri", "photo"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        training, test: numbers of cases.
        folds: that splits_final.json holds.
        failed: why a case was left out, by its id.
    """

    training: int
    test: int
    folds: int
    failed: Failures = field(default_factory=dict)


@dataclass(frozen=True)
class _Entry:
    """A case of a data set: its images in the order of its channels."""

    stem: str
    part: Literal["Tr", "Ts"]
    images: tuple[Path, ...]
    label: Path | None


def import_nnunet(
    source: Path,
    out: Path,
    *,
    site: str | None = None,
    modality: Modality | None = None,
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of one of nnU-Net's raw data sets.

    One label becomes the target `mask`, several `structures`, and labels that are regions (lists of values) a
    mask each. Patients are not known to nnU-Net: cohort.yaml says so, and each case counts as one, but in a
    data set that `export_nnunet` wrote.

    Args:
        source: the folder with dataset.json.
        out: the new folder.
        site: the hospital of all cases; None: not known.
        modality: of the images; None: as the channels' names say.
        copy: copy the files; else the table refers to them where they are.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: dataset.json is not as nnU-Net has it, its channels do not say what they are, or no case
            can be used.
    """
    source = Path(source)
    path = source / "dataset.json"
    content = read_json(path, CohortError, "Correct the file there.")
    entries = list(_entries(source, content, path))
    if not entries:
        raise CohortError(f"{source}: no case. Expected images such as imagesTr/CASE_0000.nii.gz.")
    own = content.get(EXTRA)
    known = own if isinstance(own, dict) else {}
    if known:
        spec = parse_spec(
            CohortSpec, known.get("cohort") or {}, where=f"{path}: {EXTRA}.cohort", error=CohortError
        )
        columns: tuple[str, ...] = (str(known.get("target")),)
    else:
        spec, columns = _spec(content, entries, path, modality, site)
    rows: list[dict[str, Any]] = []
    with staging(out, source) as stage:
        for done, entry in enumerate(entries, start=1):
            told = dict((known.get("cases") or {}).get(entry.stem) or {})
            row: dict[str, Any] = {"case_id": entry.stem, "patient_id": entry.stem, "site": site or UNKNOWN}
            row |= told.pop("columns", {}) if known else {_PART: _PARTS[entry.part]}
            with stage.sparing(row["case_id"]):
                files = dict(zip(spec.image_columns, entry.images, strict=True))
                files |= dict.fromkeys(columns, entry.label) if entry.label is not None else {}
                files |= {column: source / file for column, file in told.get("files", {}).items()}
                for column, file in files.items():
                    row[column] = stage.place(file, column, row["case_id"], copy=copy)
                rows.append(row)
            if progress is not None:
                progress(done, len(entries))
        stage.finish(spec, rows, {"source": "an nnU-Net raw data set"}, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _entries(source: Path, content: Mapping[str, Any], path: Path) -> Iterator[_Entry]:
    """Yield the cases, those for training first."""
    channels, suffix = len(_channels(content, path)), str(content.get("file_ending", ".nii.gz"))
    listed = content.get("dataset")
    if isinstance(listed, dict):  # images that lie elsewhere
        for stem, files in listed.items():
            yield _Entry(stem, "Tr", tuple(source / one for one in files["images"]), source / files["label"])
        return
    for part in ("Tr", "Ts"):
        folder = source / f"images{part}"
        for first in sorted(folder.glob(f"*_0000{suffix}")):
            stem = first.name.removesuffix(f"_0000{suffix}")
            label = source / f"labels{part}" / f"{stem}{suffix}"
            images = tuple(folder / f"{stem}_{number:04d}{suffix}" for number in range(channels))
            there = label if part == "Tr" or label.exists() else None
            yield _Entry(stem, "Tr" if part == "Tr" else "Ts", images, there)


def _channels(content: Mapping[str, Any], path: Path) -> list[str]:
    """Return the channels' names in order; `modality` is what the first version of nnU-Net called them."""
    found = content.get("channel_names", content.get("modality"))
    if not isinstance(found, dict) or sorted(map(str, found)) != sorted(map(str, range(len(found)))):
        raise CohortError(
            f'{path}: key channel_names: expected names of "0", "1", ... without a gap, found {found!r:.80}.'
        )
    by_number = {int(number): str(name) for number, name in found.items()}
    return [by_number[number] for number in range(len(by_number))]


def _spec(
    content: Mapping[str, Any],
    entries: Sequence[_Entry],
    path: Path,
    modality: Modality | None,
    site: str | None,
) -> tuple[CohortSpec, tuple[str, ...]]:
    """Return what a data set's numbers mean, and the columns that its label map is in."""
    names = _channels(content, path)
    modality = modality or _modality(names, entries)
    if modality is None:
        raise CohortError(
            f"{path}: the channels {', '.join(names)} do not say what the images are. Say it: --modality ct, "
            "mri or photo."
        )
    labels, columns = _labels(content, path)
    described = {
        "name": str(content.get("name") or path.absolute().parent.name),
        "modality": modality,
        "dimensions": axes_of(entry.images[0] for entry in entries),
        "intensity": {"unit": {"ct": "HU", "mri": "arbitrary", "photo": "grey"}[modality]},
        "unknown": ("patient",) if site else ("patient", "site"),
        "columns": {_PART: "training or test, in nnU-Net's data set"},
        **labels,
    }
    if len(names) > 1:
        distinct = names if len({*names}) == len(names) else [f"channel_{n}" for n in range(len(names))]
        described["channels"] = {name: f"image_{name}" for name in distinct}
    return parse_spec(CohortSpec, described, where=str(path), error=CohortError), columns


def _modality(names: Sequence[str], entries: Sequence[_Entry]) -> Modality | None:
    said = [name.lower() for name in names]
    if all(name == "ct" for name in said):
        return "ct"
    if all(name.startswith(("mr", "t1", "t2", "flair", "adc", "dwi", "pd")) for name in said):
        return "mri"
    return "photo" if ending(entries[0].images[0]) in _PICTURES else None


def _labels(content: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the keys of cohort.yaml that name the labels, and the columns of the label map."""
    found = content.get("labels")
    if not isinstance(found, dict) or not found:
        raise CohortError(f"{path}: key labels: expected a number for each name, found {found!r:.80}.")
    if all(isinstance(value, str) for value in found.values()):  # the first version: names by number
        found = {str(name): number for number, name in found.items()}
    try:
        values = {
            str(name): tuple(map(int, value)) if isinstance(value, list) else (int(value),)
            for name, value in found.items()
        }
    except (TypeError, ValueError):
        raise CohortError(f"{path}: key labels: expected whole numbers, found {found!r:.80}.") from None
    if "ignore" in values:
        raise CohortError(
            f"{path}: the label 'ignore' has no counterpart: voxels are inside or outside here. Export the "
            "cases without such voxels, or set them to the background."
        )
    inside = {name: value for name, value in values.items() if value != (0,)}
    every = sorted({one for value in inside.values() for one in value})
    if any(len(value) > 1 for value in inside.values()):
        targets = {
            name: {"kind": "mask", "name": name, "values": value, "outside": _others(every, value)}
            for name, value in inside.items()
        }
        return {"targets": targets}, tuple(targets)
    if len(inside) == 1:
        ((name, value),) = inside.items()
        return {"mask": {"name": name, "values": value}}, ("mask",)
    if every != [*range(1, len(inside) + 1)]:
        raise CohortError(f"{path}: key labels: expected 1, 2, ... without a gap, found {every}.")
    return {"structures": sorted(inside, key=inside.__getitem__)}, ("structures",)


def _others(every: Sequence[int], inside: Sequence[int]) -> list[int]:
    return [0, *(one for one in every if one not in inside)]


def export_nnunet(
    cohort: Cohort,
    out: Path,
    *,
    target: str | None = None,
    folds: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Exported:
    """Write a cohort as one of nnU-Net's raw data sets.

    Cases of the test part go to imagesTs, and so do those without a label map, which nnU-Net can't train on.
    splits_final.json divides the others into folds by patient; nnU-Net's own folds divide cases.

    Args:
        cohort: of volumes, or of pictures.
        out: a new folder, named DatasetNNN_NAME.
        target: the mask or the structures to segment; None: the only one.
        folds: of splits_final.json, fewer where there are fewer patients.
        seed: of the folds.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: the name is not nnU-Net's, the target does not exist or is one of several, cases are
            slices of volumes, or the folder can't be made.
    """
    out = Path(out)
    if not _NAME.fullmatch(out.name):
        raise CohortError(f"{out}: nnU-Net takes names such as Dataset501_Hearts. Name the folder so.")
    spec, target = cohort.spec, _target(cohort, target)
    slices = [case.case_id for case in cohort.cases if case.slice_index is not None]
    if slices:
        raise CohortError(
            f"{cohort.folder}: {len(slices)} cases are slices of volumes, which nnU-Net does not know: "
            f"{some(slices, 5)}. Write the slices as files of their own, or export the volumes."
        )
    pictures = all(ending(path) == ".png" for case in cohort.cases for path in case.images.values())
    suffix = ".png" if pictures else ".nii.gz"
    told: dict[str, Any] = {}
    trained: list[Case] = []
    failed: Failures = {}
    with whole_folder(out, CohortError) as beside:
        for done, case in enumerate(cohort.cases, start=1):
            part = "Ts" if case.split == "test" or target not in case.targets else "Tr"
            with sparing_others(failed, case.case_id):
                told[case_stem(case.case_id)] = _write_case(case, spec, target, part, beside, suffix)
                if part == "Tr":
                    trained.append(case)
            if progress is not None:
                progress(done, len(cohort.cases))
        if not told:
            raise CohortError(f"{cohort.folder}: no case can be written: {next(iter(failed.values()))}")
        divided = _folds(replace(cohort, cases=tuple(trained)), folds, seed)
        if divided:
            write_new(beside / "splits_final.json", json.dumps(divided, indent=1) + "\n")
        content = _dataset(spec, target, suffix, len(trained), told)
        write_new(beside / "dataset.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return Exported(len(trained), len(told) - len(trained), len(divided), failed)


def _target(cohort: Cohort, asked: str | None) -> str:
    dense = [name for name, one in cohort.spec.all_targets.items() if one.kind in DENSE]
    if asked in dense or (asked is None and len(dense) == 1):
        return asked or dense[0]
    there = ", ".join(dense) or "none"
    raise CohortError(
        f"{cohort.folder}: expected one mask or label map to segment, found {asked or there}. "
        + (f"Name one of {there} (--target)." if dense else "Add a mask or structures to cohort.yaml.")
    )


def _images(case: Case, spec: CohortSpec) -> list[Path]:
    """Return the file of each channel in the network's order.

    Raises:
        ImageError: a channel is missing.
    """
    if not spec.channels:
        return [case.image]
    missing = [name for name in spec.channels if name not in case.channels]
    if missing:
        raise ImageError(f"channel {missing[0]} is missing; nnU-Net takes cases with all channels only.")
    return [case.channels[name] for name in spec.channels]


def _write_case(
    case: Case, spec: CohortSpec, target: str, part: str, folder: Path, suffix: str
) -> dict[str, Any]:
    """Write a case's files; return what dataset.json says of it under our key."""
    stem = case_stem(case.case_id)
    for number, path in enumerate(_images(case, spec)):
        into = folder / f"images{part}" / f"{stem}_{number:04d}{suffix}"
        into.parent.mkdir(exist_ok=True)
        if path.is_file() and path.name.endswith(suffix):
            copy_new(path, into)
            continue
        image = read_image(path, spacing=spec.spacing)
        write_nifti(into, image.array, image.affine, place=image.stored_place)
    if target in case.targets:
        image = read_image(case.image, spacing=spec.spacing)
        labels = read_label_map_of(target, case.targets[target], None, image, spec).array
        into = folder / f"labels{part}" / f"{stem}{suffix}"
        into.parent.mkdir(exist_ok=True)
        if suffix == ".png":
            write_png(into, labels.astype("uint8"))
        else:
            write_label_map(into, labels, image, labels=255)
    row = {name: cell for name, cell in row_of(case, spec).items() if cell not in (None, "")}
    further: dict[str, str] = {}
    for column in file_columns(spec):
        if column in row and column != target and column not in spec.image_columns:
            into = Path(EXTRA) / column / f"{stem}{ending(row[column])}"
            (folder / into).parent.mkdir(parents=True, exist_ok=True)
            copy_new(row[column], folder / into)
            further[column] = into.as_posix()
    cells = {name: cell for name, cell in row.items() if name not in file_columns(spec)}
    return {"columns": cells, "files": further}


def _folds(cohort: Cohort, folds: int, seed: int) -> list[dict[str, list[str]]]:
    """Return nnU-Net's list of folds, with a patient's cases on one side of each."""
    folds = min(folds, len({case.patient_id for case in cohort.cases}))
    if folds < 2:
        return []
    fold_of = folds_of_patients(cohort, folds, seed)
    found: list[dict[str, list[str]]] = [{"train": [], "val": []} for _ in range(folds)]
    for case in cohort.cases:
        for fold, sides in enumerate(found):
            side = "val" if fold_of[case.patient_id] == fold else "train"
            sides[side].append(case_stem(case.case_id))
    return found


def _dataset(
    spec: CohortSpec, target: str, suffix: str, training: int, told: Mapping[str, Any]
) -> dict[str, Any]:
    """Return dataset.json."""
    known = spec.all_targets[target]
    names = known.names if isinstance(known, LabelsTarget) else (str(getattr(known, "name", target)),)
    channels = [*spec.channels] or [spec.modality.upper()]
    named = ["CT" if spec.intensity.unit == "HU" else name for name in channels]  # which sets its scaling
    described = spec.model_copy(update={"atlases": ()}).model_dump(mode="json", exclude_defaults=True)
    if isinstance(known, MaskTarget):  # written as 0 and 1
        holder = described["mask"] if target == "mask" else described["targets"][target]
        holder.pop("values", None)
        holder.pop("outside", None)
    return {
        "name": spec.name,
        "channel_names": {str(number): name for number, name in enumerate(named)},
        "labels": {"background": 0} | {name: number for number, name in enumerate(names, start=1)},
        "numTraining": training,
        "file_ending": suffix,
        EXTRA: {"format": FORMAT, "target": target, "cohort": described, "cases": told},
    }
