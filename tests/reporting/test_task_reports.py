"""What `evaluate` leaves of tasks that have columns of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import mean_absolute_error, recall_score, roc_auc_score

from threefold.csv_tables import read_frame
from threefold.errors import PredictionsError
from threefold.evaluation.by_task import KnownTasks
from threefold.evaluation.evaluate import evaluate
from threefold.evaluation.numbers import evaluate_numbers
from threefold.evaluation.predictions import validate
from threefold.evaluation.task_tables import of_task
from threefold.experiment import EvaluationSpec
from threefold.reporting.figures import agreement_figure
from threefold.reporting.results import read_results
from threefold.reporting.run_report import Report, write_report
from threefold.reporting.table import LEAK_NOTE

from ..conftest import blank_figures
from ..evaluation.several import CLASSES, FINDINGS, several_tasks

SPEC = EvaluationSpec(replicates=20)
KNOWN = KnownTasks(thresholds={"density": 0.3}, positives={"density": "low"}, units={"age": "weeks"})


@dataclass(frozen=True)
class Written:
    """A report of several tasks, its folder, and its table of predictions."""

    report: Report
    out: Path
    table: pd.DataFrame

    def metrics(self, *folders: str) -> pd.DataFrame:
        found = read_frame(self.out.joinpath("tasks", *folders, "tables/metrics.csv"))
        return found.set_index("level").loc["case"].reset_index()

    def value(self, group: str, metric: str, *folders: str, name: str = "") -> float:
        found = self.metrics(*folders)
        chosen = (found["group"] == group) & (found["metric"] == metric) & (found["class_name"] == name)
        (value,) = found.loc[chosen & (found["group_kind"] != "worst site"), "value"]
        return float(value)

    def known(self, task: str, truth: str, group: str = "all") -> pd.DataFrame:
        rows = of_task(self.table, task)
        rows = rows[(rows["part"] == "test") & rows[truth].notna() & (rows[truth] != "")]
        return rows if group == "all" else rows[(rows["site_group"] == group) | (rows["site"] == group)]


def report_of(table: pd.DataFrame, out: Path, *, leaks: bool = False) -> Report:
    """Return a report whose figures are blank, but for those of tasks alone."""
    with blank_figures():
        return write_report(validate(table, leaks=leaks), SPEC, out, threshold=None, known=KNOWN)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    out, table = tmp_path_factory.mktemp("several"), several_tasks()
    return Written(report_of(table, out), out, table)


def test_each_task_has_a_folder_and_a_table(written: Written) -> None:
    assert {path.name for path in (written.out / "tasks").iterdir()} == {
        *("density", "side", "findings", "age", "lesion")
    }
    assert [table.title for table in written.report.tasks] == ["density", "side", "findings", "age", "lesion"]
    for table in written.report.tasks:
        assert table.columns == ("metric", "all", "inner", "outer", "a", "b", "c", "d")
        assert table.rows


def test_each_task_has_results_with_its_numbers_and_pictures(written: Written) -> None:
    age, findings = (read_results(written.out / "tasks" / name)["evaluate"] for name in ("age", "findings"))
    assert age.facts["unit"] == "weeks"
    assert age.pictures == ("agreement",)
    everyone = {one.estimate.metric: one.estimate for one in age.numbers if one.estimate.group == "all"}
    assert everyone["mae"].value == written.value("all", "mae", "age")
    for part, table in ((age, written.report.tasks[3]), (findings, written.report.tasks[2])):
        assert part.tables == (table,)
    assert "evaluate" in read_results(written.out / "tasks" / "density")


@pytest.mark.parametrize("group", ["all", "inner", "outer", "a", "d"])
def test_the_numbers_are_by_site(written: Written, group: str) -> None:
    density = written.known("density", "label", group)
    chance = density["probability_low"].to_numpy(float)
    assert written.value(group, "auc", "density") == pytest.approx(
        roc_auc_score(density["label"] == "low", chance)
    )
    assert written.value(group, "sensitivity", "density") == pytest.approx(
        recall_score(density["label"] == "low", chance >= 0.3)
    )
    side = written.known("side", "label", group)
    columns = [f"probability_{name}" for name in CLASSES["side"]]
    one_against_rest = roc_auc_score(side["label"], side[columns].to_numpy(float), multi_class="ovr")
    assert written.value(group, "auc", "side") == pytest.approx(one_against_rest)
    areas = []
    for name in FINDINGS:
        rows = written.known("findings", f"truth_{name}", group)
        areas.append(roc_auc_score(rows[f"truth_{name}"].astype(int), rows[f"probability_{name}"]))
        assert written.value(group, "auc", "findings", name) == pytest.approx(areas[-1])
        assert written.value(group, "auc", "findings", name=name) == pytest.approx(areas[-1])
    mean = written.value(group, "auc", "findings", name="mean of 3 of 3 findings")
    assert mean == pytest.approx(np.mean(areas))
    age = written.known("age", "truth", group)
    assert written.value(group, "mae", "age") == pytest.approx(
        mean_absolute_error(age["truth"], age["predicted"])
    )
    lesion = written.known("lesion", "mask_truth_voxels", group)
    truth, found, both = (lesion[f"mask_{what}_voxels"] for what in ("truth", "predicted", "overlap"))
    assert written.value(group, "dice", "lesion") == pytest.approx((2 * both / (truth + found)).mean())


def test_the_numbers_have_intervals_and_units(written: Written) -> None:
    for task in ("density", "side", "findings", "age", "lesion"):
        rows = written.metrics(task)
        # The calibration error's resamples lie above it.
        apart = rows["metric"].isin(["calibration_error", "confusion"])
        of_all = rows[(rows["group_kind"] == "all") & ~apart]
        told = of_all[["low", "value", "high"]].astype(float)
        assert (told["low"] <= told["value"]).all()
        assert (told["value"] <= told["high"]).all()
    of_age = next(table for table in written.report.tasks if table.title == "age")
    names = [row[0] for row in of_age.rows]
    assert "Mean absolute error (weeks)" in names
    assert "R2" in names
    page = (written.out / "tasks/age/tables/metrics.md").read_text(encoding="utf-8")
    assert "Bias: mean of predicted minus true." in page


def test_the_agreement_of_a_number_is_drawn(written: Written) -> None:
    with Image.open(written.out / "tasks/age/figures/agreement.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 0
    table = of_task(written.table, "age")
    rows = evaluate_numbers(table, SPEC)
    figure = agreement_figure(table, rows, "weeks")
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "mean of predicted and true (weeks)"
    assert axes.get_ylabel() == "predicted minus true (weeks)"
    points = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [line.get_label() for line in points] == [
        f"{name}, n={len(written.known('age', 'truth', name))}" for name in ("inner", "outer")
    ]
    inner = written.known("age", "truth", "inner")
    np.testing.assert_allclose(points[0].get_ydata(), inner["predicted"] - inner["truth"])
    np.testing.assert_allclose(points[0].get_xdata(), (inner["predicted"] + inner["truth"]) / 2)
    error = (known := written.known("age", "truth"))["predicted"] - known["truth"]
    heights = [np.mean(line.get_ydata()) for line in axes.lines if line not in points]
    expected = [error.mean(), *(error.mean() + side * 1.96 * error.std() for side in (-1, 1))]
    np.testing.assert_allclose(heights, expected)
    assert agreement_figure(table.assign(truth=np.nan), rows, "") is None


def test_what_a_wrong_cell_of_a_task_is_told_by(tmp_path: Path) -> None:
    table = several_tasks()
    table.loc[3, "side.probability_left"] = 2.0
    with pytest.raises(PredictionsError, match=r"predictions of side: case 'validation-3'.*probability_left"):
        report_of(table, tmp_path)


def test_a_finding_that_is_known_of_no_test_case_harms_no_other(tmp_path: Path) -> None:
    table = several_tasks(patients=8)
    table = table[[name for name in table if "." not in name or name.startswith("findings.")]].copy()
    table["findings.truth_rim"] = table["findings.truth_rim"].mask(table["part"] == "test", "")
    report_of(table, tmp_path)
    found = read_frame(tmp_path / "tasks/findings/tables/metrics.csv")
    assert {*found["class_name"]} == {"mean of 2 of 3 findings", "spot", "line"}


def test_a_split_that_leaks_is_said_of_each_task(tmp_path: Path) -> None:
    table = several_tasks(patients=6)
    columns = [name for name in table if not name.startswith(("side.", "lesion."))]
    shown = report_of(table[columns], tmp_path, leaks=True).tasks
    assert len(shown) == 3
    for one in shown:
        assert LEAK_NOTE in one.notes, one.title


def test_one_task_alone_has_no_folder_of_its_own(tmp_path: Path) -> None:
    table = of_task(several_tasks(patients=8), "density")
    report = report_of(table, tmp_path)
    assert report.tasks == ()
    assert not (tmp_path / "tasks").exists()
    pd.testing.assert_frame_equal(report.evaluation.table, evaluate(validate(table), SPEC).table)
