"""The object-background phantom: two kinds of objects before two kinds of backgrounds, as in Waterbirds.

The label is the object's kind, the shortcut is the background: in training they go together as strongly as
asked, elsewhere they do not (Sagawa et al. 2020, on photographs). Nothing in it is medical: it asks whether
what helps against a clip in a CT slice helps against another correlation too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, read_cohort, write_cohort
from threefold.core.targets import MaskSpec
from threefold.csv_tables import table_text
from threefold.errors import CohortError
from threefold.experiment import Fraction, PositiveInt, Spec
from threefold.images.writing import write_png
from threefold.phantoms.parameters_file import write_parameters
from threefold.phantoms.phantom import Counterfactuals, Phantom, Progress, Switch
from threefold.phantoms.planted import labels_and_agreement
from threefold.phantoms.sites import site_groups, site_name
from threefold.run import whole_folder, write_new

KINDS = ("three-lobed", "five-lobed")
INTERNAL_SITES = 4
_LOBES = (3, 5)
_STRIPED, _MOTTLED = (6.0, 1.0), (2.4, 2.4)
"""Standard deviations, in pixels of a picture of 112, of the filters that make the backgrounds."""
_SHEET = 6


class ObjectBackgroundSpec(Spec):
    """An object-background cohort; a patient is a picture."""

    patients_per_site: PositiveInt = 120
    """Pictures at each internal site (1 to 4)."""
    external_patients_per_site: PositiveInt = 60
    """Pictures at each external site (5 to 7)."""
    sites: Annotated[int, Field(ge=1, le=7)] = 7
    """Sites 1 to 4 are internal, 5 to 7 external: other cameras."""
    mask_sites: tuple[Annotated[int, Field(ge=1, le=7)], ...] = (1, 2, 3, 4)
    """Sites whose masks of the object the cohort carries; the truth of all lies in truth/."""
    shortcut: Fraction = 0.9
    """Strength s at the internal sites: P(background as the object's kind) = (1 + s) / 2."""
    external_shortcut: Literal["reversed", "random"] = "reversed"
    """At the external sites: P = (1 - s) / 2, or a fair coin."""
    size: Annotated[int, Field(ge=32, le=1024)] = 112
    """Pixels along a side."""
    lobes: tuple[Fraction, Fraction] = (0.14, 0.24)
    """Depth of the outline's lobes, as a share of the object's radius."""
    noise: Annotated[float, Field(ge=0)] = 1.0
    """Factor on each camera's noise."""


PRESETS: dict[str, ObjectBackgroundSpec] = {
    "study": ObjectBackgroundSpec(),
    # Small, with plainer objects: learned in minutes on two cores.
    "demo": ObjectBackgroundSpec(
        patients_per_site=60, external_patients_per_site=20, size=64, lobes=(0.22, 0.32), noise=0.5
    ),
}


@dataclass(frozen=True)
class Camera:
    """A site's camera.

    Attributes:
        blur: standard deviation of the point spread, pixels of a picture of 112.
        noise: standard deviation, grey levels.
        gain: factor on contrast about the middle grey.
        vignette: how much darker the corners are, as a share.
    """

    blur: float
    noise: float
    gain: float
    vignette: float


# The first four are alike; the last three lie outside their ranges.
CAMERAS = (
    Camera(0.6, 5.0, 1.00, 0.05),
    Camera(0.7, 4.0, 0.95, 0.08),
    Camera(0.6, 6.0, 1.05, 0.04),
    Camera(0.8, 5.0, 1.00, 0.06),
    Camera(1.3, 9.0, 0.75, 0.25),
    Camera(0.3, 12.0, 1.25, 0.00),
    Camera(1.0, 10.0, 0.85, 0.35),
)


@dataclass(frozen=True)
class ObjectCase:
    """All that determines one picture; lengths are shares of its side.

    Attributes:
        kind: index in KINDS, the label.
        shortcut: whether the background is striped; else it is mottled.
        middle: (across, down). radius: mean of the outline. depth: of its lobes, as a share of the radius.
        turn: of the outline, radians.
        grey: of the object. seed: of background, grain and noise.
    """

    case_id: str
    site: str
    kind: int
    shortcut: bool
    size: int
    middle: tuple[float, float]
    radius: float
    depth: float
    turn: float
    grey: float
    seed: int
    noise: float
    camera: Camera


@dataclass(frozen=True)
class ObjectRendering:
    """A picture.

    Attributes:
        grey: (rows, columns) uint8. mask: (rows, columns) uint8, 1 in the object.
    """

    grey: NDArray[np.uint8]
    mask: NDArray[np.uint8]


def object_cases(spec: ObjectBackgroundSpec, seed: int) -> tuple[ObjectCase, ...]:
    """Draw the parameters of every picture of a cohort.

    Cohorts of one seed that differ in the shortcut's strength differ in the backgrounds alone, and a
    stronger shortcut keeps every agreement of a weaker one.
    """
    return tuple(_draw(spec, seed))


def render_picture(case: ObjectCase) -> ObjectRendering:
    """Make a picture from its parameters and nothing else.

    Both backgrounds are drawn from the same noise, with the same mean and variance: `dataclasses.replace`
    of `shortcut` or `kind` changes that alone.
    """
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(case.seed)
    pixel = case.size / 112
    shape = (case.size, case.size)
    white, grain, noise = (generator.standard_normal(shape) for _ in range(3))
    filtered = gaussian_filter(
        white, [sigma * pixel for sigma in (_STRIPED if case.shortcut else _MOTTLED)], mode="wrap"
    )
    background = 112 + 26 * (filtered - filtered.mean()) / filtered.std()
    body = case.grey + 8 * gaussian_filter(grain, 1.5 * pixel, mode="wrap") * 1.5 * pixel * 2 * math.sqrt(
        math.pi
    )
    inside = _inside(case)
    scene = background + inside * (body - background)
    down, across = _positions(case.size)
    camera = case.camera
    scene = 128 + camera.gain * (gaussian_filter(scene, camera.blur * pixel, mode="nearest") - 128)
    scene *= 1 - camera.vignette * 2 * ((across - 0.5) ** 2 + (down - 0.5) ** 2)
    scene += case.noise * camera.noise * noise
    grey = np.clip(np.rint(scene), 0, 255).astype(np.uint8)
    return ObjectRendering(grey, (inside >= 0.5).astype(np.uint8))


def make_object_background_cohort(
    out: Path,
    spec: ObjectBackgroundSpec = PRESETS["study"],
    seed: int = 0,
    progress: Progress | None = None,
) -> Cohort:
    """Write a cohort with known truth: pictures and masks (PNG), parameters.json, truth.csv, previews/.

    Args:
        out: a new or empty folder.
        spec: what the cohort is made of.
        seed: the same one gives the same bytes.
        progress: told after each picture.

    Raises:
        CohortError: `out` is not empty, or can't be written.
    """
    with whole_folder(out, CohortError) as folder:
        _write(folder, spec, seed, progress)
    return read_cohort(out)


def _draw(spec: ObjectBackgroundSpec, seed: int) -> Iterator[ObjectCase]:
    for site in range(1, spec.sites + 1):
        internal = site <= INTERNAL_SITES
        count = spec.patients_per_site if internal else spec.external_patients_per_site
        kinds, agreement = labels_and_agreement(np.random.default_rng((seed, site, 1)), count, 0.5)
        probability = (1 + spec.shortcut) / 2
        if not internal:
            probability = (1 - spec.shortcut) / 2 if spec.external_shortcut == "reversed" else 0.5
        for number in range(count):
            kind = int(kinds[number])
            agrees = bool(agreement[number] < probability)
            yield _picture(spec, (seed, site, number), kind, bool(kind) == agrees)


def _picture(spec: ObjectBackgroundSpec, key: tuple[int, int, int], kind: int, striped: bool) -> ObjectCase:
    generator = np.random.default_rng((*key, 2))
    radius = generator.uniform(0.16, 0.26)
    reach = 1.35 * radius
    bright = generator.random() < 0.5  # than the background, or darker: brightness tells nothing
    return ObjectCase(
        case_id=f"{site_name(key[1])}-{key[2] + 1:04d}",
        site=site_name(key[1]),
        kind=kind,
        shortcut=striped,
        size=spec.size,
        middle=(generator.uniform(reach, 1 - reach), generator.uniform(reach, 1 - reach)),
        radius=radius,
        depth=generator.uniform(*spec.lobes),
        turn=generator.uniform(0, 2 * math.pi),
        grey=generator.uniform(170, 205) if bright else generator.uniform(20, 55),
        seed=int(generator.integers(2**31)),
        noise=spec.noise,
        camera=CAMERAS[key[1] - 1],
    )


def _inside(case: ObjectCase) -> NDArray[np.float64]:
    """Return (rows, columns) the share of each pixel that the object covers."""
    down, across = _positions(case.size)
    x, y = across - case.middle[0], down - case.middle[1]
    angle = np.arctan2(y, x)
    outline = case.radius * (1 + case.depth * np.cos(_LOBES[case.kind] * (angle - case.turn)))
    return np.clip(0.5 + (outline - np.hypot(x, y)) * case.size, 0, 1)


def _positions(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (rows, 1) and (1, columns): the pixels' middles, as shares of the side."""
    middles = (np.arange(size) + 0.5) / size
    return middles[:, None], middles[None]


def _write(folder: Path, spec: ObjectBackgroundSpec, seed: int, progress: Progress | None) -> None:
    for name in ("images", "masks", "previews", "truth"):
        (folder / name).mkdir()
    masked = {site_name(number) for number in spec.mask_sites}
    cases = object_cases(spec, seed)
    rows: list[dict[str, object]] = []
    sheets: dict[str, list[NDArray[np.uint8]]] = {}
    for done, case in enumerate(cases, start=1):
        rendering = render_picture(case)
        file = f"{case.case_id}.png"
        write_png(folder / "images" / file, rendering.grey)
        write_png(folder / "truth" / file, rendering.mask * np.uint8(255))
        mask = None
        if case.site in masked:
            mask = f"masks/{file}"
            write_png(folder / mask, rendering.mask * np.uint8(255))
        rows.append(
            {
                "case_id": case.case_id,
                "patient_id": case.case_id,
                "site": case.site,
                "image": f"images/{file}",
                "mask": mask,
                "label": KINDS[case.kind],
                "shortcut": int(case.shortcut),
            }
        )
        sheets.setdefault(case.site, []).append(rendering.grey)
        if progress is not None:
            progress(done, len(cases))
    for site, pictures in sheets.items():
        write_png(folder / "previews" / f"{site}.png", np.hstack(pictures[:_SHEET]))
    write_parameters(folder, spec, seed, cases)
    truth = ((case.case_id, f"truth/{case.case_id}.png") for case in cases)
    write_new(folder / "truth.csv", table_text([("case_id", "object"), *truth]))
    write_cohort(folder, _cohort_spec(spec, seed), rows)


def _cohort_spec(spec: ObjectBackgroundSpec, seed: int) -> CohortSpec:
    return CohortSpec(
        name=f"object-background-seed{seed}",
        modality="photo",
        dimensions=2,
        classes=KINDS,
        positive=KINDS[1],
        mask=MaskSpec(name="object", values=(255,)),
        intensity=IntensitySpec(unit="grey", window=(0, 255)),
        spacing=(1.0, 1.0),
        site_groups=site_groups(spec.sites, INTERNAL_SITES),
        columns={"shortcut": "1 where the background is striped, 0 where it is mottled"},
    )


OBJECT_BACKGROUND: Phantom[ObjectBackgroundSpec, ObjectCase] = Phantom(
    name="object-background",
    presets=PRESETS,
    make=make_object_background_cohort,
    counterfactuals=Counterfactuals(
        truth="object",
        case=ObjectCase,
        render=lambda case: render_picture(case).grey,
        switches={
            "shortcut": Switch(
                "the striped background",
                lambda case: case.shortcut,
                lambda case: replace(case, shortcut=not case.shortcut),
            ),
            "marker": Switch(
                "the five-lobed outline",
                lambda case: bool(case.kind),
                lambda case: replace(case, kind=1 - case.kind),
            ),
        },
    ),
)
