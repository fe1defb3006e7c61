"""The tutorial on Python runs as written, on a small phantom and network; and what it does not show."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import threefold as tf
from threefold.errors import PredictionsError, RunError, UsageError
from threefold.phantoms.head_ct import HEAD_CT

from ..conftest import ROOT, blank_figures
from .test_snippets import blocks

PAGE = ROOT / "docs" / "tutorials" / "python.md"
ENCODER = {"size": "mini", "embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}
# A reader trains for minutes; the test asks whether it works.
TINY = {
    "training.epochs": 1,
    "training.batch_size": 8,
    "training.selection.metric": "loss",
    "network.encoder": ENCODER,
    "data.preprocessing.size": [32, 32],
    "evaluation.replicates": 20,
}
SMALL = {"patients_per_site": 3, "external_patients_per_site": 2, "slices": (1, 1)}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the tutorial's cells leave, and what they printed, in the folder in which they ran."""
    folder = tmp_path_factory.mktemp("notebook")
    HEAD_CT.make(folder / "my-cohort", HEAD_CT.spec("demo", SMALL, where="test"), 0, None)
    recipe = tf.recipe

    def tiny(name: str, overrides: Mapping[str, Any] | Sequence[str] = ()) -> tf.Experiment:
        assert isinstance(overrides, Mapping)
        return recipe(name, {**overrides, **TINY})

    names: dict[str, Any] = {}
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(folder), blank_figures():
        patch.setenv("THREEFOLD_CACHE", str(folder / "cache"))
        patch.setattr(tf, "recipe", tiny)
        with contextlib.redirect_stdout(printed):
            for number, cell in enumerate(blocks(PAGE, "python")):
                exec(compile(cell, f"{PAGE.name}, cell {number + 1}", "exec"), names)
        yield names | {"printed": printed.getvalue()}


def test_the_tutorial_leaves_what_it_says(notebook: dict[str, Any]) -> None:
    run, cohort = notebook["run"], notebook["cohort"]
    assert run.status["state"] == "finished"
    assert run.experiment.name == "demo"
    assert tf.load_run("my-run") == run
    assert {*notebook["auc"]["group"]} >= {"all"}
    assert notebook["auc"]["value"].notna().any()
    assert {*notebook["prediction"].probabilities} == {*cohort.spec.classes}
    assert (run.path / "report.html").is_file()
    assert "my-run/report.html" in notebook["printed"]


def test_a_difference_is_paired(notebook: dict[str, Any]) -> None:
    difference, run, alone = (notebook[name] for name in ("difference", "run", "alone"))
    assert isinstance(difference, tf.Difference)
    table = tf.evaluate("my-run").table
    auc = table[(table["metric"] == "auc") & (table["level"] == "case") & (table["group_kind"] == "all")]
    assert difference.second.value == pytest.approx(auc["value"].item())
    assert difference.change.value == pytest.approx(difference.second.value - difference.first.value)
    assert difference.change.low <= difference.change.value <= difference.change.high
    assert 0 < difference.p <= 1
    turned = tf.compare(run, alone, replicates=200)
    assert turned.change.value == pytest.approx(-difference.change.value)
    itself = tf.compare(run, run.path / "predictions.csv", metric="dice", replicates=50)
    assert itself.change.value == 0
    with pytest.raises(PredictionsError, match="Did you mean 'auc'"):
        tf.compare(run, alone, metric="acu")


def test_another_cohort_is_evaluated_and_the_run_predicts_by_its_path(notebook: dict[str, Any]) -> None:
    run = notebook["run"]
    there = run.evaluate("my-cohort")
    assert len(there.evaluation.test_cases) == len(notebook["cohort"].cases)
    (one,) = tf.predict("my-run", notebook["image"], "predicted")
    assert one.probabilities == notebook["prediction"].probabilities
    assert Path("predicted/predictions.csv").is_file()


def test_numbers_of_a_table_stand_beside_its_tasks() -> None:
    rows = [
        {"case_id": str(i), "age.truth": 20 + i, "age.predicted": 21 + i, "side.label": "lr"[i % 2]}
        | {"side.probability_l": 0.9 - 0.1 * (i % 3), "side.probability_r": 0.1 + 0.1 * (i % 3)}
        for i in range(12)
    ]
    table = tf.evaluate(pd.DataFrame(rows)).table
    assert {*table["task"]} >= {"age", "side"}
    table = table[(table["group_kind"] == "all") & (table["level"] == "case") & (table["class_name"] == "")]
    found = table.set_index(["task", "metric"])["value"]
    assert found["age", "mae"] == pytest.approx(1.0)
    assert not math.isnan(found["side", "auc"])


def test_what_is_neither_a_run_nor_a_table_is_refused(notebook: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        tf.load_run("my-cohort")
    with pytest.raises(RunError, match="not a run folder"):
        tf.evaluate("nowhere")
    with pytest.raises(PredictionsError, match="no such file"):
        tf.evaluate("nowhere.csv")
    with pytest.raises(UsageError, match="a run has its own"):
        tf.evaluate(notebook["run"], threshold=0.3)
    rows = {"case_id": ["1"], "label": ["a"], **{f"probability_{name}": [1 / 3] for name in "abc"}}
    with pytest.raises(PredictionsError, match="only of two"):
        tf.evaluate(pd.DataFrame(rows), threshold=0.3)
