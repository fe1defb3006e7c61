"""Which epoch is the best, when patience ends, what metrics.csv holds."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from threefold.experiment import SelectionSpec
from threefold.training.history import Row, best_row, out_of_patience, write_history


def _history(metric: str, *values: float) -> list[Row]:
    return [{"epoch": i + 1, f"validation_{metric}": value} for i, value in enumerate(values)]


def test_the_loss_and_errors_are_better_lower_and_the_others_higher() -> None:
    for metric in ("loss", "mae", "rmse", "age.mae", "volume.rmse"):
        assert best_row(_history(metric, 3, 1, 2), SelectionSpec(metric=metric)) == 1
    assert best_row(_history("age.r2", 0.3, 0.1, 0.2), SelectionSpec(metric="age.r2")) == 0
    assert best_row(_history("auc", 0.3, 0.1, 0.2), SelectionSpec(metric="auc")) == 0


def test_of_equals_the_earlier_is_kept_and_nan_is_never_the_best() -> None:
    assert best_row(_history("dice", 0.1, 0.5, 0.5), SelectionSpec(metric="dice")) == 1
    assert best_row(_history("dice", math.nan, 0.1, math.nan), SelectionSpec(metric="dice")) == 1
    assert best_row(_history("dice", math.nan), SelectionSpec(metric="dice")) is None
    assert best_row([], SelectionSpec()) is None


def test_of_all_tasks_the_latest_of_equals_is_kept() -> None:
    assert best_row(_history("tasks", 0.1, 0.5, 0.5, 0.2), SelectionSpec(metric="tasks")) == 2


def test_a_smoothed_epoch_is_judged_by_its_mean_with_those_before_it() -> None:
    once = _history("dice", 0.1, 0.9, 0.1, 0.6, 0.7, math.nan)
    assert best_row(once, SelectionSpec(metric="dice")) == 1
    assert best_row(once, SelectionSpec(metric="dice", smoothing=2)) == 5  # 0.7 alone, above (0.6 + 0.7) / 2
    assert best_row(once[:5], SelectionSpec(metric="dice", smoothing=2)) == 4
    assert best_row(_history("loss", 5, 1, 5, 2, 2), SelectionSpec(metric="loss", smoothing=3)) == 3


def test_patience_counts_epochs_without_a_better_one() -> None:
    selection = SelectionSpec(metric="loss", patience=2)
    assert not out_of_patience(_history("loss", 3, 2, 2), selection)
    assert out_of_patience(_history("loss", 3, 2, 2, 2), selection)
    assert not out_of_patience(_history("loss", 3, 2, 2, 1), selection)
    assert not out_of_patience(_history("loss", *[1.0] * 50), SelectionSpec(metric="loss"))


def test_metrics_csv_has_a_row_an_epoch_and_empty_cells_for_what_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    write_history(path, [{"epoch": 1, "loss": 0.123456789}, {"epoch": 2, "loss": math.nan, "extra": 3.5}])
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows == [
        {"epoch": "1", "loss": "0.12345679", "extra": ""},
        {"epoch": "2", "loss": "", "extra": "3.5"},
    ]
