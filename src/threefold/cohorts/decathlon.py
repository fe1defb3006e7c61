"""The dataset file of the published aortic-arch implementation (data.json) as a cohort.

It has the lists of the Medical Segmentation Decathlon, with keys of its own. Entries of "training",
"validation" and "inference":

    image   the volume
    mask    the binary mask that an annotator drew
    LP      the propagated label map, whose labels the table "labels" names
    label   the number of the diagnosis, as 0.0 or 0

In "testing" the mask holds the true label map of all structures. `threefold.cohorts.decathlon_export` writes
such files; what the published reader has no key for stands there under EXTRA, which it ignores.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, Cohort, CohortSpec, IntensitySpec
from threefold.cohorts.staging import Staging, ending, file_columns, finished, staging
from threefold.cohorts.table import declared_columns
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError, ImageError
from threefold.experiment import Part
from threefold.images.reading import read_header, read_label_map
from threefold.validation import did_you_mean, parse_spec, read_json

EXTRA = "threefold"
"""Key, of the file and of each entry, of what the published reader does not know."""
LISTS: dict[str, Part | None] = {
    "training": "train",
    "validation": "validation",
    "testing": "test",
    "inference": None,
}
"""The part of a split that each list is."""
_OTHER_NAMES = {"test": "testing"}  # as the Medical Segmentation Decathlon has it
_KEYS = ("image", "mask", "LP", "label", "case_id", "patient_id", "site", EXTRA)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Entry:
    """An entry of a list, and where it stands in the file (for example training[3])."""

    where: str
    part: Part | None
    values: Mapping[str, Any]


def import_decathlon(
    source: Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    site: str | None = None,
    patient_per_image: bool = False,
    copy: bool = True,
    allow_outside: bool = False,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of a dataset file.

    Args:
        source: the JSON file, or a folder with data.json; its paths are relative to its folder.
        out: the new folder.
        classes: names of the diagnoses 0, 1, ..., where the file does not say them.
        site: of entries that name none; None: the dataset's own name.
        patient_per_image: take each image for another patient, where entries have no patient_id.
        copy: copy the files; else the table refers to them where they are, outside the cohort's folder.
        allow_outside: take files that lie outside the dataset file's folder.
        progress: called with the number of cases done and of all.

    Returns:
        The cohort. Lists become the column split; "inference" leaves it empty. A mask in "testing" that
        holds more than one label becomes the reference. Further keys of entries become columns. An entry of
        "inference" whose image is in another list too is left out, and so are entries whose files can't be
        used, which provenance.json says.

    Raises:
        CohortError: naming the entry and the key: what was expected, what was found; or no entry has files
            that can be used.
    """
    path = Path(source) / "data.json" if Path(source).is_dir() else Path(source)
    content = _read(path)
    entries, left_out = _without_repeats(list(_entries(content, path)), path)
    spec = _spec(content, entries, path, tuple(classes))
    names = _case_ids(entries, path)
    rows: list[dict[str, Any]] = []
    with staging(out, None if allow_outside else path.parent) as stage:
        for done, (entry, case_id) in enumerate(zip(entries, names, strict=True), start=1):
            row = _identity(entry, case_id, site or spec.name, patient_per_image, path)
            row |= _label(entry, spec, path) | _columns(entry, path)
            with stage.sparing(case_id):
                for column, file in _files(entry, spec, path).items():
                    row[column] = _place(
                        stage, file, column, case_id, entry, path, file_columns(spec), copy=copy
                    )
                rows.append(row)
            if progress is not None:
                progress(done, len(entries))
        spec = stage.place_atlases(spec, path.parent, copy=copy)
        known = {*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS, *declared_columns(spec)}
        further = {name for row in rows for name in row} - known
        columns = {**dict.fromkeys(sorted(further), "a key of the dataset file's entries"), **spec.columns}
        spec = spec.model_copy(update={"columns": columns})
        stage.finish(spec, rows, _provenance(content, path, left_out), allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, CohortError, "Correct the file there.")
    if not any(name in content for name in (*LISTS, *_OTHER_NAMES)):
        raise CohortError(f"{path}: expected the lists {', '.join(LISTS)}, found none of them.")
    return content


def _entries(content: Mapping[str, Any], path: Path) -> Iterator[_Entry]:
    for key, values in content.items():
        name = _OTHER_NAMES.get(key, key)
        if name not in LISTS:
            continue
        if not isinstance(values, list):
            raise CohortError(f"{path}: {key}: expected a list of entries, found {_shown(values)}.")
        for number, value in enumerate(values):
            where = f"{key}[{number}]"
            value = {"image": value} if isinstance(value, str) else value
            if not isinstance(value, dict):
                raise CohortError(f"{path}: {where}: expected keys and values, found {_shown(value)}.")
            for file in ("image", "mask", "LP"):
                found = value.get(file)
                if (file == "image" and not found) or not isinstance(found, str | None):
                    raise CohortError(f"{path}: {where}, key {file}: expected a path, found {_shown(found)}.")
            yield _Entry(where, LISTS[name], value)


def _without_repeats(entries: list[_Entry], path: Path) -> tuple[list[_Entry], list[str]]:
    """Leave out what "inference" repeats of the other lists; return the rest, and what was left out."""
    if not entries:
        raise CohortError(f"{path}: the lists are empty. Expected an entry for each image.")
    first: dict[str, _Entry] = {}
    left_out = []
    for entry in sorted(entries, key=lambda entry: entry.part is None):
        image = entry.values["image"]
        known = first.setdefault(image, entry)
        if known is entry:
            continue
        if entry.part is not None or known.part is None:
            raise CohortError(
                f"{path}: {entry.where}, key image: '{image}' is the image of {known.where} already. Name "
                "each image once: a case that is trained on can't be tested on."
            )
        left_out.append(f"{entry.where} (the image of {known.where})")
    kept = set(map(id, first.values()))
    return [entry for entry in entries if id(entry) in kept], left_out


def _spec(
    content: Mapping[str, Any], entries: Sequence[_Entry], path: Path, classes: tuple[str, ...]
) -> CohortSpec:
    """Return what the file says its numbers mean: our own description, else the Decathlon's keys."""
    own = content.get(EXTRA)
    if isinstance(own, dict) and isinstance(own.get("cohort"), dict):
        return parse_spec(CohortSpec, own["cohort"], where=f"{path}: {EXTRA}.cohort", error=CohortError)
    modality = content.get("modality")
    said = " ".join(map(str, modality.values())) if isinstance(modality, dict) else str(modality or "")
    known = {"mri": ("mr", "t1", "t2", "flair"), "ct": ("ct",)}
    found = [name for name, words in known.items() if said.lower().startswith(words)]
    if not found:
        raise CohortError(f"{path}: key modality: expected MRI or CT, found {_shown(modality)}.")
    structures = _structures(content, path)
    if not structures and any(entry.values.get("LP") for entry in entries):
        raise CohortError(f"{path}: entries have LP, but there is no table 'labels' that names its labels.")
    described = {
        "name": str(content.get("name") or path.stem),
        "modality": found[0],
        "dimensions": _dimensions(entries, path),
        "classes": classes,
        "mask": MaskSpec(name="region"),
        "structures": structures,
        "intensity": IntensitySpec(unit="HU" if found[0] == "ct" else "arbitrary"),
    }
    return parse_spec(CohortSpec, described, where=str(path), error=CohortError)


def _dimensions(entries: Sequence[_Entry], path: Path) -> int:
    """Return the number of axes of the first image whose header can be read.

    Raises:
        ImageError: none can be; why the first one can't.
    """
    first: ImageError | None = None
    for entry in entries:
        try:
            return len(read_header(_path_of(entry, "image", path)).shape)
        except ImageError as error:
            first = first or error
    assert first is not None  # there is an entry
    raise first


def _structures(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    labels = content.get("labels") or {}
    if not isinstance(labels, dict) or sorted(labels) != sorted(map(str, range(len(labels)))):
        raise CohortError(
            f'{path}: key labels: expected names of "0" (background), "1", "2", ... without a gap, found '
            f"{_shown(labels)}."
        )
    return tuple(str(labels[str(number)]) for number in range(1, len(labels)))


def _case_ids(entries: Sequence[_Entry], path: Path) -> list[str]:
    """Return each entry's own id, else its image's file name; with its folders where two are the same."""
    images = [Path(entry.values["image"]) for entry in entries]
    stems = [image.name.removesuffix(ending(image)) for image in images]
    counts = Counter(stems)
    longer = [
        stem if counts[stem] == 1 else "-".join((*image.parts[:-1], stem)).strip("./")
        for image, stem in zip(images, stems, strict=True)
    ]
    names = [_own(entry, "case_id") or name for entry, name in zip(entries, longer, strict=True)]
    first: dict[str, _Entry] = {}
    for entry, name in zip(entries, names, strict=True):
        known = first.setdefault(name, entry)
        if known is not entry:
            raise CohortError(
                f"{path}: {entry.where}: its case would be named '{name}' as that of {known.where}. Give "
                "each a case_id."
            )
    return names


def _identity(entry: _Entry, case_id: str, site: str, patient_per_image: bool, path: Path) -> dict[str, Any]:
    patient = _own(entry, "patient_id") or (case_id if patient_per_image else None)
    if patient is None:
        raise CohortError(
            f"{path}: {entry.where}: no key patient_id. It is what keeps a patient out of the test part: add "
            "it to the entries, or say that each image is another patient (--patient-per-image)."
        )
    return {
        "case_id": case_id,
        "patient_id": patient,
        "site": _own(entry, "site") or site,
        "split": entry.part,
    }


def _own(entry: _Entry, key: str) -> str | None:
    """Return a text from an entry's EXTRA, or from the entry itself."""
    extra = entry.values.get(EXTRA)
    value = (extra if isinstance(extra, dict) else {}).get(key, entry.values.get(key))
    return None if value in (None, "") else str(value)


def _label(entry: _Entry, spec: CohortSpec, path: Path) -> dict[str, Any]:
    value = entry.values.get("label")
    if value is None or isinstance(value, str):  # a path: the Decathlon's own key of a label map
        return {}
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or value < 0:
        raise CohortError(
            f"{path}: {entry.where}, key label: expected the number of a diagnosis, found {_shown(value)}."
        )
    if int(value) >= len(spec.classes):
        known = f"only {len(spec.classes)} are named ({', '.join(spec.classes)})" if spec.classes else "none"
        raise CohortError(
            f"{path}: {entry.where}, key label: diagnosis {int(value)}, but {known}. Name them in the order "
            "of their numbers (--class NAME, once for each)."
        )
    return {"label": spec.classes[int(value)]}


def _columns(entry: _Entry, path: Path) -> dict[str, str]:
    """Return the further columns: those under EXTRA, and the entry's further keys."""
    extra = entry.values.get(EXTRA)
    found = dict(extra.get("columns") or {}) if isinstance(extra, dict) else {}
    for key, value in entry.values.items():
        if key in _KEYS:
            continue
        if key in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS):
            raise CohortError(
                f"{path}: {entry.where}, key {key}: a key of this name is not the format's, and a column "
                f"of cases.csv has it. Rename it.{did_you_mean(key, _KEYS[:-1])}"
            )
        if isinstance(value, dict | list):
            raise CohortError(
                f"{path}: {entry.where}, key {key}: expected text or a number, found {_shown(value)}."
            )
        found[key] = "" if value is None else value
    return {str(key): str(value) for key, value in found.items()}


def _files(entry: _Entry, spec: CohortSpec, path: Path) -> dict[str, Path]:
    """Return the file of each column of cases.csv that an entry gives."""
    found = {"image": _path_of(entry, "image", path)}
    extra = entry.values.get(EXTRA)
    if isinstance(extra, dict) and "files" in extra:
        return found | {column: path.parent / file for column, file in extra["files"].items()}
    if entry.values.get("mask"):
        mask = _path_of(entry, "mask", path)
        column = (
            "reference" if entry.part == "test" and _holds_structures(mask, entry, spec, path) else "mask"
        )
        found[column] = mask
    if entry.values.get("LP"):
        found["structures"] = _path_of(entry, "LP", path)
    elif isinstance(entry.values.get("label"), str):
        found["structures"] = _path_of(entry, "label", path)
    return found


def _holds_structures(mask: Path, entry: _Entry, spec: CohortSpec, path: Path) -> bool:
    try:
        return bool(spec.structures) and int(read_label_map(mask).array.max()) > 1
    except ImageError as error:
        raise ImageError(f"{path}: {entry.where}, key mask: {error}") from error


def _path_of(entry: _Entry, key: str, path: Path) -> Path:
    file = path.parent / str(entry.values[key])
    if not file.exists():
        raise ImageError(f"{path}: {entry.where}, key {key}: {file}: no such file. Correct its path.")
    return file


def _place(
    stage: Staging,
    file: Path,
    column: str,
    case_id: str,
    entry: _Entry,
    path: Path,
    known: Sequence[str],
    *,
    copy: bool,
) -> Path:
    if column not in known:
        raise CohortError(
            f"{path}: {entry.where}, {EXTRA}.files: '{column}' is no file of a case."
            f"{did_you_mean(column, known)}"
        )
    try:
        return stage.place(file, column, case_id, copy=copy)
    except (CohortError, ImageError) as error:
        raise type(error)(f"{path}: {entry.where}, {column}: {error}") from error


def _provenance(content: Mapping[str, Any], path: Path, left_out: Sequence[str]) -> dict[str, Any]:
    said = {key: value for key, value in content.items() if isinstance(value, str | int | float)}
    return {"made by": "import decathlon", "file": path.name, "left out": list(left_out), "says": said}


def _shown(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
