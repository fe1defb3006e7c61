"""Every kind of image against every kind of network, and each rule by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from threefold.cohorts.cohort import CohortSpec
from threefold.cohorts.meaning import objections
from threefold.cohorts.trained_on import Intensities, TrainedOn
from threefold.cohorts.voxel_values import measure
from threefold.images.facts import Facts
from threefold.images.geometry import Image

SIDE = 48
AFFINE = np.diag([-0.5, -0.5, 5.0, 1.0])


def head(shape: tuple[int, ...] = (SIDE, SIDE)) -> NDArray[np.float64]:
    """A head in CT numbers: air, a skull, brain that varies slowly, a bright bleeding."""
    centre = [(n - 1) / 2 for n in shape]
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    radius = np.sqrt(sum(((axis - c) / (0.45 * 2 * c)) ** 2 for axis, c in zip(grid, centre, strict=True)))
    values = np.where(radius < 1, 30 + 10 * np.sin(grid[0] / 5), -1000.0)
    values[(radius > 0.9) & (radius < 1)] = 900
    values[radius < 0.2] = 70
    return values


HEAD = head()
RESCALED = Facts("dicom", "CT", "HU", "MONOCHROME2", 12, 1, True, True, slice_thickness=5.0)
STORED = replace(RESCALED, unit=None)
MR = Facts("dicom", "MR", None, "MONOCHROME2", 12, 1, True, True)
NIFTI = Facts("nifti", spacing_stated=True, place_stated=True)
PICTURE = Facts("picture", photometric="L", bits=8, channels=1)

MAGNITUDE = np.where(
    HEAD > -500, 400 + 8 * (HEAD.clip(0, 80) - 30), 10 + np.add.outer(range(SIDE), range(SIDE)) / 10
)
SHOWN = np.rint(HEAD.clip(0, 80) / 80 * 255)
NOISE = np.random.default_rng(0).integers(0, 255, HEAD.shape).astype(float)

GIVEN: dict[str, tuple[Facts, NDArray[Any]]] = {
    "CT": (RESCALED, HEAD),
    "CT shown inverted": (replace(RESCALED, photometric="MONOCHROME1"), HEAD),
    "CT of atomic numbers": (replace(RESCALED, unit="Z_EFF"), HEAD),
    "CT in modified HU": (replace(RESCALED, unit="HU_MOD"), HEAD),
    "CT without rescale, stored values": (STORED, HEAD + 1024),
    "CT without rescale, CT numbers": (STORED, HEAD),
    "MR": (MR, MAGNITUDE),
    "CR": (replace(MR, modality="CR"), MAGNITUDE),
    "ultrasound": (replace(MR, modality="US", bits=8), SHOWN),
    "NIfTI in HU": (NIFTI, HEAD),
    "NIfTI in HU, padded": (NIFTI, np.pad(HEAD, 4, constant_values=-3024)),
    "NIfTI of stored values": (NIFTI, HEAD + 1024),
    "NIfTI of stored values, 1000 added": (NIFTI, HEAD + 1000),
    "NIfTI of stored values, padded": (NIFTI, np.pad(HEAD + 1024, 4, constant_values=-2000)),
    "NIfTI cut to a window": (NIFTI, HEAD.clip(0, 80)),
    "NIfTI of grey values": (NIFTI, SHOWN),
    "NIfTI of 0 to 1": (NIFTI, HEAD.clip(0, 80) / 80),
    "NIfTI of MR": (NIFTI, MAGNITUDE),
    "8-bit picture": (PICTURE, SHOWN),
    "16-bit picture": (replace(PICTURE, bits=16), HEAD + 1024),
    "constant": (NIFTI, np.full_like(HEAD, 40)),
    "noise": (NIFTI, NOISE),
}
# What a network trained on HU, on grey pictures and on MR says: - nothing, n a note, R refused.
EXPECTED = {
    "CT": "-RR",
    "CT shown inverted": "nRR",
    "CT of atomic numbers": "RRR",
    "CT in modified HU": "nRR",
    "CT without rescale, stored values": "RRR",
    "CT without rescale, CT numbers": "nRR",
    "MR": "RR-",
    "CR": "RRR",
    "ultrasound": "RRR",
    "NIfTI in HU": "-RR",
    "NIfTI in HU, padded": "nRR",
    "NIfTI of stored values": "RR-",
    "NIfTI of stored values, 1000 added": "RR-",
    "NIfTI of stored values, padded": "RR-",
    "NIfTI cut to a window": "nn-",
    "NIfTI of grey values": "Rn-",
    "NIfTI of 0 to 1": "RR-",
    "NIfTI of MR": "nR-",
    "8-bit picture": "R-n",
    "16-bit picture": "RRn",
    "constant": "RRR",
    "noise": "RRR",
}


def image_of(facts: Facts, array: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> Image:
    return Image(array, affine, Path("x"), (), facts)


def spec_of(modality: str, unit: str, **more: object) -> CohortSpec:
    values = {"name": "c", "modality": modality, "dimensions": 2, "intensity": {"unit": unit}, **more}
    return CohortSpec.model_validate(values)


def seen_of(facts: Facts, array: NDArray[Any], spec: CohortSpec, **changes: Any) -> TrainedOn:
    """What training on two images alike leaves."""
    values, size = measure(array, spec.intensity), tuple((float(n), float(n)) for n in array.shape)
    found = {name: getattr(values, name) for name in Intensities.model_fields}
    pairs = {name: None if value is None else (value, value) for name, value in found.items()}

    def count(value: object) -> dict[str, int]:
        return {} if value is None else {str(value): 2}

    return TrainedOn.model_validate(
        {
            "cases": 2,
            "measured": 2,
            "formats": count(facts.format),
            "modalities": count(facts.modality),
            "units": count(facts.unit),
            "photometric": count(facts.photometric),
            "bits": count(facts.bits),
            "spacing_mm": ((0.5, 0.5),) * 2 if facts.spacing_stated else None,
            "extent_mm": tuple((n / 2, n / 2) for n, _ in size) if facts.spacing_stated else None,
            "thickness_mm": None if facts.slice_thickness is None else (facts.slice_thickness,) * 2,
            "size": size,
            "intensities": pairs,
            "planes": {"axial": 2} if facts.place_stated else None,
            "tilt_degrees": (0.0, 0.0) if facts.place_stated else None,
            "mask_follows_label": None,
            **changes,
        }
    )


HU, GREY, ARBITRARY = spec_of("ct", "HU"), spec_of("ct", "grey"), spec_of("mri", "arbitrary")
BRAIN = spec_of("ct", "HU", intensity={"unit": "HU", "window": (0, 80)})
NETWORKS = (
    (HU, seen_of(RESCALED, HEAD, HU)),
    (GREY, seen_of(PICTURE, SHOWN, GREY)),
    (ARBITRARY, seen_of(MR, MAGNITUDE, ARBITRARY)),
)


def verdict(image: Image, spec: CohortSpec, seen: TrainedOn | None, *, vouched: bool = False) -> str:
    found = list(objections(image, spec, seen, vouched=vouched))
    return "R" if any(one.refused for one in found) else "n" if found else "-"


def test_the_table_is_whole() -> None:
    assert EXPECTED.keys() == GIVEN.keys()


@pytest.mark.parametrize("given", GIVEN)
def test_every_image_against_every_network(given: str) -> None:
    image = image_of(*GIVEN[given])
    assert "".join(verdict(image, spec, seen) for spec, seen in NETWORKS) == EXPECTED[given]


@pytest.mark.parametrize("given", GIVEN)
def test_what_a_run_of_an_earlier_version_refuses_a_known_one_does_too(given: str) -> None:
    """Without what the training images were, less can be noted; what is proven stays proven."""
    image = image_of(*GIVEN[given])
    unknown = "".join(verdict(image, spec, None) for spec, _ in NETWORKS)
    for before, after in zip(unknown, EXPECTED[given], strict=True):
        assert after == "R" or before != "R"


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("given", ["CT", "NIfTI of stored values", "NIfTI of 0 to 1", "noise"])
def test_the_stored_type_and_the_number_of_axes_change_nothing(given: str, dtype: Any) -> None:
    facts, array = GIVEN[given]
    if given == "NIfTI of 0 to 1" and np.dtype(dtype).kind == "i":
        return
    volume = np.repeat(array[..., None], 3, axis=2).astype(dtype)
    if given == "noise":
        volume = np.random.default_rng(1).integers(0, 255, volume.shape).astype(dtype)
    spec = NETWORKS[0][0]
    assert verdict(image_of(facts, array.astype(dtype)), spec, None) == EXPECTED[given][0]
    assert verdict(image_of(facts, volume), spec, None) == EXPECTED[given][0]


@pytest.mark.parametrize(
    "modality", ["CT", "MR", "CR", "DX", "US", "PT", "NM", "MG", "XA", "RF", "SM", "XC", "OT"]
)
def test_a_stated_modality_is_one_trained_on(modality: str) -> None:
    of = {"ct": "CT", "mri": "MR"}
    for name, code in of.items():
        spec = spec_of(name, "arbitrary")
        image = image_of(replace(MR, modality=modality), MAGNITUDE)
        fits = modality in (code, "OT")
        assert (verdict(image, spec, None) == "R") != fits
        seen = seen_of(MR, MAGNITUDE, spec, modalities={code: 1, modality: 1})
        assert verdict(image, spec, seen) != "R"  # the training images stated it too


Change = Callable[[Image], Image]


def _spacing(factor: float) -> Change:
    return lambda image: replace(image, affine=image.affine @ np.diag([factor, factor, 1, 1]))


def _facts(**changes: Any) -> Change:
    return lambda image: replace(image, facts=replace(image.facts, **changes))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_spacing(1.0), ""),
        (_spacing(1.9), ""),
        (
            _spacing(2.5),
            "voxels far from the spacing of the training images (1.25 x 1.25 mm, there 0.5 to 0.5",
        ),
        (_spacing(0.3), "a field of view far from the training images'"),
        (_facts(slice_thickness=9.0), ""),
        (
            _facts(slice_thickness=0.6),
            "a slice thickness far from the training images' (0.6 mm, there 5 to 5)",
        ),
        (_facts(spacing_stated=False), "states no spacing, and the training images did"),
        (lambda image: replace(image, array=np.tile(HEAD, (3, 1))), "a field of view far from the training"),
        (lambda image: replace(image, array=HEAD.clip(None, 0) - 40), ""),
        (
            lambda image: replace(image, array=HEAD * 3 + 2000),
            "values far outside those of the training images",
        ),
    ],
)
def test_what_is_far_from_the_training_images_is_noted(change: Change, said: str) -> None:
    spec, seen = NETWORKS[0]
    found = [
        one.of_network() for one in objections(change(image_of(RESCALED, HEAD)), spec, seen, vouched=False)
    ]
    assert any(said in text for text in found) if said else not found


INSIDE = HEAD > -500
DOTS = np.random.default_rng(2).normal(size=(SIDE, SIDE))
SMOOTHED = sum(np.roll(DOTS, (i, j), (0, 1)) for i in range(3) for j in range(3))
ONE_VOXEL = np.zeros((128, 128))
ONE_VOXEL[5, 7] = 80


@pytest.mark.parametrize(
    ("array", "expected", "said"),
    [
        (HEAD, "-", ""),
        (HEAD + 5, "-", ""),
        (HEAD.clip(None, 60), "-", ""),
        (np.where(INSIDE, 607.0, -1000), "n", "the median, cut to 0 to 80, is 80, there"),  # padded MR
        (312 - HEAD, "n", "the median, cut to 0 to 80, is 80, there"),
        (np.linspace(-1000, 1000, SIDE * SIDE).reshape(SIDE, SIDE), "n", "the median, cut to 0 to 80"),
        (np.where(INSIDE & (np.arange(SIDE) < 20), -100, HEAD), "n", "the share within the window is 0."),
        (SMOOTHED * 150 - 200, "n", "nothing larger than a few voxels"),
        (SMOOTHED - 1000, "R", "the image is blank"),  # air, which the window hides
        (ONE_VOXEL, "R", "the image is blank"),
        (np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 80.0, "R", "the image is noise"),  # a checkerboard
    ],
)
def test_what_is_not_air_is_held_against_the_training_images_in_the_window(
    array: NDArray[np.float64], expected: str, said: str
) -> None:
    image, seen = image_of(NIFTI, array), seen_of(NIFTI, HEAD, BRAIN)
    assert verdict(image, BRAIN, seen) == expected
    assert said in "; ".join(one.of_network() for one in objections(image, BRAIN, seen, vouched=False))


def _turned(degrees: float) -> NDArray[np.float64]:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


SAGITTAL = np.array([[0, 0, 5.0, 0], [-0.5, 0, 0, 0], [0, -0.5, 0, 0], [0, 0, 0, 1]])
SHEARED = AFFINE + np.array([[0, 0.2, 0, 0], *[[0.0] * 4] * 3])


@pytest.mark.parametrize(
    ("affine", "said"),
    [
        (AFFINE, ""),
        (_turned(20), ""),
        (_turned(90), ""),
        (_turned(45), "turned against the patient's axes, further than the training images (45 degrees"),
        (SAGITTAL, "another plane than that of any training image (sagittal, there axial)"),
        (SHEARED, "a sheared grid: its axes are not at right angles (68 degrees)"),
    ],
)
def test_slices_lie_as_those_of_the_training_did(affine: NDArray[np.float64], said: str) -> None:
    spec, seen = NETWORKS[0]
    found = [
        one.of_network() for one in objections(image_of(RESCALED, HEAD, affine), spec, seen, vouched=False)
    ]
    assert any(said in text for text in found) if said else not found
    of_before = seen.model_copy(update={"planes": None, "tilt_degrees": None})
    assert verdict(image_of(RESCALED, HEAD, affine), spec, of_before) == "-"
    unplaced = image_of(replace(RESCALED, place_stated=False), HEAD, affine)
    assert verdict(unplaced, spec, seen) == "-"


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((SIDE, SIDE, 3), AFFINE, ""),
        ((SIDE, SIDE, 3), AFFINE @ np.diag([3, 3, 1, 1]), "the spacing of the training images (1.5 x 1.5 mm"),
        ((SIDE, 2, SIDE), AFFINE, "a field of view far from the training images' (1 x 24 mm"),
        ((SIDE, SIDE, 3), AFFINE @ np.diag([1, 1, 3, 1]), "a slice thickness far from"),
    ],
)
def test_slices_of_a_volume_are_held_against_training_slices(
    shape: tuple[int, ...], affine: NDArray[np.float64], said: str
) -> None:
    spec, seen = NETWORKS[0]
    volume = np.repeat(HEAD[..., None], shape[2], axis=2)[:, : shape[1]]
    image = image_of(replace(RESCALED, slice_thickness=None), volume, affine)
    found = "; ".join(one.of_network() for one in objections(image, spec, seen, vouched=False))
    assert said in found if said else not found


def test_slices_of_an_oblique_or_turned_grid_are_measured_along_canonical_axes() -> None:
    """A grid of 0.5 x 3 mm that is stored columns first has the same spacing as the training images."""
    seen = seen_of(RESCALED, HEAD, HU, spacing_mm=[(3.0, 3.0), (0.5, 0.5)], extent_mm=[(144, 144), (24, 24)])
    rows_first = np.array([[0, -0.5, 0, 0], [-3.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    columns_first = np.array([[-0.5, 0, 0, 0], [0, -3.0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])
    for affine in (rows_first, columns_first):
        image = image_of(RESCALED, HEAD, affine)
        assert not list(objections(image, NETWORKS[0][0], seen, vouched=False))


def test_a_cohort_speaks_for_its_pictures_but_not_against_their_values() -> None:
    spec = spec_of("ct", "HU")
    assert verdict(image_of(PICTURE, SHOWN), spec, None, vouched=True) == "R"
    assert verdict(image_of(replace(PICTURE, bits=16), HEAD.clip(0, 80)), spec, None, vouched=True) == "n"


@pytest.mark.parametrize("given", [*GIVEN, "blank"])
def test_what_is_said_reads_as_sentences(given: str) -> None:
    image = image_of(*(GIVEN[given] if given != "blank" else (NIFTI, ONE_VOXEL)))
    for spec, seen in (*NETWORKS, (BRAIN, None)):
        for one in objections(image, spec, seen, vouched=False):
            assert ") (" not in one.of_network()
            assert "?" not in one.of_network()  # it stands within other sentences


def test_words_name_what_was_expected_and_found() -> None:
    (one,) = objections(image_of(MR, MAGNITUDE), spec_of("ct", "arbitrary"), None, vouched=True)
    assert one.of_cohort() == "the file states another modality, though cohort.yaml says modality: ct"
    assert one.of_network() == (
        "the file states another modality (Modality MR), but the network was trained on CT. Give an image of "
        "that modality, or correct the file's header."
    )


@pytest.mark.parametrize("shape", [(64, 64), (33, 47), (40, 31, 9), (1000, 700), (200, 150, 20)])
def test_correlation_of_neighbours_is_pearsons(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    array = rng.normal(size=shape).cumsum(axis=0) + rng.normal(size=shape)
    expected = [
        np.corrcoef(np.moveaxis(array, axis, 0)[:-1].ravel(), np.moveaxis(array, axis, 0)[1:].ravel())[0, 1]
        for axis in (0, 1)
    ]
    # Of large arrays some lines are looked at.
    assert measure(array, HU.intensity).correlation == pytest.approx(
        np.mean(expected), abs=1e-9 if array.size < 1e5 else 0.1
    )


def test_shares_and_percentiles_of_a_large_image_are_those_of_all_its_voxels() -> None:
    array = head((512, 512))
    found = measure(array, HU.intensity)
    assert found.air == pytest.approx((array < -500).mean(), abs=0.01)
    assert found.dense == pytest.approx((array > 500).mean(), abs=0.01)
    assert (found.low, found.high) == (array.min(), array.max())
    assert found.p50 == pytest.approx(np.percentile(array, 50), abs=2)
