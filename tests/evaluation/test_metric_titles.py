"""What metrics are called in the tables of a study."""

from __future__ import annotations

import pytest

from threefold.evaluation.metrics import METRICS, title


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("auc", "AUC"),
        ("dice", "Dice"),
        ("structure_dice", "Dice (mean over structures)"),
        ("structure_dice:DAO", "Dice (DAO)"),
        ("graph_edits", "Graph edits"),
        ("not_known", "not known"),
    ],
)
def test_a_title_says_what_is_measured(metric: str, said: str) -> None:
    assert title(metric) == said


def test_no_two_metrics_have_one_title() -> None:
    titles = [title(name) for name in METRICS]
    assert len(titles) == len({*titles})
