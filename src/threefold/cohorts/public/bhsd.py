"""BHSD: head-CT volumes in which five kinds of haemorrhage are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec
from threefold.cohorts.public.haemorrhage import BRAIN_WINDOW
from threefold.cohorts.staging import Staging, ending, finished, staging
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError
from threefold.file_names import printable
from threefold.images.folders import folders_below
from threefold.images.reading import read_header

Progress = Callable[[int, int], None]

_STRUCTURES = ("EDH", "IPH", "IVH", "SAH", "SDH")
_PARTS = ("label_192", "unlabel_2000")


def import_bhsd(
    folder: Path,
    out: Path,
    *,
    dimensions: Literal[2, 3] = 3,
    site: str = "bhsd",
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Make a cohort of BHSD (Wu et al. 2023): volumes whose kinds of haemorrhage are drawn, and others.

    The files name no patients: each volume is taken for another patient's, which provenance.json repeats.

    Args:
        folder: holds label_192 (with `images` and `ground truths`, files of the same names, labels 1 to 5)
            and may hold unlabel_2000 (volumes without labels); or is label_192 itself.
        out: the new folder.
        dimensions: 3: a case is a volume. 2: a case is a slice.
        site: name of the hospital.
        copy: copy the volumes; else the table refers to them where they are.
        progress: called with the number of volumes done and of all.

    Raises:
        CohortError: if the folder is not laid out so, or a volume has no ground truth.
        ImageError: a volume's header can't be read.
    """
    unlisted: dict[Path, str] = {}
    pairs = _pairs(Path(folder), unlisted)
    rows: list[dict[str, Any]] = []
    with staging(out) as stage:
        stage.failed.update({printable(path): why for path, why in unlisted.items()})
        for done, (image, truth) in enumerate(pairs, start=1):
            with stage.sparing(f"{site}-{image.name.removesuffix(ending(image))}"):
                rows += _rows(stage, image, truth, dimensions, site, copy=copy)
            if progress is not None:
                progress(done, len(pairs))
        spec = CohortSpec(
            name="bhsd",
            modality="ct",
            dimensions=dimensions,
            mask=MaskSpec(name="haemorrhage", values=tuple(range(1, len(_STRUCTURES) + 1))),
            structures=_STRUCTURES,
            intensity=IntensitySpec(unit="HU", window=BRAIN_WINDOW),
        )
        provenance = {
            "made by": "import bhsd",
            "source": "BHSD, Wu et al. 2023",
            "assumed": "each volume is of another patient",
            "copied": copy,
        }
        stage.finish(spec, rows, provenance, allow_outside=not copy)
    return finished(out, allow_outside=not copy)


def _slice_rows(row: Mapping[str, Any], slices: int) -> list[dict[str, Any]]:
    """Return a volume's row as one row for each of its slices along the third axis."""
    return [{**row, "case_id": f"{row['case_id']}-{index:03d}", "slice": index} for index in range(slices)]


def _pairs(folder: Path, unlisted: dict[Path, str]) -> Sequence[tuple[Path, Path | None]]:
    """Return each volume and its ground truth; `unlisted` gets the folders that can't be listed."""
    labelled = folder / _PARTS[0] if (folder / _PARTS[0]).is_dir() else folder
    images = [path for path in _volumes(labelled / "images", unlisted) if path.parent.name == "images"]
    if not images and unlisted:
        raise CohortError(next(iter(unlisted.values())))
    if not images:
        raise CohortError(
            f"{labelled / 'images'}: no NIfTI volumes. Name the folder that holds {_PARTS[0]}, with "
            "'images' and 'ground truths' in it."
        )
    pairs: list[tuple[Path, Path | None]] = []
    for image in images:
        pairs.append((image, labelled / "ground truths" / image.name))
    pairs += [(path, None) for path in _volumes(folder / _PARTS[1], unlisted)]
    return pairs


def _volumes(folder: Path, unlisted: dict[Path, str]) -> Iterator[Path]:
    if folder.is_dir():
        for here, names in folders_below(folder, unlisted, []):
            yield from (here / name for name in names if ".nii" in name)


def _rows(
    stage: Staging, image: Path, truth: Path | None, dimensions: int, site: str, *, copy: bool
) -> list[dict[str, Any]]:
    name = f"{site}-{image.name.removesuffix(ending(image))}"
    placed = None if truth is None else stage.place(truth, "structures", name, copy=copy)
    row = {
        "case_id": name,
        "patient_id": name,
        "site": site,
        "image": stage.place(image, "image", name, copy=copy),
        "mask": placed,
        "structures": placed,
    }
    return [row] if dimensions == 3 else _slice_rows(row, read_header(image).shape[2])
