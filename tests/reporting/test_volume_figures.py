"""Volumes are shown the right way round, cut where they should be, and the right ones are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image as Picture
from sklearn.metrics import confusion_matrix

from threefold.cohorts.cohort import Cohort, CohortSpec, write_cohort
from threefold.core.targets import MaskSpec
from threefold.evaluation.predictions import Predictions, validate
from threefold.evaluation.structures import NUMBERS, validate_structures
from threefold.experiment import EvaluationSpec, PreprocessingSpec
from threefold.images.writing import write_nifti
from threefold.reporting.examples import BEST, DISAGREEMENT, UNLABELLED, WORST, choose_volumes
from threefold.reporting.figures import confusion_counts, confusion_figure
from threefold.reporting.results import read_results
from threefold.reporting.run_report import choose_examples, write_report
from threefold.reporting.volume_figures import (
    COLOURS,
    PLANES,
    Surface,
    VolumeExample,
    crop,
    cut,
    draw_structures,
    surface_of,
    volume_figure,
)

from ..cohorts.cases import retold

CLASSES = ("one", "two", "three")
NAMES = ("tube", "ball")
SHAPE = (14, 12, 10)


def tube(shape: tuple[int, ...] = SHAPE, *, shift: int = 0) -> NDArray[np.uint8]:
    labels = np.zeros(shape, np.uint8)
    labels[3 + shift : 9 + shift, 5, 4:6] = 1
    labels[10, 8, 6] = 2
    return labels


def example(**changes: Any) -> VolumeExample:
    image = np.linspace(0, 1, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)
    whole = VolumeExample("title", image, tube(), tube(shift=1), NAMES, (1.0, 1.0, 2.0))
    return replace(whole, **changes)


# The pictures


def test_planes_are_seen_as_radiologists_do() -> None:
    volume = np.zeros((4, 5, 6))
    volume[-1, -1, -1] = 1  # right, anterior, superior
    for plane in PLANES:
        left, right, top, bottom = plane.letters
        rows, columns = np.nonzero(cut(volume, plane, volume.shape[plane.axis] - 1))
        assert (rows, columns) == (0, 0)
        assert {left, top} < {"R", "A", "S"}
        assert {right, bottom} < {"L", "P", "I"}
    assert [cut(volume, plane, 0).shape for plane in PLANES] == [(5, 4), (6, 4), (6, 5)]


def test_the_crop_holds_the_foreground_and_says_where_its_middle_is() -> None:
    labels = np.zeros((40, 40, 20), np.uint8)
    labels[20:28, 22:24, 10:12] = 1
    labels[20, 22, 14] = 2
    image = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    cropped, middle = crop(VolumeExample("", image, labels, np.ones_like(labels), NAMES, (1.0, 1.0, 2.0)))
    # 10 mm at the longest (5 voxels of 2 mm), 4 mm of margin at each end.
    assert cropped.image.shape == (18, 18, 9)
    assert cropped.truth is not None
    assert (cropped.truth > 0).sum() == (labels > 0).sum()
    centre = np.argwhere(labels).mean(axis=0).round().astype(int)
    assert cropped.image[middle] == image[tuple(centre)]


def test_what_is_outside_of_the_image_is_black() -> None:
    flat = np.ones((30, 30, 3), np.float32)
    labels = np.zeros(flat.shape, np.uint8)
    labels[2:27, 5, 1] = 1
    cropped, middle = crop(VolumeExample("", flat, labels, None, NAMES, (1.0, 1.0, 1.0)))
    assert cropped.image.shape == (30, 30, 30)  # at most the image's longest
    assert cropped.image.sum() == flat.sum()
    np.testing.assert_array_equal(np.unique(np.nonzero(cropped.image)[2]), [14, 15, 16])
    assert middle[2] == 15


def test_without_truth_the_prediction_is_the_middle_and_without_either_the_image_is() -> None:
    predicted = tube(shift=1)
    _, middle = crop(example(truth=None, predicted=predicted))
    cropped, same = crop(example(truth=np.zeros_like(predicted), predicted=predicted))
    assert middle == same
    assert cropped.truth is not None
    assert not cropped.truth.any()
    _, middle = crop(example(truth=None, predicted=np.zeros_like(predicted)))
    assert middle == (9, 10, 4)  # voxel (6, 6, 4) of a cube of 20 mm that begins at (-3, -4, 0)


def drawn(figure: Figure) -> Figure:
    figure.draw_without_rendering()
    return figure


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_page_has_three_planes_of_each_and_two_views_of_the_same_space() -> None:
    figure = drawn(volume_figure(example()))
    assert [axes.get_title() for axes in figure.axes[:3]] == ["image", "truth", "prediction"]
    assert [figure.axes[i].get_ylabel() for i in (0, 3, 6)] == ["axial", "coronal", "sagittal"]
    assert [text.get_text() for text in figure.axes[6].texts][:4] == ["A", "P", "S", "I"]
    views = [axes for axes in figure.axes if axes.name == "3d"]
    assert [view.get_title() for view in views] == ["truth, from front-left", "prediction, from front-left"]
    ranges = [(view.get_xlim(), view.get_ylim(), view.get_zlim()) for view in views]  # type: ignore[attr-defined]
    assert ranges[0] == ranges[1]
    # From voxel 3 of the truth to 10 of either, one around them, in mm.
    np.testing.assert_allclose(ranges[0], [(2, 11), (4, 9), (6, 14)])
    legend = figure.axes[9].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(NAMES)
    colours = [handle.get_facecolor()[:3] for handle in legend.get_patches()]
    assert colours == [to_rgb(colour) for colour in COLOURS[:2]]


def test_a_voxel_is_as_high_and_as_wide_as_it_is_in_mm() -> None:
    figure = drawn(volume_figure(example()))
    assert [figure.axes[i].get_aspect() for i in (0, 3, 6)] == [1, 2, 2]


def test_a_plane_shows_the_middle_and_its_labels() -> None:
    shown, middle = crop(example())
    figure = volume_figure(example())
    picture, overlay = figure.axes[1].get_images()
    expected = shown.image[:, :, middle[2]].T[::-1, ::-1]
    assert np.array_equal(np.asarray(picture.get_array()), expected)
    painted = np.asarray(overlay.get_array())[..., 3] > 0
    assert shown.truth is not None
    np.testing.assert_array_equal(painted, shown.truth[:, :, middle[2]].T[::-1, ::-1] > 0)
    assert painted.any()


def test_a_page_without_truth_or_without_a_structure() -> None:
    figure = drawn(volume_figure(example(truth=None)))
    assert [axes.get_title() for axes in figure.axes[:2]] == ["image", "prediction"]
    assert len([axes for axes in figure.axes if axes.name == "3d"]) == 1
    nothing = np.zeros(SHAPE, np.uint8)
    assert texts(drawn(volume_figure(example(predicted=nothing)))).count("no structure") == 1
    figure = drawn(volume_figure(example(truth=None, predicted=nothing)))
    assert figure.axes[6].get_legend() is None


@pytest.mark.parametrize("truth", [tube(), None])
def test_a_title_of_90_letters_fits(truth: NDArray[np.uint8] | None) -> None:
    figure = volume_figure(example(truth=truth, title="classifier says p(one) 0.50; " * 3 + "one"))
    figure.canvas.draw()
    title = figure.texts[0].get_window_extent()
    assert title.x0 >= 0
    assert title.x1 <= figure.bbox.x1


# Surfaces


def volume_of(surface: Surface) -> float:
    """Return the volume inside of a closed surface: positive where faces are turned outwards."""
    a, b, c = surface.vertices[surface.faces].transpose(1, 0, 2)
    return float(np.einsum("fi,fi->f", a, np.cross(b, c)).sum() / 6)


def pieces(surface: Surface) -> int:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b, c = surface.faces.T
    edges = coo_array((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, c])), shape=[len(surface.vertices)] * 2)
    return int(connected_components(edges, directed=False)[0])


def test_a_surface_is_closed_turned_outwards_and_in_place() -> None:
    mask = np.zeros((24, 24, 24), np.bool_)
    mask[4:16, 6:18, 0:12] = True
    surface = surface_of(mask, (1.0, 2.0, 0.5))
    assert surface is not None
    assert volume_of(surface) == pytest.approx(12**3, rel=0.1)
    middle = (surface.vertices.min(axis=0) + surface.vertices.max(axis=0)) / 2
    np.testing.assert_allclose(middle, [9.5, 23, 2.75], atol=1e-5)
    assert surface_of(np.zeros_like(mask), (1, 1, 1)) is None


def test_neither_a_thin_vessel_nor_a_break_gets_lost() -> None:
    mask = np.zeros((20, 12, 12), np.bool_)
    mask[2:18, 5, 5] = True  # one voxel wide
    line = surface_of(mask, (1, 1, 1))
    assert line is not None
    assert pieces(line) == 1
    assert np.ptp(line.vertices[:, 0]) > 15
    mask[3:17, 4:9, 4:9] = True
    mask[9] = False  # a gap of one voxel in a thick vessel
    mask[0, 11, 11] = True  # a voxel by itself
    surface = surface_of(mask, (1, 1, 1))
    assert surface is not None
    assert pieces(surface) == cc3d.connected_components(mask, return_N=True)[1] == 3


def test_a_large_structure_is_coarser_but_where_it_was() -> None:
    mask = np.zeros((300, 20, 20), np.bool_)
    mask[10:290, 6:14, 4:16] = True
    surface = surface_of(mask, (1, 1, 1))
    assert surface is not None
    middle = (surface.vertices.min(axis=0) + surface.vertices.max(axis=0)) / 2
    np.testing.assert_allclose(middle, [149.5, 9.5, 9.5], atol=1.01)
    assert len(surface.faces) < 12_000


def test_a_prediction_that_is_all_surface_is_drawn_coarsely() -> None:
    figure = Figure()
    axes: Any = figure.add_subplot(projection="3d")
    noise = np.random.default_rng(0).integers(0, 3, (32, 32, 32)).astype(np.uint8)
    colours = [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)]
    limits = np.array([[0, 32.0]] * 3)
    assert draw_structures(axes, noise, (1, 1, 1), colours, limits) == 2
    fine = sum(len(s.faces) for n in (1, 2) if (s := surface_of(noise == n, (1, 1, 1))) is not None)
    assert len(axes.collections[0].get_facecolor()) <= 150_000 < fine


# Which cases


@dataclass(frozen=True)
class Scene:
    """A cohort on disk with its predictions."""

    cohort: Cohort
    masks: Path
    predictions: Predictions

    def choose(self, **changes: Any) -> Mapping[str, VolumeExample]:
        predictions = replace(self.predictions, **changes)
        found = choose_volumes(predictions, self.cohort, self.cohort.spec, self.masks)
        return {name: one for name, (one,) in found.items() if isinstance(one, VolumeExample)}


# Axes K, I, J, the first and the last towards the patient's inferior and posterior.
TURNED = np.array([[0, 1.5, 0, 0], [0, 0, -1.0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])


RAMP = np.arange(int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)


def in_file(volume: NDArray[Any]) -> NDArray[Any]:
    """Return a RAS+ volume in the axis order of TURNED."""
    return volume[:, ::-1, ::-1].transpose(2, 0, 1)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """Nine cases, three a class, Dice 0.1, 0.2, ... in order; of c5 and c8 topology says another class."""
    folder, masks = tmp_path / "cohort", tmp_path / "run" / "masks"
    for part in (folder / "images", folder / "truth", masks):
        part.mkdir(parents=True)
    rows, table, structures = [], [], []
    for n in range(9):
        case_id, label = f"c{n}", CLASSES[n % 3]
        write_nifti(folder / f"images/{case_id}.nii.gz", in_file(RAMP), TURNED)
        write_nifti(folder / f"truth/{case_id}.nii.gz", in_file(tube()), TURNED)
        write_nifti(masks / f"{case_id}.nii.gz", in_file(tube(shift=1)), TURNED)
        rows.append(
            {
                "case_id": case_id,
                "patient_id": case_id,
                "site": "s",
                "image": f"images/{case_id}.nii.gz",
                "reference": f"truth/{case_id}.nii.gz",
                "label": label,
            }
        )
        chances = {name: 0.1 + (0.6 + n / 100) * (name == label) for name in CLASSES}
        chances[CLASSES[(n + 1) % 3]] += 1 - sum(chances.values())
        table.append(
            {
                "case_id": case_id,
                "part": "test",
                "label": label,
                "arch": "double",
                "topology_class": "one" if n in (5, 8) else label,
                "agrees": "no" if n in (5, 8) else "yes",
                **{f"probability_{name}": chance for name, chance in chances.items()},
            }
        )
        counted = {"truth_voxels": 100.0, "predicted_voxels": 100.0, "overlap_voxels": 10.0 * (n + 1)}
        structures.append({"case_id": case_id, "structure": "tube", **dict.fromkeys(NUMBERS, 0.0), **counted})
    spec = CohortSpec(
        name="scene",
        modality="mri",
        dimensions=3,
        classes=CLASSES,
        structures=NAMES,
        mask=MaskSpec(name="vessels"),
    )
    cohort = write_cohort(folder, spec, rows)
    tables = replace(validate(pd.DataFrame(table)), structures=validate_structures(pd.DataFrame(structures)))
    return Scene(cohort, masks, tables)


def test_the_typical_case_has_the_median_dice_and_the_disagreement_the_surest_diagnosis(scene: Scene) -> None:
    chosen = scene.choose()
    assert {name: one.title.split("\n")[0] for name, one in chosen.items()} == {
        "one": "c3: one, mean Dice 0.40",
        "two": "c4: two, mean Dice 0.50",
        "three": "c5: three, mean Dice 0.60",
        BEST: "c8: three, mean Dice 0.90",
        WORST: "c0: one, mean Dice 0.10",
        DISAGREEMENT: "c8: three, mean Dice 0.90",
    }
    assert (
        chosen[DISAGREEMENT].title.split("\n")[1]
        == "classifier says p(three) 0.78; topology says one (double); they disagree"
    )
    assert "disagree" not in chosen["one"].title


def test_a_file_in_any_orientation_is_shown_in_the_patients(scene: Scene) -> None:
    one = scene.choose()["one"]
    assert one.spacing == (1.5, 1.0, 3.0)
    low, high = np.percentile(RAMP, (1, 99))
    np.testing.assert_allclose(one.image, np.clip((RAMP - low) / (high - low), 0, 1), atol=1e-6)
    np.testing.assert_array_equal(one.truth, tube())
    np.testing.assert_array_equal(one.predicted, tube(shift=1))
    assert one.names == (*NAMES, "vessels")


def test_only_test_cases_are_shown(scene: Scene) -> None:
    table = scene.predictions.table
    others = table.assign(part=np.where(table["case_id"].isin(["c3", "c4", "c5", "c8"]), "train", "test"))
    chosen = scene.choose(table=others)
    assert {name: one.title.split(":")[0] for name, one in chosen.items()} == {
        "one": "c0",  # of two the lower
        "two": "c1",
        "three": "c2",
        BEST: "c7",
        WORST: "c0",
    }


def test_a_case_whose_files_are_gone_gives_way_to_the_next(scene: Scene) -> None:
    for path in ("images/c3.nii.gz", "images/c1.nii.gz", "images/c4.nii.gz", "images/c7.nii.gz"):
        (scene.cohort.folder / path).unlink()
    (scene.cohort.folder / "truth/c5.nii.gz").write_bytes(b"not an image")
    chosen = scene.choose()
    assert chosen["one"].title.startswith("c0")
    assert "two" not in chosen
    assert chosen["three"].truth is None
    assert chosen["three"].predicted is not None


def test_a_prediction_of_another_grid_is_not_shown(scene: Scene) -> None:
    write_nifti(scene.masks / "c3.nii.gz", in_file(tube()), np.eye(4))
    (scene.masks / "c4.nii.gz").unlink()
    chosen = scene.choose()
    assert chosen["one"].predicted is None
    assert chosen["two"].predicted is None
    assert chosen["two"].truth is not None


def test_where_only_the_mask_is_known_it_is_the_truth(scene: Scene) -> None:
    path = scene.cohort.folder / "truth" / "mask.nii.gz"
    write_nifti(path, in_file((tube() > 0).astype(np.uint8)), TURNED)
    cases = tuple(replace(retold(case, mask=path), reference=None) for case in scene.cohort.cases)
    one = replace(scene, cohort=replace(scene.cohort, cases=cases)).choose()["one"]
    np.testing.assert_array_equal(one.truth, np.where(tube() > 0, 3, 0))


def test_cases_without_a_class(scene: Scene) -> None:
    chosen = scene.choose(table=scene.predictions.table.drop(columns="agrees").assign(label=""))
    assert {name: one.title.split("\n")[0] for name, one in chosen.items()} == {
        UNLABELLED: "c4: no diagnosis, mean Dice 0.50",
        BEST: "c8: no diagnosis, mean Dice 0.90",
        WORST: "c0: no diagnosis, mean Dice 0.10",
    }


def test_labels_that_have_no_name_are_not_shown(scene: Scene) -> None:
    # Without a table of structures the prediction is a mask; these maps have two labels, and no case a mask.
    assert scene.choose(structures=None) == {}


def test_a_report_writes_a_page_a_class_and_clears_those_of_an_earlier_one(
    scene: Scene, tmp_path: Path
) -> None:
    spec = scene.cohort.spec
    chosen = choose_examples(
        scene.predictions, scene.cohort, spec, PreprocessingSpec(size=(16, 16, 16)), scene.masks
    )
    few = {name: chosen[name] for name in ("one", DISAGREEMENT)}
    settings = EvaluationSpec(replicates=10)
    report = write_report(scene.predictions, settings, tmp_path, threshold=None, examples=few)
    names = {path.name for path in report.figures}
    assert names >= {"volumes-one.png", "volumes-disagreement.png", "confusion.png"}
    assert "examples.png" not in names
    with Picture.open(tmp_path / "figures" / "volumes-one.png") as picture:
        assert 1500 <= picture.size[0] <= 1700
    awkward = {"a/b ": chosen["one"]}
    write_report(scene.predictions, settings, tmp_path, threshold=None, examples=awkward)
    assert [path.name for path in (tmp_path / "figures").glob("volumes-*")] == ["volumes-a-b-.png"]
    evaluated = read_results(tmp_path)["evaluate"]
    assert evaluated.facts["classes"] == list(CLASSES)
    assert {*evaluated.pictures} == {path.stem for path in (tmp_path / "figures").iterdir()}


# Confusion


def diagnosed(classes: tuple[str, ...], seed: int = 0, **columns: Any) -> Predictions:
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet(np.ones(len(classes)), 60)
    table = pd.DataFrame(
        {
            "case_id": [f"c{n}" for n in range(60)],
            "part": np.where(np.arange(60) < 50, "test", "train"),
            "label": rng.choice(classes, 60),
            **{f"probability_{name}": chances[:, k] for k, name in enumerate(classes)},
        }
    )
    return validate(table.assign(**columns))


def test_confusion_counts_as_scikit_learn_does() -> None:
    predictions = diagnosed(("a", "b", "c", "d"))
    test = predictions.part("test")
    columns = [f"probability_{name}" for name in predictions.classes]
    decided = np.array(predictions.classes)[test[columns].to_numpy().argmax(axis=1)]
    expected = confusion_matrix(test["label"], decided, labels=list(predictions.classes))
    np.testing.assert_array_equal(confusion_counts(predictions), expected)
    figure = confusion_figure(predictions)
    assert figure is not None
    axes = drawn(figure).axes[0]
    cells = {(t.get_position()[1], t.get_position()[0]): t.get_text() for t in axes.texts}
    share = expected[1, 2] / expected[1].sum()
    assert cells[1, 2] == f"{expected[1, 2]}\n{share:.0%}"
    assert axes.get_yticklabels()[1].get_text() == f"b\nn={expected[1].sum()}"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Predicted", "Truth")


@pytest.mark.parametrize("positive", ["no", "yes"])
def test_two_classes_are_told_apart_by_the_threshold(positive: str) -> None:
    predictions = replace(diagnosed(("no", "yes")), positive=positive)
    test = predictions.part("test")
    other = "yes" if positive == "no" else "no"
    decided = np.where(test[f"probability_{positive}"] >= 0.3, positive, other)
    expected = confusion_matrix(test["label"], decided, labels=["no", "yes"])
    np.testing.assert_array_equal(confusion_counts(predictions, threshold=0.3), expected)
    assert not np.array_equal(confusion_counts(predictions), expected)


def test_a_class_without_cases_and_cases_without_class() -> None:
    predictions = diagnosed(("a", "b", "c"), label=["a", "", "b"] * 20)
    counts = confusion_counts(predictions)
    assert counts[2].sum() == 0
    assert counts.sum() == (predictions.part("test")["label"] != "").sum()
    figure = confusion_figure(predictions)
    assert figure is not None
    assert [t.get_text() for t in drawn(figure).axes[0].texts][-3:] == ["0", "0", "0"]
    assert confusion_figure(diagnosed(("a", "b", "c"), label="")) is None
