from __future__ import annotations

import tracemalloc
from itertools import permutations, product
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from threefold.errors import ImageError
from threefold.experiment import PreprocessingSpec
from threefold.images import memory, preprocessing
from threefold.images.geometry import Image
from threefold.images.preprocessing import place, prepare_image, prepare_labels, resize, restore

SOURCE = Path("case.nii.gz")


def image_of(array: np.ndarray, affine: np.ndarray | None = None) -> Image:
    return Image(array, np.eye(4) if affine is None else affine, SOURCE)


def ellipsoid(shape: tuple[int, ...], fill: float = 0.7) -> np.ndarray:
    """An off-centre ellipsoid of 1 in 0."""
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    return (sum(((g - 0.1) / fill) ** 2 for g in grids) <= 1).astype(np.uint8)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


# --- where things go ----------------------------------------------------------------------------------


def reoriented(
    array: np.ndarray, affine: np.ndarray, axes: tuple[int, ...], flips: tuple[bool, ...]
) -> Image:
    """The same voxels at the same places in the patient, stored in another order."""
    order = np.eye(4)
    for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
        order[:3, new] = 0
        order[old, new] = -1 if flip else 1
        if flip:
            order[old, 3] = array.shape[old] - 1
    for new in range(len(axes), 3):
        order[:3, new] = 0
        order[new, new] = 1
    stored = array.transpose(axes)[tuple(slice(None, None, -1 if f else 1) for f in flips)]
    return image_of(np.ascontiguousarray(stored), affine @ order)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_a_volume_is_the_same_however_it_was_stored(axes: tuple[int, ...], flips: tuple[bool, ...]) -> None:
    array = np.random.default_rng(0).normal(size=(12, 10, 6)).astype(np.float32)
    affine = np.array([[1, 0.1, 0, -6], [-0.1, 1, 0, -5], [0, 0, 2.0, 0], [0, 0, 0, 1]])
    spec = PreprocessingSpec(size=(12, 12, 12))
    reference, _ = prepare_image(image_of(array, affine), spec, unit="arbitrary", window=(-3, 3))
    stored = reoriented(array, affine, axes, flips)
    assert_allclose(
        stored.affine[:3, :3].T @ stored.affine[:3, :3], (affine.T @ affine)[np.ix_(axes, axes)], atol=1e-9
    )
    prepared, placement = prepare_image(stored, spec, unit="arbitrary", window=(-3, 3))
    assert_array_equal(prepared, reference)
    back = restore(prepared[0], placement, order="linear")
    assert back.shape == stored.array.shape


@pytest.mark.parametrize("axes", [(0, 1), (1, 0)])
@pytest.mark.parametrize("flips", list(product([False, True], repeat=2)))
def test_an_axial_slice_shows_posterior_below_and_left_on_the_right(
    axes: tuple[int, int], flips: tuple[bool, bool]
) -> None:
    display = np.arange(30, dtype=np.float32).reshape(5, 6)  # rows to posterior, columns to left
    affine = np.array([[0, -1.0, 0, 3], [-1.0, 0, 0, 2], [0, 0, 4, 0], [0, 0, 0, 1]])
    stored = reoriented(display, affine, axes, flips)
    prepared, placement = prepare_image(stored, PreprocessingSpec(size=(6, 6)), unit="grey", window=(0, 29))
    assert_allclose(prepared[0, :5] * 29, display, atol=1e-5)
    assert_array_equal(prepared[0, 5], 0)
    assert_array_equal(restore(prepared[0], placement, order="nearest"), stored.array / np.float32(29))


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ((0, 0, 1), (0, 1, 0), np.s_[::-1, ::-1]),  # sagittal: rows to inferior, columns to posterior
        ((0, 0, -1), (-1, 0, 0), np.s_[:, :]),  # coronal: rows to inferior, columns to left
        ((-1, 0, 0), (0, 0, -1), None),  # coronal, stored transposed
    ],
)
def test_other_planes_stand_upright(row: tuple[int, ...], column: tuple[int, ...], expected: object) -> None:
    array = np.arange(16, dtype=np.float32).reshape(4, 4)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row, column
    affine[:3, 2] = np.cross(row, column)
    prepared, _ = prepare_image(
        image_of(array, affine), PreprocessingSpec(size=(4, 4)), unit="grey", window=(0, 15)
    )
    wanted = array.T if expected is None else array[expected]
    assert_allclose(prepared[0] * 15, wanted, atol=1e-5)


def test_aspect_is_kept_in_millimetres_and_the_rest_is_padding() -> None:
    affine = np.array([[0, -0.5, 0, 0], [-1.0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    image = image_of(np.ones((100, 100)), affine)  # 100 mm x 50 mm
    placement = place(image, (64, 64))
    assert placement.scaled == (64, 32)
    assert placement.offset == (0, 16)
    prepared, _ = prepare_image(image, PreprocessingSpec(size=(64, 64)), unit="grey", window=(0, 1))
    assert_array_equal(prepared[0, :, :16], 0)
    assert_array_equal(prepared[0, :, 48:], 0)
    assert_allclose(prepared[0, :, 16:48], 1, atol=1e-6)


def test_what_can_be_read_but_not_prepared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image_of(np.broadcast_to(np.int16(7), (512, 512, 256)))
    monkeypatch.setattr(memory, "available_memory_bytes", lambda: 2**29)
    with pytest.raises(
        ImageError,
        match=r"case\.nii\.gz: 512 x 512 x 256 voxels would take 576\.0 MiB of memory to prepare, but 512\.0",
    ):
        prepare_image(whole, PreprocessingSpec(size=(8, 8, 8)), unit="HU", window=(0, 80))


def test_the_memory_that_preparing_takes_is_what_is_asked_for() -> None:
    volume = image_of(np.zeros((128, 128, 96), np.int16))
    spec = PreprocessingSpec(size=(64, 64, 64))
    tracemalloc.start()
    try:
        prepare_image(volume, spec, unit="HU", window=(0, 80))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < preprocessing._BYTES_A_VOXEL * volume.array.size + 3 * 4 * 64**3


def test_a_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(ImageError, match=r"case\.nii\.gz: has shape \(4, 4, 4\); expected 2 axes"):
        place(image_of(np.zeros((4, 4, 4))), (8, 8))


# --- intensity ----------------------------------------------------------------------------------------


def test_windows_in_hounsfield_units() -> None:
    values = np.array([[-1000.0, -32.5, 0, 20], [40, 80, 182.5, 2000]])
    spec = PreprocessingSpec(size=(4, 4), windows=("brain", "subdural", "bone", (0.0, 200.0)))
    affine = np.array([[0, -1.0, 0, 0], [-1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    prepared, _ = prepare_image(image_of(values, affine), spec, unit="HU", window=None)
    assert prepared.shape == (4, 4, 4)
    assert prepared.dtype == np.float32
    for channel, (low, high) in zip(prepared, ((0, 80), (-32.5, 182.5), (-800, 2000), (0, 200)), strict=True):
        assert_allclose(channel[1:3], np.clip((values - low) / (high - low), 0, 1), atol=1e-6)


@pytest.mark.parametrize("unit", ["grey", "arbitrary"])
def test_a_named_window_needs_hounsfield_units(unit: str) -> None:
    spec = PreprocessingSpec(size=(4, 4), windows=("brain",))
    with pytest.raises(ImageError, match=f"'brain' is in HU, but the cohort's unit is {unit}"):
        prepare_image(image_of(np.zeros((4, 4))), spec, unit=unit, window=None)


@pytest.mark.parametrize(
    ("windows", "says"), [(("lung",), "no window 'lung'"), (((5.0, 5.0),), "low below high")]
)
def test_windows_that_make_no_sense(windows: tuple[object, ...], says: str) -> None:
    spec = PreprocessingSpec.model_validate({"size": (4, 4), "windows": windows})
    with pytest.raises(ImageError, match=says):
        prepare_image(image_of(np.zeros((4, 4))), spec, unit="HU", window=None)


def test_without_a_window_it_is_the_images_own_percentiles() -> None:
    array = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    low, high = np.percentile(array, (1, 99))
    prepared, placement = prepare_image(
        image_of(array), PreprocessingSpec(size=(32, 32)), unit="arbitrary", window=None
    )
    assert_allclose(
        restore(prepared[0], placement, order="linear"),
        np.clip((array - low) / (high - low), 0, 1),
        atol=1e-5,
    )


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0])
def test_a_constant_image_is_black(value: float) -> None:
    prepared, _ = prepare_image(
        image_of(np.full((8, 8), value)), PreprocessingSpec(size=(8, 8)), unit="grey", window=None
    )
    assert_array_equal(prepared, 0)


def test_a_small_object_on_nothing_is_seen() -> None:
    array = np.zeros((64, 64))
    array[10, 20] = 5
    prepared, _ = prepare_image(image_of(array), PreprocessingSpec(size=(64, 64)), unit="grey", window=None)
    assert prepared.max() == 1


def test_bone_does_not_smear_into_brain() -> None:
    """A voxel that is half brain, half bone: windowed first, it can't exceed half of the way to white."""
    array = np.full((8, 8), 40.0)
    array[:, 1::2] = 1500.0
    prepared, _ = prepare_image(image_of(array), PreprocessingSpec(size=(4, 4)), unit="HU", window=(0, 80))
    assert prepared.max() < 0.8


# --- resampling ---------------------------------------------------------------------------------------


@given(
    old=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    new=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_resizing_is_what_pillow_calls_bilinear(
    old: tuple[int, int], new: tuple[int, int], seed: int
) -> None:
    array = np.random.default_rng(seed).random(old, np.float32)
    reference = np.asarray(PIL.Image.fromarray(array).resize(new[::-1], PIL.Image.Resampling.BILINEAR))
    assert_allclose(resize(array, new), reference, atol=2e-6)


def test_resizing_a_volume_is_the_same_along_each_axis() -> None:
    array = np.random.default_rng(0).random((9, 7, 5), np.float32)
    whole = resize(array, (4, 7, 11))
    assert whole.shape == (4, 7, 11)
    for j in range(7):
        assert_allclose(whole[:, j], resize(array[:, j], (4, 11)), atol=1e-6)


@given(
    shape=st.lists(st.integers(60, 200), min_size=2, max_size=2),
    spacing=st.lists(st.floats(0.4, 1.2), min_size=2, max_size=2),
    flips=st.tuples(st.booleans(), st.booleans()),
    swap=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_mask_comes_back_where_it_was(
    shape: list[int], spacing: list[float], flips: tuple[bool, bool], swap: bool
) -> None:
    mask = ellipsoid(tuple(shape))
    affine = np.diag([*spacing, 5.0, 1])
    image = reoriented(mask, affine, (1, 0) if swap else (0, 1), flips)
    placement = place(image, (224, 224))
    labels = prepare_labels(image, placement)
    back = restore(labels, placement, order="nearest")
    assert back.dtype == np.uint8
    assert dice(back, image.array) > 0.98
    soft = restore(labels.astype(np.float32), placement, order="linear")
    assert dice((soft >= 0.5).astype(np.uint8), image.array) > 0.98


@pytest.mark.parametrize(
    ("shape", "spacing", "size"),
    [
        ((512, 512), (0.488, 0.488), (224, 224)),
        ((650, 650), (1, 1), (224, 224)),
        ((512, 300), (0.4, 0.7), (224, 160)),
    ],
)
def test_a_shrunk_mask_comes_back_where_it_was(
    shape: tuple[int, ...], spacing: tuple[float, float], size: tuple[int, ...]
) -> None:
    image = image_of(ellipsoid(shape), np.diag([*spacing, 5.0, 1]))
    placement = place(image, size)
    assert dice(restore(prepare_labels(image, placement), placement, order="nearest"), image.array) > 0.98


def test_a_mask_of_a_volume_comes_back_where_it_was() -> None:
    affine = np.array([[0, 0, 2.5, 0], [-0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0], [0, 0, 0, 1]])
    image = image_of(ellipsoid((120, 100, 40)), affine)
    placement = place(image, (128, 128, 128))
    assert dice(restore(prepare_labels(image, placement), placement, order="nearest"), image.array) > 0.98


@pytest.mark.parametrize("shape", [(32, 32), (32, 20), (16, 32, 8)])
def test_a_grid_that_fits_is_only_moved(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    size = (32,) * len(shape)
    image = image_of(rng.integers(0, 5, shape).astype(np.int16))
    placement = place(image, size)
    assert placement.scaled == placement.canonical_shape
    labels = prepare_labels(image, placement)
    assert labels.sum() == image.array.sum()
    assert_array_equal(restore(labels, placement, order="nearest"), image.array)
    prepared, _ = prepare_image(image, PreprocessingSpec(size=size), unit="grey", window=(0, 4))
    assert_allclose(restore(prepared[0], placement, order="linear") * 4, image.array, atol=1e-6)


def test_image_and_labels_land_on_the_same_voxels() -> None:
    mask = ellipsoid((150, 90), 0.5)
    image = image_of(mask * 100.0, np.diag([0.7, 1.1, 3, 1]))
    prepared, placement = prepare_image(image, PreprocessingSpec(size=(96, 80)), unit="grey", window=(0, 100))
    labels = prepare_labels(image_of(mask, image.affine), placement)
    assert dice((prepared[0] > 0.5).astype(np.uint8), labels) > 0.97


def test_labels_are_checked() -> None:
    placement = place(image_of(np.zeros((8, 8))), (8, 8))
    with pytest.raises(ImageError, match=r"shape \(8, 7\); expected \(8, 8\)"):
        prepare_labels(image_of(np.zeros((8, 7), np.uint8)), placement)
    for wrong in (-1, 256):
        with pytest.raises(ImageError, match="expected labels from 0 to 255"):
            prepare_labels(image_of(np.full((8, 8), wrong)), placement)
    with pytest.raises(ValueError, match="placement's grid"):
        restore(np.zeros((8, 9)), placement, order="nearest")
