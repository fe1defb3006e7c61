"""The varied head-CT phantom: bleeding of every compartment, in heads and scanners of the widest variety.

For a network that is to work on real scans without having seen one (domain randomisation, Tobin et al. 2017,
arXiv 1703.06907; in medical images Billot et al. 2023, SynthSeg, arXiv 2107.09559): each slice has a head, a
scanner and findings of its own, all drawn wider than any hospital's, so that a real scan is one more variant.
`varied_cases` draws the parameters, `render_varied` makes a slice from them and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, read_cohort, write_cohort
from threefold.core.targets import MaskSpec
from threefold.errors import CohortError
from threefold.experiment import Fraction, NonNegative, PositiveInt, Spec
from threefold.images.writing import encode_nifti, write_png
from threefold.phantoms.ct_scanner import add_surroundings, affine, pixel_positions, scan, section_of
from threefold.phantoms.head_anatomy import draw_brain, draw_outside, petrous_band
from threefold.phantoms.head_findings import Bleeding, Finding, Mimic, draw_finding
from threefold.phantoms.head_parameters import Acquisition, Head, Hematoma
from threefold.phantoms.head_section import Section, Skull, find_skull
from threefold.phantoms.parameters_file import write_parameters
from threefold.phantoms.phantom import Phantom, Progress
from threefold.phantoms.smooth_noise import Plane
from threefold.run import whole_folder, write_new

CLASSES = ("none", "haemorrhage")
"""As in the cohorts of public head-CT scans, so that their runs and this one ask the same."""

Range = tuple[float, float]

_WINDOW = (0.0, 100.0)
"""HU: blood and everything fainter, calcifications and bone not told apart."""
_BRIGHT = 1000.0
_NOWHERE = Hematoma(
    seed=0, volume=0, centre=(0, 0, -1000), semi_axes=(1, 1, 1), angle=0, density=0, texture=0,
    irregularity=0, confounder="none", edge=1, gradient=0, gradient_angle=0, edema_width=0, edema_density=0,
    marker=False, marker_density=0, marker_share=0,
)  # fmt: skip
_SHEET = 8
_LEAST_AREA = 12.0
"""mm² of blood that a slice has to show to count as one with haemorrhage."""

_BLEEDINGS: tuple[tuple[Bleeding, float], ...] = (
    ("intraparenchymal", 0.34),
    ("epidural", 0.20),
    ("subdural", 0.20),
    ("interhemispheric", 0.05),
    ("intraventricular", 0.13),
    ("subarachnoid", 0.08),
)
_MIMICS: tuple[tuple[Mimic, float], ...] = (
    ("hygroma", 0.08),
    ("infarct", 0.12),
    ("calcification", 0.15),
    ("scalp", 0.25),
    ("vessel", 0.12),
    ("dense falx", 0.12),
)


class VariedHeadSpec(Spec):
    """A cohort of varied heads; a patient is a slice."""

    cases: PositiveInt = 4000
    """Slices."""
    size: Annotated[int, Field(ge=64, le=1024)] = 160
    """Pixels along a side."""
    bleeding: Fraction = 0.65
    """Share of the slices with blood; a quarter of these have two bleedings."""
    contrast: Range = (8.0, 45.0)
    """HU of the blood above grey matter: from faint to fresh and dense."""
    lesion_radius: Range = (3.0, 32.0)
    """Radius of bleedings inside the brain, mm; drawn evenly in its logarithm."""
    lesion_thickness: Range = (2.5, 30.0)
    """Thickness of bleedings under the skull, mm; subdural ones reach two thirds of it."""
    mimics: Fraction = 1.0
    """Factor on the frequency of what is no blood but looks like it."""
    field_of_view: Range = (185.0, 285.0)
    """mm."""
    thickness: Range = (1.0, 10.0)
    """Slice thickness, mm."""
    blur: Range = (0.3, 1.6)
    """Standard deviation of the point spread, mm: from bone to smooth kernels."""
    sharpening: Range = (0.0, 1.0)
    """Gain of the kernel's edge enhancement."""
    noise: NonNegative = 1.0
    """Factor on the noise, which is 1 to 8 HU."""
    tilt: Annotated[float, Field(ge=0, le=30)] = 22.0
    """Largest gantry tilt in both directions, degrees."""
    artefacts: Fraction = 0.3
    """Share of the slices with streaks, and half as many with a double contour by motion."""
    windowed: Fraction = 0.4
    """Share of the slices whose values were cut to a display window, as pictures are."""

    @model_validator(mode="after")
    def _ranges_fit(self) -> Self:
        for name in (
            "contrast", "lesion_radius", "lesion_thickness", "field_of_view", "thickness", "blur"
        ):  # fmt: skip
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is [{low}, {high}]; expected two numbers 0 < low <= high")
        if not 0 <= self.sharpening[0] <= self.sharpening[1]:
            raise ValueError(f"sharpening is {list(self.sharpening)}; expected two numbers 0 <= low <= high")
        return self


PRESETS: dict[str, VariedHeadSpec] = {
    "study": VariedHeadSpec(),
    # A few, to look at or to try a training.
    "demo": VariedHeadSpec(cases=96, contrast=(20.0, 45.0)),
}


@dataclass(frozen=True)
class VariedCase:
    """All that determines one slice.

    Attributes:
        level: height of the slice's middle, mm above the third ventricle's floor.
        findings: in the order in which they are drawn.
        gain: factor on contrast about 35 HU.
        streaks: (angle in radians, distance from the middle in mm, width in mm, HU) of each.
        ghost: pixels (left, back) by which a weaker copy is moved, and its share.
        window: HU between which values were cut; None: they were not.
        noise_seed: of the scanner's noise.
    """

    case_id: str
    level: float
    head: Head
    acquisition: Acquisition
    findings: tuple[Finding, ...]
    gain: float
    streaks: tuple[tuple[float, float, float, float], ...]
    ghost: tuple[int, int, float]
    window: tuple[float, float] | None
    noise_seed: int


@dataclass(frozen=True)
class VariedRendering:
    """A slice.

    Attributes:
        hu: (I, J) int16; i grows to the patient's left, j to the back.
        blood: (I, J) uint8.
        affine: (4, 4) from voxel indices to RAS+ mm.
    """

    hu: NDArray[np.int16]
    blood: NDArray[np.uint8]
    affine: NDArray[np.float64]

    @property
    def bleeds(self) -> bool:
        """Whether enough blood is in the slice to be seen."""
        return bool(self.blood.sum() * abs(np.linalg.det(self.affine[:2, :2])) >= _LEAST_AREA)


def varied_cases(spec: VariedHeadSpec, seed: int) -> Iterator[VariedCase]:
    """Draw the parameters of every slice; a slice does not change when the number of slices does."""
    for number in range(spec.cases):
        yield _case(spec, np.random.default_rng((seed, number, 41)), f"varied-{number + 1:05d}")


def render_varied(case: VariedCase) -> VariedRendering:
    """Return a slice, determined by its parameters alone."""
    from scipy.ndimage import gaussian_filter

    acquisition, head = case.acquisition, case.head
    shape = (acquisition.size, acquisition.size)
    count = 1 if acquisition.thickness < 4 else 2
    total, blood = np.zeros((2, *shape), np.float32)
    for i in range(count):
        level = case.level + acquisition.thickness * ((i + 0.5) / count - 0.5)
        section = section_of(acquisition, level)
        skull = find_skull(head, section)
        hu = np.full(shape, -1000, np.float32)
        draw_outside(hu, head, section, skull)
        box = skull.inside()
        blood[box] += _draw_inside(hu[box], case, section.crop(box), skull.crop(box)) / count
        for finding in case.findings:
            if finding.kind == "scalp":
                draw_finding(hu, finding, section, skull, np.zeros_like(hu))
        total += hu / np.float32(count)
    add_surroundings(total, acquisition)
    _add_streaks(total, case)
    hu16 = scan(
        total,
        acquisition,
        in_head=skull.radius2,
        petrous=petrous_band(section),
        noise_seed=case.noise_seed,
    )
    values = hu16.astype(np.float32)
    left, back, weight = case.ghost
    if weight:
        values += np.float32(weight) * (np.roll(values, (left, back), (0, 1)) - values)
    inside = gaussian_filter(skull.radius2 < 1, 1.0, output=np.float32)
    values += inside * np.float32(case.gain - 1) * (values - 35)
    if case.window is not None:
        values = np.clip(values, *case.window)
    return VariedRendering(
        hu=np.rint(values).astype(np.int16),
        blood=(blood >= 0.5).astype(np.uint8),
        affine=affine(acquisition, case.level),
    )


def make_varied_head_cohort(
    out: Path,
    spec: VariedHeadSpec = PRESETS["study"],
    seed: int = 0,
    progress: Progress | None = None,
) -> Cohort:
    """Write a cohort: images/*.nii.gz (int16 HU), masks/*.nii.gz (uint8), parameters.json, previews/.

    Args:
        out: a new or empty folder.
        spec: what the cohort is made of.
        seed: the same one gives the same bytes.
        progress: told after each slice.

    Raises:
        CohortError: `out` is not empty, or can't be written.
    """
    with whole_folder(out, CohortError) as folder:
        _write(folder, spec, seed, progress)
    return read_cohort(out)


def _draw_inside(hu: Plane, case: VariedCase, section: Section, skull: Skull) -> Plane:
    """Draw brain and findings in place; return the share of each pixel that is blood."""
    pushing = max(
        (finding.hematoma for finding in case.findings if finding.blood),
        key=lambda one: one.semi_axes[0] * one.semi_axes[1],
        default=_NOWHERE,
    )
    as_bright = hu.copy()
    draw_brain(as_bright, replace(case.head, csf=_BRIGHT), pushing, section, skull)
    draw_brain(hu, case.head, pushing, section, skull)
    # What differs between two fluids is fluid.
    fluid = np.clip((as_bright - hu) / np.float32(_BRIGHT - case.head.csf), 0, 1)
    blood = np.zeros_like(hu)
    for finding in case.findings:
        if finding.kind != "scalp":
            share = draw_finding(hu, finding, section, skull, fluid)
            if finding.blood:
                np.maximum(blood, share, out=blood)
    return blood


def _add_streaks(hu: Plane, case: VariedCase) -> None:
    x, y = pixel_positions(case.acquisition)
    for angle, distance, width, depth in case.streaks:
        across = x * np.float32(math.cos(angle)) + y * np.float32(math.sin(angle)) - np.float32(distance)
        hu += np.float32(depth) * np.exp(-((across / np.float32(width)) ** 2))


def _case(spec: VariedHeadSpec, generator: np.random.Generator, case_id: str) -> VariedCase:
    uniform = generator.uniform
    head = _head(generator)
    level = uniform(-20, 0.8 * head.vertex)
    bleeds = uniform() < spec.bleeding
    count = (1 + int(uniform() < 0.25)) if bleeds else 0
    names, weights = zip(*_BLEEDINGS, strict=True)
    kinds = generator.choice(len(names), size=count, p=weights)
    mimics = [name for name, share in _MIMICS if uniform() < share * spec.mimics]
    findings = [
        *(_finding(spec, generator, head, level, kind, blood=False) for kind in mimics),
        *(_finding(spec, generator, head, level, names[kind], blood=True) for kind in kinds),
    ]
    streaks: tuple[tuple[float, float, float, float], ...] = ()
    ghost = (0, 0, 0.0)
    if uniform() < spec.artefacts:
        streaks = tuple(
            (uniform(0, math.pi), uniform(-60, 60), uniform(1.5, 8), uniform(-14, 12))
            for _ in range(generator.integers(1, 5))
        )
    if uniform() < spec.artefacts / 2:
        left, back = generator.integers(-2, 3, 2)
        ghost = (int(left), int(back), uniform(0.15, 0.5))
    window = (uniform(-40, 0), uniform(80, 140)) if uniform() < spec.windowed else None
    return VariedCase(
        case_id=case_id,
        level=level,
        head=head,
        acquisition=_acquisition(spec, generator),
        findings=tuple(findings),
        gain=uniform(0.85, 1.2),
        streaks=streaks,
        ghost=ghost,
        window=window,
        noise_seed=int(generator.integers(2**31)),
    )


def _head(generator: np.random.Generator) -> Head:
    uniform = generator.uniform
    size, grey = uniform(0.88, 1.1), uniform(31, 43)
    return Head(
        seed=int(generator.integers(2**31)),
        half_width=66 * size * uniform(0.93, 1.07),
        half_length=82 * size * uniform(0.93, 1.07),
        taper=uniform(0.02, 0.2),
        vertex=uniform(80, 98) * size,
        skull=uniform(4, 11),
        scalp=uniform(2.5, 10),
        sulcus=uniform(0.4, 3.2),
        rim=uniform(0.1, 2.8),
        ventricles=uniform(0.45, 2.1),
        asymmetry=generator.normal(0, 0.15),
        grey=grey,
        white=grey - uniform(3.5, 11),
        csf=uniform(0, 16),
        calcified_pineal=bool(uniform() < 0.5),
        calcified_choroid=bool(uniform() < 0.45),
    )


def _acquisition(spec: VariedHeadSpec, generator: np.random.Generator) -> Acquisition:
    uniform = generator.uniform
    return Acquisition(
        size=spec.size,
        field_of_view=uniform(*spec.field_of_view),
        thickness=uniform(*spec.thickness),
        blur=uniform(*spec.blur),
        sharpening=uniform(*spec.sharpening),
        noise=spec.noise * math.exp(uniform(0, math.log(8))),
        noise_frequency=uniform(0.1, 0.4),
        cupping=uniform(-2, 9),
        streak=uniform(0, 22),
        offset=uniform(-6, 6),
        tilt=uniform(-spec.tilt, spec.tilt),
        holder=generator.choice(("cup", "rails", "table", "none")).item(),
        rotation=generator.normal(0, 9),
        shift=(generator.normal(0, 6), generator.normal(0, 6)),
        shortcut=False,
        clip=(0.0, 0.0, 0.0),
    )


def _finding(
    spec: VariedHeadSpec,
    generator: np.random.Generator,
    head: Head,
    level: float,
    kind: Bleeding | Mimic,
    *,
    blood: bool,
) -> Finding:
    uniform = generator.uniform
    angle, deep = uniform(0, 2 * math.pi), math.sqrt(uniform(0.02, 0.75))
    centre = (
        0.85 * deep * head.half_width * math.cos(angle),
        0.85 * deep * head.half_length * math.sin(angle),
    )
    radius = math.exp(uniform(math.log(spec.lesion_radius[0]), math.log(spec.lesion_radius[1])))
    thickness = uniform(*spec.lesion_thickness)
    reach = uniform(0.25, 0.7)
    density, texture = head.grey + uniform(*spec.contrast), uniform(0.5, 5)
    if kind == "subdural":
        thickness, reach = (
            spec.lesion_thickness[0] + 0.6 * (thickness - spec.lesion_thickness[0]),
            uniform(0.5, 1.5),
        )
    elif kind == "hygroma":
        thickness, reach, density = 0.5 * thickness, uniform(0.4, 1.4), head.csf + uniform(0, 12)
    elif kind in ("interhemispheric", "dense falx"):
        thickness = uniform(2, 8) if blood else uniform(0.4, 1.2)
        radius, centre = uniform(10, 50), (math.copysign(1, centre[0]), uniform(-65, 55))
        density = density if blood else uniform(55, 80)
    elif kind in ("intraventricular", "subarachnoid"):
        reach = uniform(0.1, 1)
    elif kind == "infarct":
        radius, density, texture = uniform(6, 30), uniform(10, 27), uniform(0.5, 3)
    elif kind == "calcification":
        radius, density = uniform(1, 3.5), uniform(110, 500)
    elif kind == "vessel":
        radius, density, texture = uniform(1, 2.5), uniform(50, 75), 0.5
    elif kind == "scalp":
        thickness, density = uniform(3, 14), uniform(35, 75)
    axes = radius * np.exp(generator.normal(0, 0.25, 3))
    if kind == "scalp":
        axes[0] = 1.15 * head.skull
    if kind in ("epidural", "subdural"):  # its place and size, for what it pushes away
        centre = (head.half_width * math.cos(angle), head.half_length * math.sin(angle))
        axes[:] = thickness
    return Finding(
        kind=kind,
        blood=blood,
        seed=int(generator.integers(2**31)),
        hematoma=Hematoma(
            seed=int(generator.integers(2**31)),
            volume=float(4 / 3 * math.pi * axes.prod() / 1000),
            centre=(*centre, level + uniform(-0.6, 0.6) * float(axes[2])),
            semi_axes=(float(axes[0]), float(axes[1]), float(axes[2])),
            angle=uniform(0, math.pi),
            density=density,
            texture=texture,
            irregularity=uniform(0.05, 0.3),
            confounder="none",
            edge=uniform(0.8, 5) if kind != "infarct" else uniform(1, 10),
            gradient=uniform(-18, 18) if uniform() < 0.35 else 0.0,
            gradient_angle=uniform(0, 2 * math.pi),
            edema_width=uniform(0, 10),
            edema_density=uniform(14, 27),
            marker=False,
            marker_density=0.0,
            marker_share=0.0,
        ),
        direction=angle,
        reach=reach,
        thickness=thickness,
        density=density,
        texture=texture,
    )


def _write(folder: Path, spec: VariedHeadSpec, seed: int, progress: Progress | None) -> None:
    for name in ("images", "masks", "previews"):
        (folder / name).mkdir()
    rows: list[dict[str, object]] = []
    shown: list[VariedRendering] = []
    for done, case in enumerate(varied_cases(spec, seed), start=1):
        rendering = render_varied(case)
        file = f"{case.case_id}.nii.gz"
        write_new(folder / "images" / file, encode_nifti(rendering.hu, rendering.affine))
        write_new(folder / "masks" / file, encode_nifti(rendering.blood, rendering.affine))
        rows.append(
            {
                "case_id": case.case_id,
                "patient_id": case.case_id,
                "site": "varied",
                "image": f"images/{file}",
                "mask": f"masks/{file}",
                "label": CLASSES[rendering.bleeds],
                "findings": " ".join(finding.kind for finding in case.findings),
            }
        )
        if len(shown) < _SHEET**2:
            shown.append(rendering)
        if progress is not None:
            progress(done, spec.cases)
    _write_sheet(folder / "previews" / "varied.png", shown)
    write_parameters(folder, spec, seed, varied_cases(spec, seed))
    write_cohort(folder, _cohort_spec(seed), rows)


def _cohort_spec(seed: int) -> CohortSpec:
    return CohortSpec(
        name=f"varied-head-phantom-seed{seed}",
        modality="ct",
        dimensions=2,
        classes=CLASSES,
        positive=CLASSES[1],
        mask=MaskSpec(name="haemorrhage"),
        intensity=IntensitySpec(unit="HU", window=_WINDOW),
        columns={
            "findings": "what was drawn in the slice, blood or not, whether it is in the picture or not"
        },
    )


def _write_sheet(path: Path, cases: list[VariedRendering]) -> None:
    """Write the first slices in the brain window, the outline of blood in white."""
    from scipy.ndimage import binary_dilation

    size, (low, high) = cases[0].hu.shape[0], _WINDOW
    columns = min(_SHEET, len(cases))
    picture = np.zeros((-(-len(cases) // columns) * size, columns * size), np.uint8)
    for number, case in enumerate(cases):
        grey = (np.clip((case.hu.T - low) / (high - low), 0, 1) * 225).astype(np.uint8)
        blood = case.blood.T > 0
        grey[binary_dilation(blood) & ~blood] = 255
        i, j = divmod(number, columns)
        picture[i * size : (i + 1) * size, j * size : (j + 1) * size] = grey
    write_png(path, picture)


VARIED_HEAD: Phantom[VariedHeadSpec, VariedCase] = Phantom(
    name="varied-head", presets=PRESETS, make=make_varied_head_cohort
)
