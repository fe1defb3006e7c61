"""Pictures of attention."""

from __future__ import annotations

import numpy as np

from threefold.reporting.attention_figures import AttentionPicture, attention_figure, plane_of


def test_the_plane_with_most_of_the_lesion_is_shown() -> None:
    volume, lesion = np.arange(120).reshape(4, 5, 6), np.zeros((4, 5, 6), bool)
    assert plane_of(None, (4, 5, 6))(volume)[0, 0] == volume[3, 4, 3]  # right is left, the front above
    assert plane_of(lesion, (4, 5, 6))(volume).shape == (5, 4)
    lesion[0, 0, 1] = lesion[:2, 1, 4] = True
    assert plane_of(lesion, (4, 5, 6))(lesion).sum() == 2
    np.testing.assert_array_equal(plane_of(None, (5, 6))(volume[0]), volume[0])


def test_zero_maps_and_absent_lesions_are_drawn() -> None:
    image = np.full((8, 8), 0.5)
    pictures = [AttentionPicture("a", image, image * 0, None), AttentionPicture("b", image, image, image > 1)]
    figure = attention_figure({"internal": pictures, "external": [], "other": pictures[:1]})
    assert figure is not None
    figure.canvas.draw()  # type: ignore[attr-defined]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "a", ""]
    assert attention_figure({"internal": []}) is None
