"""Pictures of attention."""

from __future__ import annotations

import numpy as np

from threefold.reporting.attention_figures import AttentionPicture, attention_figure, plane_of


def test_the_plane_with_most_of_the_lesion_is_shown() -> None:
    volume, lesion = np.zeros((4, 5, 6)), np.zeros((4, 5, 6), bool)
    assert volume[plane_of(volume, None)].shape == (4, 5)
    assert plane_of(volume, lesion)[-1] == 3
    lesion[0, 0, 1] = lesion[:2, 1, 4] = True
    assert plane_of(volume, lesion)[-1] == 4
    assert volume[0][plane_of(volume[0], None)].shape == (5, 6)


def test_zero_maps_and_absent_lesions_are_drawn() -> None:
    image = np.full((8, 8), 0.5)
    pictures = [AttentionPicture("a", image, image * 0, None), AttentionPicture("b", image, image, image > 1)]
    figure = attention_figure({"internal": pictures, "external": [], "other": pictures[:1]})
    assert figure is not None
    figure.canvas.draw()  # type: ignore[attr-defined]
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "a", ""]
    assert attention_figure({"internal": []}) is None
