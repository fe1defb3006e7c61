"""The fetal-heart phantom: aortic coarctation, right and double arches in black-blood MRI, with known truth.

`draw_cases` draws the parameters of a cohort, `render_case` makes a volume from them and nothing else, and
`make_fetal_heart_cohort` writes a cohort whose every case has its diagnosis's topology.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import AtlasSpec, Cohort, CohortSpec, read_cohort, write_cohort
from threefold.core.targets import MaskSpec, NumberTarget
from threefold.errors import CohortError
from threefold.images.preprocessing import resize
from threefold.images.writing import encode_nifti, write_png
from threefold.phantoms.fetal_anatomy import Tube, surroundings, vessels
from threefold.phantoms.fetal_parameters import FetalCase, atlas_case, draw_cases, redraw
from threefold.phantoms.fetal_protocol import (
    DIAGNOSES,
    PRESETS,
    STRUCTURES,
    SURROUNDINGS,
    FetalHeartSpec,
)
from threefold.phantoms.fetal_topology import violations
from threefold.phantoms.mri_scanner import acquire, affine, as_stored
from threefold.phantoms.parameters_file import write_parameters
from threefold.phantoms.phantom import Phantom, Progress
from threefold.phantoms.sites import site_groups
from threefold.phantoms.tube_rendering import FAR, Grid, Volume, cover, distances, inside
from threefold.run import whole_folder, write_new

__all__ = [
    "FETAL_HEART",
    "PRESETS",
    "FetalHeartSpec",
    "FetalRendering",
    "make_fetal_heart_cohort",
    "render_case",
]

_MOST_REDRAWS = 40
# Signal of tissues in T2w black-blood MRI, where fluid is 1.
_FLUID, _TISSUE, _LUNG, _MUSCLE, _THYMUS, _BONE, _DISC, _AIRWAY = 0.95, 0.5, 0.72, 0.38, 0.58, 0.3, 0.55, 0.9

MEAN_AGE = 32.0
"""Weeks of gestation at which the anatomy has its mean size; its size goes with the age."""


@dataclass(frozen=True)
class FetalRendering:
    """A patient's volume and truth, as the site's file stores them.

    Attributes:
        image: (I, J, K) int16, arbitrary units.
        structures: (I, J, K) uint8, the true labels 1..11.
        surroundings: (I, J, K) uint8, 1..4: trachea, heart, lungs, spine; vessels left out.
        mask: (I, J, K) uint8, as an annotator would draw all vessels together.
        affine: (4, 4) from voxel indices to RAS+ mm.
    """

    image: NDArray[np.int16]
    structures: NDArray[np.uint8]
    surroundings: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    affine: NDArray[np.float64]


def true_structures(case: FetalCase) -> NDArray[np.uint8]:
    """Return a patient's true labels, (I, J, K) in RAS+.

    A voxel belongs to the vessel whose surface is deepest around it. Where a vessel is thinner than a voxel,
    the voxels that its middle passes are its.
    """
    grid = Grid(case.size, case.spacing)
    return _labels(vessels(case.anatomy, case.vessel_scale), grid)


def _labels(tubes: Iterable[Tube], grid: Grid) -> NDArray[np.uint8]:
    deepest = np.zeros(grid.shape, np.float32)
    labels = np.zeros(grid.shape, np.uint8)
    tubes = tuple(tubes)
    for label, name in enumerate(STRUCTURES, start=1):
        depth = distances((t for t in tubes if t.structure == name), grid, least=0.75 * grid.spacing)
        deeper = depth < deepest
        labels[deeper] = label
        deepest[deeper] = depth[deeper]
    return labels


def render_case(case: FetalCase) -> FetalRendering:
    """Return a patient's volume and truth, determined by the parameters alone."""
    grid = Grid(case.size, case.spacing)
    rng = np.random.default_rng([case.seed, 1])
    tubes = vessels(case.anatomy, case.vessel_scale)
    structures = _labels(tubes, grid)
    signal, around = _tissues(case, grid, rng)
    lumen = cover(distances(tubes, grid), grid)
    signal += lumen * (np.float32(case.scanner.lumen) - signal)
    around[structures > 0] = 0
    mask = _annotate(tubes, grid, np.random.default_rng([case.seed, 2]))
    image = acquire(signal, case.scanner, spacing=case.spacing, rng=rng)
    return FetalRendering(
        image=as_stored(image, case.scanner),
        structures=as_stored(structures, case.scanner),
        surroundings=as_stored(around, case.scanner),
        mask=as_stored(mask, case.scanner),
        affine=affine(case.scanner, size=case.size, spacing=case.spacing),
    )


def _tissues(case: FetalCase, grid: Grid, rng: np.random.Generator) -> tuple[Volume, NDArray[np.uint8]]:
    """Return the signal of everything but vessels, and labels of the surroundings."""
    parts = surroundings(case.anatomy)
    signal = np.full(grid.shape, _FLUID, np.float32)
    around = np.zeros(grid.shape, np.uint8)

    def paint(share: Volume, value: float, label: int = 0) -> None:
        nonlocal signal
        signal += share * (np.float32(value) - signal)
        if label:
            around[share >= 0.5] = label

    paint(inside(parts.body, grid), _TISSUE)
    for lung in parts.lungs:
        paint(inside(lung, grid), _LUNG, 1 + SURROUNDINGS.index("lungs"))
    paint(inside(parts.thymus, grid), _THYMUS)
    paint(inside(parts.heart, grid), _MUSCLE, 1 + SURROUNDINGS.index("heart"))
    for chamber in parts.chambers:
        paint(inside(chamber, grid), case.scanner.lumen)
    spine = cover(distances([parts.spine], grid), grid)
    vertebrae = np.sin(grid.axis() * np.float32(2 * np.pi / 4.5)) > -0.3
    paint(spine, _BONE, 1 + SURROUNDINGS.index("spine"))
    paint(spine * ~vertebrae, _DISC)
    paint(cover(distances(parts.airways, grid), grid), _AIRWAY, 1 + SURROUNDINGS.index("trachea"))
    texture = resize(rng.standard_normal((grid.size // 4,) * 3).astype(np.float32), grid.shape)
    return signal * (1 + np.float32(0.06) * texture), around


def _annotate(tubes: Iterable[Tube], grid: Grid, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return the vessels as one region as an annotator draws them: an unsteady border, thin ends missed."""
    kept = [
        Tube(tube.structure, tube.points[:end], tube.radii[:end])
        for tube in tubes
        for end in [_drawn(tube, rng)]
    ]
    distance = distances(kept, grid, least=0.5 * grid.spacing)
    hand = resize(rng.standard_normal((grid.size // 3,) * 3).astype(np.float32), grid.shape)
    near = distance < FAR
    return (near & (distance + np.float32(0.6 * grid.spacing) * hand < 0)).astype(np.uint8)


def _drawn(tube: Tube, rng: np.random.Generator) -> int:
    """Return how many of a tube's points an annotator follows."""
    missed = rng.uniform(0, 0.4) if tube.free_end and rng.random() < 0.6 else 0.0
    return max(2, round(len(tube.points) * (1 - missed)))


def settled(case: FetalCase, spec: FetalHeartSpec, seed: int) -> FetalCase:
    """Return the case, drawn again until its structures have its diagnosis's topology.

    Raises:
        CohortError: after 40 draws.
    """
    for _ in range(_MOST_REDRAWS):
        wrong = violations(true_structures(case), case.anatomy.diagnosis)
        if not wrong:
            return case
        case = redraw(case, spec, seed)
    raise CohortError(
        f"case {case.case_id}: after {_MOST_REDRAWS} draws its structures still have not the topology of "
        f"{case.anatomy.diagnosis} ({'; '.join(wrong)}). Use a smaller deformation, or a finer spacing."
    )


def make_fetal_heart_cohort(
    folder: Path, spec: FetalHeartSpec, seed: int, progress: Progress | None = None
) -> Cohort:
    """Write a cohort of phantoms.

    FOLDER/cohort.yaml (with an atlas for each diagnosis), cases.csv, images/ (int16), masks/ (manual, of
    `spec.mask_share`), reference/ (the true structures), atlases/, truth/ (what lies around the vessels),
    previews/SITE.png and parameters.json (all parameters of every case). The same seed gives the same bytes.

    Args:
        folder: made where it does not exist; it appears only when it is complete.
        spec: the cohort.
        seed: of every random number.
        progress: called after each case.

    Raises:
        CohortError: if `folder` exists and is not empty, is the current one, or can't be written; if no
            draw of a case has its diagnosis's topology.
    """
    with whole_folder(folder, CohortError) as staged:
        _write(staged, spec, seed, progress)
    return read_cohort(folder)


def _write(folder: Path, spec: FetalHeartSpec, seed: int, progress: Progress | None) -> None:
    for name in ("images", "masks", "reference", "atlases", "truth", "previews"):
        (folder / name).mkdir(parents=True)
    for diagnosis in DIAGNOSES:
        atlas = render_case(atlas_case(spec, diagnosis, seed))
        _write_volume(folder / f"atlases/{diagnosis}.nii.gz", atlas.image, atlas)
        _write_volume(folder / f"atlases/{diagnosis}-structures.nii.gz", atlas.structures, atlas)
    cases, rows, drawn = draw_cases(spec, seed), [], []
    sheets: dict[str, list[NDArray[np.uint8]]] = {}
    for done, case in enumerate(cases, start=1):
        case = settled(case, spec, seed)
        drawn.append(case)
        rendering, file = render_case(case), f"{case.case_id}.nii.gz"
        _write_volume(folder / "images" / file, rendering.image, rendering)
        _write_volume(folder / "reference" / file, rendering.structures, rendering)
        _write_volume(folder / "truth" / file, rendering.surroundings, rendering)
        if case.masked:
            _write_volume(folder / "masks" / file, rendering.mask, rendering)
        rows.append(
            {
                "case_id": case.case_id,
                "patient_id": case.patient_id,
                "site": case.site,
                "image": f"images/{file}",
                "mask": f"masks/{file}" if case.masked else None,
                "label": case.anatomy.diagnosis,
                "reference": f"reference/{file}",
                "hard": None if case.anatomy.diagnosis == "RAA" else int(case.anatomy.hard),
                **({"age": f"{MEAN_AGE * case.anatomy.scale:.4g}"} if spec.measured else {}),
            }
        )
        if len(sheets.setdefault(case.site, [])) < 6:
            sheets[case.site].append(preview(rendering, case))
        if progress is not None:
            progress(done, len(cases))
    for site, pictures in sheets.items():
        write_png(folder / "previews" / f"{site}.png", np.concatenate(pictures, axis=0))
    write_parameters(folder, spec, seed, drawn, {"surroundings": SURROUNDINGS})
    write_cohort(folder, _cohort_spec(spec, seed), rows)


def _write_volume(path: Path, volume: NDArray[Any], rendering: FetalRendering) -> None:
    write_new(path, encode_nifti(volume, rendering.affine))


def preview(rendering: FetalRendering, case: FetalCase) -> NDArray[np.uint8]:
    """Return one row: three planes through the middle, and the three without depth as darkest voxels."""
    image = as_stored(rendering.image, case.scanner).astype(np.float32)  # a flip undoes itself
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / (high - low), 0, 1) * 255
    labels = as_stored(rendering.structures, case.scanner) > 0
    middle = case.size // 2
    planes = [grey[:, :, middle], grey[:, middle, :], grey[middle, :, :]]
    shadows = [labels.mean(axis=axis) for axis in (2, 1, 0)]
    planes += [255 * (1 - shadow / max(float(shadow.max()), 1e-6)) for shadow in shadows]
    return np.concatenate([plane[:, ::-1].T for plane in planes], axis=1).astype(np.uint8)


def _cohort_spec(spec: FetalHeartSpec, seed: int) -> CohortSpec:
    return CohortSpec(
        name=f"fetal-heart-phantom-seed{seed}",
        modality="mri",
        dimensions=3,
        classes=DIAGNOSES,
        mask=MaskSpec(name="vessels"),
        structures=STRUCTURES,
        targets={"age": NumberTarget(kind="number", unit="weeks")} if spec.measured else {},
        atlases=tuple(
            AtlasSpec(
                name=diagnosis,
                image=f"atlases/{diagnosis}.nii.gz",
                structures=f"atlases/{diagnosis}-structures.nii.gz",
                label=diagnosis,
            )
            for diagnosis in DIAGNOSES
        ),
        site_groups=site_groups(spec.internal_sites + spec.external_sites, spec.internal_sites),
        columns={
            "hard": "1 where the narrowing is near-complete (CoA) or one of two arches thin (DAA), else 0; "
            "empty in RAA"
        },
    )


FETAL_HEART: Phantom[FetalHeartSpec, FetalCase] = Phantom(
    name="fetal-heart", presets=PRESETS, make=make_fetal_heart_cohort
)
