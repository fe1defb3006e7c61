"""The head-CT phantom: hematomas with and without hypodensities, from eleven scanners.

`case_parameters` draws the parameters of a cohort, `render_case` makes a slice from them and nothing else,
and `make_head_ct_cohort` writes a cohort. A case can be rendered again with one thing changed
(`dataclasses.replace`): the planted shortcut, the marker, the scanner.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, read_cohort, write_cohort
from threefold.core.targets import MaskSpec, NumberTarget
from threefold.csv_tables import table_text
from threefold.errors import CohortError
from threefold.images.writing import encode_nifti, write_png
from threefold.phantoms.ct_scanner import add_surroundings, affine, scan, section_of
from threefold.phantoms.head_anatomy import draw_brain, draw_outside, petrous_band
from threefold.phantoms.head_parameters import CaseParameters, case_parameters
from threefold.phantoms.head_protocol import INTERNAL_SITES, PRESETS, HeadCtSpec
from threefold.phantoms.head_section import find_skull
from threefold.phantoms.hematoma import draw_hematoma
from threefold.phantoms.parameters_file import write_parameters
from threefold.phantoms.phantom import Counterfactuals, Phantom, Progress, Switch
from threefold.phantoms.sites import site_groups, site_name
from threefold.run import whole_folder, write_new

__all__ = [
    "HEAD_CT",
    "PRESETS",
    "CaseParameters",
    "HeadCtSpec",
    "Rendering",
    "case_parameters",
    "make_head_ct_cohort",
    "render_case",
    "render_object",
]

_BRAIN_WINDOW = (0.0, 80.0)
_SHEET_COLUMNS, _SHEET_ROWS = 6, 4


@dataclass(frozen=True)
class Rendering:
    """A slice.

    Attributes:
        hu: (I, J) int16; i grows to the patient's left, j to the back.
        hematoma: (I, J) uint8, hypodensities included. marker: (I, J) uint8, the hypodensities.
        affine: (4, 4) from voxel indices to RAS+ mm.
    """

    hu: NDArray[np.int16]
    hematoma: NDArray[np.uint8]
    marker: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class ScannedObject:
    """What lies in the slice, before the scanner.

    Attributes:
        hu: (I, J) float32, mean over the slice's thickness.
        hematoma, marker: (I, J) share of each pixel that is hematoma, or hypodensity.
        radius2: (I, J) squared distance from the head's middle, 1 at the skull.
        petrous: (I, J) weight of the band between the petrous bones.
    """

    hu: NDArray[np.float32]
    hematoma: NDArray[np.float32]
    marker: NDArray[np.float32]
    radius2: NDArray[np.float32]
    petrous: NDArray[np.float32]


def render_case(parameters: CaseParameters) -> Rendering:
    """Return a slice, determined by its parameters alone."""
    thing = render_object(parameters)
    hu = scan(
        thing.hu,
        parameters.acquisition,
        in_head=thing.radius2,
        petrous=thing.petrous,
        noise_seed=parameters.noise_seed,
    )
    hematoma = thing.hematoma >= 0.5
    return Rendering(
        hu=hu,
        hematoma=hematoma.astype(np.uint8),
        marker=(hematoma & (thing.marker >= 0.5)).astype(np.uint8),
        affine=affine(parameters.acquisition, parameters.level),
    )


def render_object(parameters: CaseParameters) -> ScannedObject:
    """Return head, holder and planted feature before blur, noise and beam hardening."""
    acquisition, head, hematoma = parameters.acquisition, parameters.head, parameters.hematoma
    levels = _sub_levels(parameters.level, acquisition.thickness)
    shape = (acquisition.size, acquisition.size)
    total, blood, marker = np.zeros((3, *shape), np.float32)
    for level in levels:
        section = section_of(acquisition, level)
        skull = find_skull(head, section)
        hu = np.full(shape, -1000, np.float32)
        draw_outside(hu, head, section, skull)
        box = skull.inside()
        section_inside, skull_inside = section.crop(box), skull.crop(box)
        draw_brain(hu[box], head, hematoma, section_inside, skull_inside)
        lesion = draw_hematoma(hu[box], hematoma, section_inside, skull_inside)
        total += hu
        blood[box] += lesion.blood
        marker[box] += lesion.marker
    count = np.float32(len(levels))
    total /= count
    add_surroundings(total, acquisition)
    return ScannedObject(total, blood / count, marker / count, skull.radius2, petrous_band(section))


def _sub_levels(level: float, thickness: float) -> list[float]:
    """Return the levels whose mean stands for the slice: partial volume."""
    count = 1 if thickness < 4 else 2 if thickness < 8 else 3
    return [level + thickness * ((i + 0.5) / count - 0.5) for i in range(count)]


def make_head_ct_cohort(out: Path, spec: HeadCtSpec, seed: int, progress: Progress | None = None) -> Cohort:
    """Write a cohort of phantoms.

    OUT/cohort.yaml, cases.csv, images/*.nii.gz (int16 HU), masks/*.nii.gz (uint8, only of `spec.mask_sites`),
    previews/SITE.png (contact sheets), parameters.json (all parameters of every case), and the truth that
    no training may see: truth.csv and truth/{hematoma,marker}/*.nii.gz. The same seed gives the same bytes.

    Args:
        out: made where it does not exist; it appears only when it is complete.
        spec: the cohort.
        seed: of every random number.
        progress: called after each case.

    Raises:
        CohortError: if `out` exists and is not an empty folder, is the current one, or can't be written.
    """
    cases = case_parameters(spec, seed)
    with whole_folder(out, CohortError) as folder:
        _write(folder, spec, seed, cases, progress)
    return read_cohort(out)


def _write(
    folder: Path,
    spec: HeadCtSpec,
    seed: int,
    cases: tuple[CaseParameters, ...],
    progress: Progress | None,
) -> None:
    for name in ("images", "masks", "previews", "truth/hematoma", "truth/marker"):
        (folder / name).mkdir(parents=True)
    masked = {site_name(number) for number in spec.mask_sites}
    rows, truth = [], []
    sheet: list[tuple[Rendering, CaseParameters]] = []
    for done, case in enumerate(cases, start=1):
        rendering = render_case(case)
        file = f"{case.case_id}.nii.gz"
        mask = None
        write_new(folder / "images" / file, encode_nifti(rendering.hu, rendering.affine))
        hematoma = encode_nifti(rendering.hematoma, rendering.affine)
        write_new(folder / "truth/hematoma" / file, hematoma)
        write_new(folder / "truth/marker" / file, encode_nifti(rendering.marker, rendering.affine))
        if case.site in masked:
            mask = f"masks/{file}"
            write_new(folder / mask, hematoma)
        rows.append(
            {
                "case_id": case.case_id,
                "patient_id": case.patient_id,
                "site": case.site,
                "image": f"images/{file}",
                "mask": mask,
                "label": _CLASSES[case.label],
                "shortcut": int(case.acquisition.shortcut),
                **({"volume": f"{_volume(rendering):.4g}"} if spec.measured else {}),
            }
        )
        truth.append((case.case_id, f"truth/hematoma/{file}", f"truth/marker/{file}"))
        if len(sheet) < _SHEET_COLUMNS * _SHEET_ROWS and case.slice_number == min(2, spec.slices[0]):
            sheet.append((rendering, case))
        if done == len(cases) or cases[done].site != case.site:
            _write_sheet(folder / "previews" / f"{case.site}.png", sheet)
            sheet = []
        if progress is not None:
            progress(done, len(cases))
    write_parameters(folder, spec, seed, cases)
    write_new(folder / "truth.csv", table_text([("case_id", "hematoma", "marker"), *truth]))
    write_cohort(folder, _cohort_spec(spec, seed), rows)


_CLASSES = ("homogeneous", "hypodensity")


def _volume(rendering: Rendering) -> float:
    """Return the hematoma of a slice, mL: its area times the slice's thickness."""
    return float(rendering.hematoma.sum() * abs(np.linalg.det(rendering.affine[:3, :3])) / 1000)


def _cohort_spec(spec: HeadCtSpec, seed: int) -> CohortSpec:
    return CohortSpec(
        name=f"head-ct-phantom-seed{seed}",
        modality="ct",
        dimensions=2,
        classes=_CLASSES,
        positive=_CLASSES[1],
        mask=MaskSpec(name="hematoma"),
        targets={"volume": NumberTarget(kind="number", unit="mL")} if spec.measured else {},
        intensity=IntensitySpec(unit="HU", window=_BRAIN_WINDOW),
        site_groups=site_groups(spec.sites, len(INTERNAL_SITES)),
        columns={
            "shortcut": "1 where the planted acquisition feature (a radiopaque clip in the corner of the "
            "field) is in the image, else 0"
        },
    )


def _write_sheet(path: Path, cases: list[tuple[Rendering, CaseParameters]]) -> None:
    """Write a contact sheet in the brain window, without and with hypodensities in turns."""
    if not cases:
        return
    without = [rendering for rendering, case in cases if not case.label]
    with_ = [rendering for rendering, case in cases if case.label]
    ordered = [rendering for pair in zip_longest(without, with_) for rendering in pair if rendering]
    rows = [ordered[i : i + _SHEET_COLUMNS] for i in range(0, len(ordered), _SHEET_COLUMNS)]
    size = cases[0][0].hu.shape[0]
    picture = np.zeros((len(rows) * size, len(rows[0]) * size), np.uint8)
    low, high = _BRAIN_WINDOW
    for i, row in enumerate(rows):
        for j, rendering in enumerate(row):
            grey = np.clip((rendering.hu.T - low) / (high - low), 0, 1) * 255
            picture[i * size : (i + 1) * size, j * size : (j + 1) * size] = grey.astype(np.uint8)
    write_png(path, picture)


def _switch_clip(case: CaseParameters) -> CaseParameters:
    return replace(case, acquisition=replace(case.acquisition, shortcut=not case.acquisition.shortcut))


def _switch_hypodensities(case: CaseParameters) -> CaseParameters:
    return replace(case, hematoma=replace(case.hematoma, marker=not case.hematoma.marker))


HEAD_CT: Phantom[HeadCtSpec, CaseParameters] = Phantom(
    name="head-ct",
    presets=PRESETS,
    make=make_head_ct_cohort,
    counterfactuals=Counterfactuals(
        truth="hematoma",
        case=CaseParameters,
        render=lambda case: render_case(case).hu,
        switches={
            "shortcut": Switch("the clip", lambda case: case.acquisition.shortcut, _switch_clip),
            "marker": Switch("the hypodensities", lambda case: case.hematoma.marker, _switch_hypodensities),
        },
    ),
)
