"""Folders in the Brain Imaging Data Structure (BIDS) as cohorts, and cohorts as such folders.

    dataset_description.json
    participants.tsv                              participant_id, and what is known of each participant
    sub-01/anat/sub-01_T2w.nii.gz                 an image: entities (sub-01), then a suffix; .json beside it
    derivatives/NAME/sub-01/anat/sub-01_desc-lesion_mask.nii.gz     a mask of it; _dseg: a label map

(Gorgolewski et al. 2016; specification 1.10; computed tomography as in its extension proposal 24.) What the
format has no place for stands in threefold.json, which .bidsignore hides from validators, so that a cohort
that is exported and imported again is the same.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threefold.cohorts.cohort import UNKNOWN, Case, Cohort, CohortSpec
from threefold.cohorts.failures import Failures, sparing_others
from threefold.cohorts.staging import axes_of, file_columns, finished, row_of, staging
from threefold.cohorts.targets import read_label_map_of
from threefold.core.targets import DENSE, LabelsTarget
from threefold.errors import CohortError, ImageError
from threefold.images.reading import read_image
from threefold.images.writing import write_label_map, write_nifti
from threefold.run import copy_new, whole_folder, write_new
from threefold.validation import parse_spec, read_json, read_text

EXTRA = "threefold.json"
FORMAT = 1
_DERIVATIVES = "derivatives"
_OWN = Path(_DERIVATIVES) / "threefold"
_NAME = re.compile(r"(?P<entities>(?:[a-zA-Z]+-[a-zA-Z0-9+]+_)+)(?P<suffix>[a-zA-Z0-9]+)\.nii(?:\.gz)?")
_MADE = ("mask", "dseg")
"""Suffixes of masks and of label maps."""
_SAYS_WHICH = ("desc", "label", "space", "res", "seg", "den")
"""Entities that a mask has beside those of its image."""
_SIDECAR = {
    "Manufacturer": "manufacturer",
    "ManufacturersModelName": "scanner_model",
    "MagneticFieldStrength": "field_strength",
    "InstitutionName": "institution",
    "ConvolutionKernel": "kernel",
    "SliceThickness": "slice_thickness",
}
"""What is taken from the JSON beside an image, and the column that it becomes."""
_MISSING = ("", "n/a")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _File:
    """A NIfTI with a name of the format.

    Attributes:
        path: of it.
        entities: by key, in order.
        suffix: what it is.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def which(self) -> str:
        """The entities that say what a mask is of: `desc-lesion`."""
        return "_".join(f"{k}-{v}" for k, v in self.entities.items() if k in ("desc", "label"))

    @property
    def stem(self) -> str:
        """The entities in words, without the suffix."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())

    def is_of(self, image: _File) -> bool:
        """Whether a mask is of an image: it has its entities, and else those that say which mask it is."""
        own = {key: value for key, value in self.entities.items() if key not in _SAYS_WHICH}
        return own == {key: value for key, value in image.entities.items() if key not in _SAYS_WHICH}


def import_bids(
    source: Path,
    out: Path,
    *,
    suffixes: Sequence[str] = (),
    masks: str | None = None,
    label: str | None = None,
    site: str | None = None,
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of a folder in the Brain Imaging Data Structure.

    A participant is a patient. Columns of participants.tsv become columns, and so does what the JSON beside
    an image says of the scanner; a column `site` is the hospital.

    Args:
        source: the folder, with dataset_description.json.
        out: the new folder.
        suffixes: of the images, for example T2w; several are the channels of a case. None given: the only
            one.
        masks: which masks or label maps, `desc-lesion`; None: the only ones.
        label: the column of participants.tsv that is the diagnosis.
        site: the hospital of all; None: the column `site`, or not known.
        copy: copy the files; else the table refers to them where they are.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: it is no such folder, or what is asked for is not there or is one of several.
    """
    source = Path(source)
    if not (source / "dataset_description.json").is_file():
        raise CohortError(
            f"{source}: no dataset_description.json, which a folder in the Brain Imaging Data Structure has."
        )
    if (source / EXTRA).is_file():
        return _restored(source, out, copy=copy, progress=progress)
    files = [one for one in map(_parsed, sorted(source.rglob("*.nii*"))) if one is not None]
    images = [
        one
        for one in files
        if one.suffix not in _MADE and _DERIVATIVES not in one.path.relative_to(source).parts
    ]
    suffixes = suffixes or _only_suffix(source, images)
    cases = _grouped(source, images, suffixes)
    participants = _participants(source)
    which = _chosen_masks(source, [one for one in files if one.suffix in _MADE], masks)
    spec, column = _spec(source, cases, suffixes, which, participants, label, site)
    rows: list[dict[str, Any]] = []
    with staging(out, source) as stage:
        for done, (stem, channels) in enumerate(cases.items(), start=1):
            first = channels[0]
            participant = f"sub-{first.entities['sub']}"
            told = {
                name: cell for name, cell in participants.get(participant, {}).items() if name in spec.columns
            }
            row: dict[str, Any] = {
                **{"case_id": stem, "patient_id": participant},
                "site": site or participants.get(participant, {}).get("site") or UNKNOWN,
                **_sidecar(first.path),
                **told,
            }
            if label is not None:
                row["label"] = participants.get(participant, {}).get(label)
            with stage.sparing(stem):
                of_it = [one for one in which if one.is_of(first)]
                if len(of_it) > 1:
                    raise ImageError(f"{len(of_it)} masks: {', '.join(one.path.name for one in of_it)}.")
                given = dict(zip(spec.image_columns, channels, strict=True))
                if of_it:
                    given[column] = of_it[0]
                for name, file in given.items():
                    row[name] = stage.place(file.path, name, stem, copy=copy)
                rows.append(row)
            if progress is not None:
                progress(done, len(cases))
        seen = {name for row in rows for name in row}
        known = {name: text for name, text in spec.columns.items() if name in seen}
        spec = spec.model_copy(update={"columns": known})
        stage.finish(spec, rows, {"source": "Brain Imaging Data Structure"}, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _parsed(path: Path) -> _File | None:
    """Return a file of the format; None for any other."""
    found = _NAME.fullmatch(path.name)
    if found is None or not path.name.startswith("sub-"):
        return None
    pairs = (pair.partition("-")[::2] for pair in found["entities"].rstrip("_").split("_"))
    return _File(path, dict(pairs), found["suffix"])


def _only_suffix(source: Path, images: Iterable[_File]) -> tuple[str, ...]:
    counts = Counter(one.suffix for one in images)
    if len(counts) == 1:
        return tuple(counts)
    told = ", ".join(f"{suffix} ({count})" for suffix, count in counts.most_common()) or "none"
    raise CohortError(
        f"{source}: expected images of one suffix, found {told}. Say which are the images (--suffix T2w; "
        "several are the channels of a case)."
    )


def _grouped(source: Path, images: Iterable[_File], suffixes: Sequence[str]) -> dict[str, list[_File]]:
    """Return the images of each case, by its entities; cases without all channels are left out."""
    found: dict[str, dict[str, _File]] = {}
    for one in images:
        if one.suffix in suffixes:
            found.setdefault(one.stem, {})[one.suffix] = one
    whole = {
        stem: [by_suffix[suffix] for suffix in suffixes]
        for stem, by_suffix in found.items()
        if len(by_suffix) == len(suffixes)
    }
    if not whole:
        raise CohortError(f"{source}: no case has an image of {' and '.join(suffixes)}. Correct --suffix.")
    return whole


def _participants(source: Path) -> dict[str, dict[str, str]]:
    """Return the cells of participants.tsv by participant and column; none where there is no such file."""
    path = source / "participants.tsv"
    if not path.is_file():
        return {}
    rows = list(csv.DictReader(io.StringIO(read_text(path, CohortError), newline=""), delimiter="\t"))
    if rows and "participant_id" not in rows[0]:
        raise CohortError(f"{path}: expected a column participant_id, found {', '.join(rows[0])}.")
    return {
        str(row["participant_id"]): {
            name: cell for name, cell in row.items() if name and cell and cell.strip() not in _MISSING
        }
        for row in rows
    }


def _chosen_masks(source: Path, made: Sequence[_File], asked: str | None) -> list[_File]:
    kinds = Counter((one.which, one.suffix) for one in made)
    chosen = [kind for kind in kinds if asked is None or kind[0] == asked]
    if asked is not None and not chosen:
        there = ", ".join(sorted({which for which, _ in kinds if which})) or "none"
        raise CohortError(f"{source}: no masks {asked}. There are: {there}.")
    if len(chosen) > 1:
        told = ", ".join(
            f"{which or 'without desc'} _{suffix} ({kinds[which, suffix]})" for which, suffix in chosen
        )
        raise CohortError(f"{source}: several kinds of masks: {told}. Say which (--masks desc-NAME).")
    return [one for one in made if (one.which, one.suffix) in chosen]


def _spec(
    source: Path,
    cases: Mapping[str, Sequence[_File]],
    suffixes: Sequence[str],
    masks: Sequence[_File],
    participants: Mapping[str, Mapping[str, str]],
    label: str | None,
    site: str | None,
) -> tuple[CohortSpec, str]:
    """Return what the folder's names mean, and the column of its masks."""
    path = source / "dataset_description.json"
    told = read_json(path, CohortError, "Correct the file there.")
    known = {name for cells in participants.values() for name in cells} - {"participant_id", "site", label}
    ct = all(suffix.lower() == "ct" for suffix in suffixes)
    described: dict[str, Any] = {
        "name": str(told.get("Name") or source.absolute().name),
        "modality": "ct" if ct else "mri",
        "dimensions": axes_of(channels[0].path for channels in cases.values()),
        "intensity": {"unit": "HU" if ct else "arbitrary"},
        "columns": {
            **dict.fromkeys(sorted(known), "a column of participants.tsv"),
            **dict.fromkeys(_SIDECAR.values(), "from the JSON beside the image"),
        },
    }
    if len(suffixes) > 1:
        described["channels"] = {suffix: f"image_{suffix}" for suffix in suffixes}
    if label is not None:
        classes = sorted({cells[label] for cells in participants.values() if label in cells})
        if len(classes) < 2:
            raise CohortError(f"{source / 'participants.tsv'}: column {label}: expected two classes or more.")
        described["classes"] = classes
    if not site and not any("site" in cells for cells in participants.values()):
        described["unknown"] = ["site"]
    column = "mask"
    if masks and masks[0].suffix == "dseg":
        column, described["structures"] = "structures", _names_of_labels(source, masks[0])
    elif masks:
        described["mask"] = {"name": masks[0].which.partition("-")[2] or "lesion"}
    return parse_spec(CohortSpec, described, where=str(path), error=CohortError), column


def _names_of_labels(source: Path, file: _File) -> list[str]:
    """Return the names of labels 1, 2, ... from the nearest table (index, name) above a label map."""
    own = file.path.with_name(f"{file.path.name.partition('.')[0]}.tsv")
    folder = file.path.parent
    tables = [own] if own.is_file() else []
    while not tables and folder != source.parent:
        tables = sorted(folder.glob("*dseg.tsv"))
        folder = folder.parent
    if not tables:
        raise CohortError(
            f"{file.path}: no table of its labels. Expected {own.name} with columns index and name."
        )
    rows = list(csv.DictReader(io.StringIO(read_text(tables[0], CohortError), newline=""), delimiter="\t"))
    try:
        names = {int(row["index"]): row["name"] for row in rows if int(row["index"]) > 0}
    except (KeyError, TypeError, ValueError) as error:
        raise CohortError(f"{tables[0]}: expected columns index (whole numbers) and name.") from error
    if sorted(names) != [*range(1, len(names) + 1)]:
        raise CohortError(f"{tables[0]}: expected the labels 1, 2, ... without a gap, found {sorted(names)}.")
    return [names[index] for index in sorted(names)]


def _sidecar(image: Path) -> dict[str, str]:
    """Return what the JSON beside an image says of how it was made."""
    path = image.with_name(f"{image.name.partition('.')[0]}.json")
    if not path.is_file():
        return {}
    told = read_json(path, CohortError, "Correct the file there.")
    return {column: str(told[key]) for key, column in _SIDECAR.items() if told.get(key) not in (None, "")}


def _restored(source: Path, out: Path, *, copy: bool, progress: Progress | None) -> Cohort:
    """Make the cohort again that a folder was made of."""
    path = source / EXTRA
    told = read_json(path, CohortError, "Export the cohort again.")
    spec = parse_spec(CohortSpec, told.get("cohort") or {}, where=f"{path}: cohort", error=CohortError)
    cases = told.get("cases")
    if not isinstance(cases, list) or not all(isinstance(one, dict) for one in cases):
        raise CohortError(f"{path}: key cases: expected a list. Export the cohort again.")
    rows: list[dict[str, Any]] = []
    with staging(out, source) as stage:
        for done, case in enumerate(cases, start=1):
            row: dict[str, Any] = dict(case.get("columns") or {})
            name = str(row.get("case_id"))
            with stage.sparing(name):
                for column, file in dict(case.get("files") or {}).items():
                    row[column] = stage.place(source / file, column, name, copy=copy)
                rows.append(row)
            if progress is not None:
                progress(done, len(cases))
        stage.finish(spec, rows, {"source": "Brain Imaging Data Structure"}, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        cases, participants: numbers of them.
        failed: why a case was left out, by its id.
    """

    cases: int
    participants: int
    failed: Failures = field(default_factory=dict)


def export_bids(
    cohort: Cohort, out: Path, *, suffix: str | None = None, progress: Progress | None = None
) -> Exported:
    """Write a cohort as a folder in the Brain Imaging Data Structure; its files are copied, or made NIfTI.

    Masks and label maps are derivatives, masks with the values 0 and 1.

    Args:
        cohort: of CT or MRI.
        out: a new folder.
        suffix: of MRI with one image a case, for example T2w; channels have their names.
        progress: called with the number of cases done and of all.

    Raises:
        CohortError: photographs; a suffix is missing, or a channel's name is none; slices of volumes; or the
            folder can't be made.
    """
    spec = cohort.spec
    suffixes = _suffixes(cohort, suffix)
    subjects = _labels({case.patient_id for case in cohort.cases})
    sessions: Counter[str] = Counter()
    told: list[dict[str, Any]] = []
    failed: Failures = {}
    with whole_folder(Path(out), CohortError) as beside:
        for done, case in enumerate(cohort.cases, start=1):
            sessions[case.patient_id] += 1
            stem = f"sub-{subjects[case.patient_id]}_run-{sessions[case.patient_id]}"
            with sparing_others(failed, case.case_id):
                told.append(_write_case(case, spec, suffixes, stem, beside))
            if progress is not None:
                progress(done, len(cohort.cases))
        if not told:
            raise CohortError(f"{cohort.folder}: no case can be written: {next(iter(failed.values()))}")
        _write_tables(cohort, subjects, told, beside)
    return Exported(len(told), len(subjects), failed)


def _suffixes(cohort: Cohort, suffix: str | None) -> tuple[str, ...]:
    spec = cohort.spec
    if spec.modality == "photo":
        raise CohortError(f"{cohort.folder}: photographs have no place in the Brain Imaging Data Structure.")
    if any(case.slice_index is not None for case in cohort.cases):
        raise CohortError(
            f"{cohort.folder}: cases are slices of volumes, which the Brain Imaging Data Structure does not "
            "know. Export the volumes."
        )
    found = (*spec.channels,) or (suffix or ("ct" if spec.modality == "ct" else ""),)
    bad = [one for one in found if not re.fullmatch(r"[a-zA-Z0-9]+", one) or one in _MADE]
    if bad:
        raise CohortError(
            f"{cohort.folder}: '{bad[0]}' is no suffix of an image. Say what the images are (--suffix T2w), "
            "or name channels so."
        )
    return found


def _labels(names: Iterable[str]) -> dict[str, str]:
    """Return a label of letters and digits for each name; numbers tell those apart that come to the same."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in sorted(names):
        plain = re.sub(r"[^a-zA-Z0-9]", "", name.removeprefix("sub-")) or "x"
        label, number = plain, 1
        while label.lower() in taken:
            number += 1
            label = f"{plain}x{number}"
        taken.add(label.lower())
        found[name] = label
    return found


def _write_case(
    case: Case, spec: CohortSpec, suffixes: Sequence[str], stem: str, folder: Path
) -> dict[str, Any]:
    """Write a case's files; return what threefold.json says of it."""
    inside = Path(stem.partition("_")[0]) / ("ct" if spec.modality == "ct" else "anat")
    files: dict[str, Path] = {}
    images = [case.channels.get(name) for name in spec.channels] or [case.image]
    for column, suffix, path in zip(spec.image_columns, suffixes, images, strict=True):
        if path is None:
            continue
        plain = path.is_file() and path.name.endswith((".nii", ".nii.gz"))
        files[column] = inside / f"{stem}_{suffix}{'.nii' if plain and path.suffix == '.nii' else '.nii.gz'}"
        into = folder / files[column]
        into.parent.mkdir(parents=True, exist_ok=True)
        if plain:
            copy_new(path, into)
        else:
            image = read_image(path, spacing=spec.spacing)
            write_nifti(into, image.array, image.affine, place=image.stored_place)
    image = read_image(case.image, spacing=spec.spacing)
    for name, path in case.label_maps.items():
        labels = read_label_map_of(name, path, None, image, spec).array
        files[name] = _OWN / inside / f"{stem}_desc-{_plain(name)}_{_made(spec, name)}.nii.gz"
        (folder / files[name]).parent.mkdir(parents=True, exist_ok=True)
        write_label_map(folder / files[name], labels, image, labels=255)
    if case.reference is not None:
        files["reference"] = _OWN / inside / f"{stem}_desc-reference_dseg{_nifti_ending(case.reference)}"
        (folder / files["reference"]).parent.mkdir(parents=True, exist_ok=True)
        copy_new(case.reference, folder / files["reference"])
    row = {name: cell for name, cell in row_of(case, spec).items() if cell not in (None, "")}
    cells = {name: cell for name, cell in row.items() if name not in file_columns(spec)}
    return {"columns": cells, "files": {name: path.as_posix() for name, path in files.items()}}


def _write_tables(
    cohort: Cohort, subjects: Mapping[str, str], told: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    spec = cohort.spec
    described = spec.model_copy(update={"atlases": ()}).model_dump(mode="json", exclude_defaults=True)
    for holder in (described.get("mask"), *described.get("targets", {}).values()):
        if holder is not None and holder.get("kind", "mask") == "mask":  # written as 0 and 1
            holder.pop("values", None)
            holder.pop("outside", None)
    about = {"Name": spec.name, "BIDSVersion": "1.10.0", "DatasetType": "raw"}
    made = {**about, "DatasetType": "derivative", "GeneratedBy": [{"Name": "threefold"}]}
    for path, content in (
        (folder / "dataset_description.json", about),
        (folder / EXTRA, {"format": FORMAT, "cohort": described, "cases": told}),
    ):
        write_new(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    if (folder / _OWN).is_dir():
        write_new(folder / _OWN / "dataset_description.json", json.dumps(made, indent=2) + "\n")
        for name, target in spec.all_targets.items():
            if isinstance(target, LabelsTarget):
                lines = [("index", "name"), (0, "background"), *enumerate(target.names, start=1)]
                write_new(folder / _OWN / f"desc-{_plain(name)}_dseg.tsv", _tsv(lines))
    write_new(folder / ".bidsignore", f"{EXTRA}\nsub-*/ct/\n")
    columns = ["patient_id", "site", *(["label"] if spec.classes else []), *sorted(spec.columns)]
    participants: list[Sequence[object]] = [("participant_id", *columns)]
    for patient, subject in subjects.items():
        rows = [one["columns"] for one in told if one["columns"]["patient_id"] == patient]
        cells = ({str(row.get(column, "n/a")) for row in rows} for column in columns)
        if rows:
            participants.append((f"sub-{subject}", *("; ".join(sorted(cell)) for cell in cells)))
    write_new(folder / "participants.tsv", _tsv(participants))


def _tsv(lines: Iterable[Sequence[object]]) -> str:
    return "".join("\t".join(re.sub(r"[\t\r\n]", " ", str(cell)) for cell in line) + "\n" for line in lines)


def _plain(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "", name) or "x"


def _made(spec: CohortSpec, name: str) -> str:
    target = spec.all_targets[name]
    assert target.kind in DENSE
    return "dseg" if isinstance(target, LabelsTarget) else "mask"


def _nifti_ending(path: Path) -> str:
    return ".nii" if path.suffix == ".nii" else ".nii.gz"
