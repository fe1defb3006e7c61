"""Figures show the numbers that they are of; what can't be drawn is absent or said."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from threefold.errors import RunError
from threefold.evaluation.evaluate import Evaluation, evaluate
from threefold.evaluation.predictions import Predictions, validate
from threefold.experiment import EvaluationSpec
from threefold.reporting.figures import (
    PALETTE,
    Example,
    calibration_figure,
    examples_figure,
    loss_figure,
    roc_figure,
    save,
    shift_figure,
)

SPEC = EvaluationSpec(replicates=40)


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def legend(figure: Figure) -> str:
    found = figure.axes[0].get_legend()
    assert found is not None
    return "\n".join(text.get_text() for text in found.get_texts())


def with_(predictions: Predictions, **columns: object) -> Predictions:
    return validate(predictions.table.assign(**columns))


def test_roc_has_a_curve_a_group_with_its_auc_and_n(predictions: Predictions, evaluation: Evaluation) -> None:
    figure = drawn(roc_figure(predictions, SPEC))
    for name in ("internal", "external"):
        row = evaluation.find("auc", group_kind="site group", group=name)
        assert row is not None
        said = (
            f"{name}: {row.n} cases, {row.patients} patients, {row.positives} positive\nAUC {row.value:.3f}"
        )
        assert said in legend(figure)
    internal = figure.axes[0].get_lines()[0]
    area = np.trapezoid(internal.get_ydata(), internal.get_xdata())
    expected = evaluation.find("auc", group_kind="site group", group="internal")
    assert expected is not None
    assert area == pytest.approx(expected.value)
    assert len(figure.axes[0].collections) == 2  # the bands


def test_a_group_of_one_class_is_said_to_have_no_curve(predictions: Predictions) -> None:
    external = predictions.table["site_group"] == "external"
    table = with_(predictions, label=predictions.table["label"].where(~external, "clear"))
    assert "0 positive, not estimable (one class)" in legend(drawn(roc_figure(table, SPEC)))
    assert roc_figure(with_(predictions, label="clear"), SPEC) is None


def test_leaks_are_in_the_titles(predictions: Predictions) -> None:
    leaking = validate(predictions.table, leaks=True)
    evaluation = evaluate(leaking, SPEC, threshold=0.5)
    for figure in (roc_figure(leaking, SPEC), calibration_figure(leaking, SPEC)):
        assert "leaks patients" in drawn(figure).axes[0].get_title()
    assert "leaks patients" in drawn(shift_figure(evaluation)).get_suptitle()
    assert "leaks" not in drawn(roc_figure(predictions, SPEC)).axes[0].get_title()


def test_calibration_shows_the_share_of_positives_of_each_bin(predictions: Predictions) -> None:
    table = predictions.table.assign(site_group="")
    figure = drawn(calibration_figure(validate(table), SPEC))
    line = figure.axes[0].get_lines()[0]
    chance = table["probability_bleed"].to_numpy()
    bins = pd.qcut(chance, 10, labels=False)
    observed = (table["label"] == "bleed").groupby(bins).mean()
    np.testing.assert_allclose(line.get_ydata(), observed)
    np.testing.assert_allclose(line.get_xdata(), pd.Series(chance).groupby(bins).mean())
    # Bins without a hit, or without a miss, have a width too.
    bars = np.array([bar[:, 1] for bar in figure.axes[0].collections[0].get_segments()])
    assert (bars[:, 1] - bars[:, 0] > 0.01).all()


def test_more_than_two_classes_have_neither(predictions: Predictions) -> None:
    table = validate(predictions.table.assign(probability_other=0.0))
    assert roc_figure(table, SPEC) is None
    assert calibration_figure(table, SPEC) is None


def test_unlabelled_cases_have_no_calibration(predictions: Predictions) -> None:
    assert calibration_figure(with_(predictions, label=""), SPEC) is None


def test_shift_has_a_point_a_site_in_its_groups_colour(evaluation: Evaluation) -> None:
    figure = drawn(shift_figure(evaluation))
    assert [axes.get_title() for axes in figure.axes] == ["AUC", "Sensitivity", "Specificity", "Dice"]
    auc = figure.axes[0]
    points = {
        -int(line.get_ydata()[0]): (line.get_xdata()[0], to_hex(line.get_color()).upper())
        for line in auc.get_lines()
        if line.get_marker() in ("o", "D")
    }
    for index, (site, colour) in enumerate(zip("abc", (PALETTE[0], PALETTE[0], PALETTE[1]), strict=True)):
        row = evaluation.find("auc", group_kind="site", group=site)
        assert row is not None
        assert points[index] == (pytest.approx(row.value), colour)
    assert 3 not in points
    assert [text.get_text() for text in auc.texts] == ["not estimable"]
    assert next(tick.get_text() for tick in auc.get_yticklabels()) == "a\nn=12/6"


def test_one_site_has_no_shift(predictions: Predictions) -> None:
    assert shift_figure(evaluate(with_(predictions, site="a"), SPEC)) is None


def history(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"epoch": [1, 2, 3, 4], **columns})


def test_losses_show_what_was_measured_without_gaps() -> None:
    nan = math.nan
    figure = drawn(
        loss_figure(
            history(
                train_loss=[4, 3, 2, 1],
                validation_loss=[nan, 3.5, nan, 2],
                train_loss_segmentation=[nan] * 4,
                validation_auc=[nan, 0.6, nan, 0.8],
                validation_dice=[nan] * 4,
                seconds=[1, 1, 1, 1],
            )
        )
    )
    losses, scores = figure.axes
    assert legend(figure).split("\n") == ["weighted sum, train", "weighted sum, validation"]
    np.testing.assert_array_equal(losses.get_lines()[1].get_xydata(), [[2, 3.5], [4, 2]])
    np.testing.assert_array_equal(scores.get_lines()[0].get_xydata(), [[2, 0.6], [4, 0.8]])
    assert len(scores.get_lines()) == 1
    assert losses.get_yscale() == "log"


def test_losses_of_zero_are_on_a_linear_axis_and_no_epoch_gives_no_figure() -> None:
    assert drawn(loss_figure(history(train_loss=[1, 0, 0, 0]))).axes[0].get_yscale() == "linear"
    assert loss_figure(history(train_loss=[1, 1, 1, 1]).iloc[:0]) is None
    assert loss_figure(history(train_loss=[math.nan] * 4)) is None


def test_examples_outline_masks_that_have_an_outline() -> None:
    image = np.full((20, 20), 0.5)
    blob = np.zeros((20, 20), np.bool_)
    blob[5:9, 5:9] = True
    cases = [
        Example("both", image, blob, ~blob),
        Example("missed", image, blob, np.zeros_like(blob)),
        Example("no truth", image, None, np.ones_like(blob)),
    ]
    figure = drawn(examples_figure({"internal": cases, "none": [], "external": cases[:1]}))
    assert len(figure.axes) == 6
    assert [len(axes.collections) for axes in figure.axes] == [2, 1, 0, 2, 0, 0]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["both", "missed", "no truth"]
    assert examples_figure({}) is None
    assert examples_figure({"internal": []}) is None


@pytest.mark.parametrize("columns", [1, 2, 6])
@pytest.mark.parametrize("rows", [1, 2])
def test_titles_of_examples_are_inside_the_picture(rows: int, columns: int) -> None:
    cases = [Example("case\nmarker, p(marker) 0.93\nDice 0.91", np.zeros((64, 64)), None, None)] * columns
    figure = drawn(examples_figure({f"group {row}": cases for row in range(rows)}))
    for axes in figure.axes:
        box = axes.title.get_window_extent()
        assert box.y1 <= figure.bbox.y1
        assert box.x0 >= 0


def test_a_figure_is_written_whole_or_not_at_all(predictions: Predictions, tmp_path: Path) -> None:
    path = save(drawn(roc_figure(predictions, SPEC)), tmp_path / "figures" / "roc.png")
    with Image.open(path) as picture:
        assert picture.size == (825, 825)
    assert [p.name for p in path.parent.iterdir()] == ["roc.png"]
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RunError, match=r"folder\.png"):
        save(Figure(), tmp_path / "folder.png")
