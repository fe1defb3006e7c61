"""Several images of a case as channels: from cohort.yaml through a training to predictions."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from numpy.testing import assert_array_equal
from PIL import Image
from typer.testing import CliRunner

from threefold.audits.audit import audit
from threefold.cli.predict import predict
from threefold.cohorts.cohort import Cohort, fingerprint, read_cohort, write_cohort
from threefold.cohorts.decathlon_export import export_decathlon
from threefold.cohorts.importers import import_table
from threefold.cohorts.merging import merge_cohorts
from threefold.cohorts.sample_cache import SampleCache
from threefold.cohorts.samples import read_sample
from threefold.cohorts.staging import row_of
from threefold.cohorts.trained_on import read_trained_on
from threefold.csv_tables import read_frame
from threefold.errors import CohortError, ImageError, ThreefoldError
from threefold.experiment import PreprocessingSpec
from threefold.inference.predictor import Predictor
from threefold.run import RunFolder
from threefold.runs.evaluate import evaluate_run, evaluate_run_on
from threefold.runs.explain import explain_run
from threefold.training.plan import plan
from threefold.training.run import train

from ..conftest import blank_figures
from ..training.conftest import SIDE, build_experiment, write_cases

app = typer.Typer()
app.command()(predict)

CHANNELS = {"plain": "image", "dark": "image_dark"}
LACKING = ("p01-0", "p04-1", "p10-0")  # the last is a test case
PREPROCESSING = PreprocessingSpec(size=(SIDE, SIDE))


def two_channels(folder: Path, *, missing: str = "zeros") -> Cohort:
    """The squares, each with a darker copy as a second channel; with `zeros` three cases lack it."""
    drawn = write_cases(folder)
    rows = []
    for case in drawn.cases:
        pixels = np.asarray(Image.open(case.image))
        dark = folder / f"{case.case_id}-dark.png"
        Image.fromarray((pixels // 2).astype(np.uint8)).save(dark)
        row = {**row_of(case, drawn.spec), "image_dark": dark}
        for name in ("image", "mask", "image_dark"):
            row[name] = row[name] and row[name].relative_to(folder.absolute())
        if missing == "zeros" and case.case_id in LACKING:
            row["image_dark"] = None
        rows.append(row)
    spec = drawn.spec.model_copy(update={"channels": CHANNELS, "missing_channels": missing})
    return write_cohort(folder, spec, rows)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return two_channels(tmp_path_factory.mktemp("channels") / "cohort")


def with_table(cohort: Cohort, folder: Path, change: Any, **meaning: Any) -> Path:
    """Copy the cohort; `change` alters the rows of its table, `meaning` its cohort.yaml."""
    shutil.copytree(cohort.folder, folder)
    spec = yaml.safe_load((folder / "cohort.yaml").read_text()) | meaning
    (folder / "cohort.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    with (folder / "cases.csv").open(newline="") as stream:
        rows = [*csv.DictReader(stream)]
    rows = [change(row) for row in rows]
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return folder


# --- cohort.yaml, cases.csv and samples ----------------------------------------------------------------


def test_a_case_has_an_image_a_channel_in_the_order_of_cohort_yaml(cohort: Cohort) -> None:
    by_id = {case.case_id: case for case in cohort.cases}
    assert [*by_id["p00-0"].channels] == ["plain", "dark"]
    assert [*by_id["p01-0"].channels] == ["plain"]
    whole, lacking = (
        read_sample(by_id[name], cohort.spec, PREPROCESSING).image for name in ("p00-0", "p01-0")
    )
    alone = read_sample(replace(by_id["p00-0"], channels={}), cohort.spec, PREPROCESSING).image
    assert whole.shape == (2, SIDE, SIDE)
    assert_array_equal(whole[0], alone[0])
    pixels = np.asarray(Image.open(by_id["p00-0"].image))
    assert_array_equal(whole[1], np.float32(pixels // 2) / 255)
    assert lacking[0].any()
    assert not lacking[1].any()


def test_each_window_of_each_channel_is_one_of_the_network(cohort: Cohort) -> None:
    windows = PreprocessingSpec(size=(SIDE, SIDE), windows=((0, 255), (0, 100)))
    sample = read_sample(cohort.cases[0], cohort.spec, windows)
    narrow = read_sample(
        cohort.cases[0], cohort.spec, PreprocessingSpec(size=(SIDE, SIDE), windows=((0, 100),))
    )
    assert_array_equal(sample.image[1::2], narrow.image)
    assert len(sample.image) == 4


def test_a_cache_tells_channels_apart(cohort: Cohort, tmp_path: Path) -> None:
    cache = SampleCache(cohort.spec, PREPROCESSING, "disk", tmp_path)
    case = cohort.cases[0]
    without = replace(case, channels={"plain": case.image})
    for one in (case, without, case, without):
        assert_array_equal(cache.get(one).image, read_sample(one, cohort.spec, PREPROCESSING).image)


def test_a_cohort_of_one_image_keeps_its_fingerprint(tmp_path: Path, cohort: Cohort) -> None:
    plain = write_cases(tmp_path / "plain", patients=2, slices=1)
    assert fingerprint(plain) == "e72509ac73a7268d024bfe62ed20875f99b3c27a86178998b3559bb1d5677568"
    turned = cohort.spec.model_copy(update={"channels": {"dark": "image_dark", "plain": "image"}})
    assert fingerprint(replace(cohort, spec=turned)) != fingerprint(cohort), "their order counts"


@pytest.mark.parametrize(
    ("meaning", "expected"),
    [
        ({"channels": {"plain": "image"}}, "one alone is the column `image`"),
        (
            {"channels": {"a": "image", "b": "image"}},
            "channels: columns of cases.csv: image named more than once",
        ),
        ({"channels": {"a": "image", "b": "mask"}}, "channels: b: the column mask has another meaning"),
        ({"channels": {"a": "image", "b c": "image_dark"}}, "'b c' can't name a channel"),
        ({"channels": {"a": "image_dark", "b": "image_light"}}, "column 'image', but cohort.yaml says"),
        ({"channels": {"a": "image", "b": "image_drak"}}, "no column 'image_drak'"),
        ({"missing_channels": "refuse"}, "column image_dark: empty. Name the channel's image, or say"),
    ],
)
def test_what_can_t_be_is_refused(cohort: Cohort, tmp_path: Path, meaning: Any, expected: str) -> None:
    folder = with_table(cohort, tmp_path / "cohort", lambda row: row, **meaning)
    with pytest.raises(CohortError) as error:
        read_cohort(folder)
    assert expected in str(error.value)


def test_a_case_without_any_image_is_refused(cohort: Cohort, tmp_path: Path) -> None:
    folder = with_table(cohort, tmp_path / "cohort", lambda row: {**row, "image": "", "image_dark": ""})
    with pytest.raises(CohortError, match="row 2, column image: empty"):
        read_cohort(folder)


def test_a_channel_on_another_grid_is_refused_by_check_and_by_reading(cohort: Cohort, tmp_path: Path) -> None:
    folder = with_table(cohort, tmp_path / "cohort", lambda row: row)
    Image.fromarray(np.zeros((SIDE, 9), np.uint8)).save(folder / "p02-0-dark.png")
    damaged = read_cohort(folder)
    (found,) = [one for one in audit(damaged).findings if one.check == "geometry"]
    assert found.severity == "refuse"
    assert found.message == (
        "the channel dark lies on another grid than the image (p02-0: p02-0-dark.png beside p02-0.png: shape "
        "32 x 9 instead of 32 x 32). Resample the channel dark to the image's grid, or correct its header."
    )
    (case,) = [case for case in damaged.cases if case.case_id == "p02-0"]
    with pytest.raises(ImageError) as error:
        read_sample(case, damaged.spec, PREPROCESSING)
    assert str(error.value).startswith(
        f"case p02-0: channel dark: {folder / 'p02-0-dark.png'}: not on the grid of"
    )
    assert "shape 32 x 9 instead of 32 x 32" in str(error.value)


def test_check_and_plan_say_what_is_missing_where(cohort: Cohort) -> None:
    said = "The channel dark is missing in 3 of 24 cases, which have zeros in its place "
    said += "(missing_channels: zeros): "
    (found,) = [one for one in audit(cohort).findings if one.check == "channels"]
    assert found.severity == "warn"
    assert found.message.startswith(said + "north 2, south 1")
    assert found.cases == LACKING
    assert any(said in warning for warning in plan(build_experiment(epochs=1), cohort).warnings)


def test_tools_that_write_cohorts_carry_channels(cohort: Cohort, tmp_path: Path) -> None:
    own = cohort.spec.model_copy(update={"name": "table"})
    imported = import_table(cohort.folder / "cases.csv", tmp_path / "imported", own)
    other = write_cohort(
        tmp_path / "empty", cohort.spec, [row_of(cohort.cases[0], cohort.spec)], allow_outside=True
    )
    merged = merge_cohorts([imported, other], tmp_path / "merged", prefix=True)
    for case in (imported.cases[0], merged.cases[0], merged.cases[-1]):
        assert [path.read_bytes() for path in case.channels.values()] == [
            path.read_bytes() for path in cohort.cases[0].channels.values()
        ]
    assert {path.parent.name for path in imported.cases[0].channels.values()} == {
        "images",
        "files-image_dark",
    }
    assert [*imported.cases[2].channels] == ["plain"]
    plain = write_cases(tmp_path / "plain", patients=2)
    with pytest.raises(CohortError, match="cohorts can't be merged: channels is"):
        merge_cohorts([imported, plain], tmp_path / "never", prefix=True)
    with pytest.raises(CohortError, match="its cases have several channels"):
        export_decathlon(imported, tmp_path / "data.json")


# --- a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(cohort: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch, blank_figures():
        patch.setenv("THREEFOLD_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        yield train(build_experiment(epochs=1), cohort, folder / "run")


def test_a_training_goes_through_to_evidence(cohort: Cohort, run: RunFolder) -> None:
    assert Predictor.from_run(run.path).network.encoder.patch_embed.proj.weight.shape[1] == 2
    seen = read_trained_on(run.trained_on)
    assert seen is not None
    assert seen.channels is not None
    assert seen.channels["dark"].high[1] < 130 < seen.channels["plain"].high[1]
    table = read_frame(run.predictions).set_index("case_id")
    notes = table["prediction_notes"].astype(str)
    assert [*table.index[notes == "the channel dark is missing: 0 everywhere"]] == ["p10-0"]
    assert evaluate_run(run).evaluation.rows
    assert not explain_run(run, cohort).evidence.empty
    report = evaluate_run_on(run, cohort)
    assert report.evaluation.rows


def test_a_case_is_predicted_by_its_channels(cohort: Cohort, run: RunFolder, tmp_path: Path) -> None:
    case = cohort.cases[0]
    whole, plain = case.channels["dark"], case.channels["plain"]
    options = [str(run.path), "--channel", f"dark={whole}", "--channel", f"plain={plain}"]
    result = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "one")])
    assert result.exit_code == 0, result.output
    (row,) = read_frame(tmp_path / "one" / "predictions.csv").to_dict("records")
    predictor = Predictor.from_run(run.path)
    (asked,) = [one for one in predictor.predict(cohort) if one.case_id == case.case_id]
    assert float(row["probability_yes"]) == pytest.approx(asked.probabilities["yes"], abs=1e-5)
    (lacking,) = predictor.predict({"plain": plain})
    assert "the channel dark is missing: 0 everywhere" in lacking.notes


def test_what_a_network_of_channels_can_t_be_asked(cohort: Cohort, run: RunFolder, tmp_path: Path) -> None:
    predictor = Predictor.from_run(run.path)
    image = cohort.cases[0].image
    strict = replace(predictor, cohort=cohort.spec.model_copy(update={"missing_channels": "refuse"}))
    single = write_cases(tmp_path / "single", patients=2)
    for asked, inputs, expected in (
        (predictor, image, "one image, but the network takes the channels plain, dark. Name each (--channel"),
        (predictor, {"plian": image}, "there is no channel 'plian'"),
        (
            strict,
            {"plain": image},
            "the channel dark is missing, and the network was trained on cases",
        ),
        (
            predictor,
            single,
            "its cases have one image each, but the network was trained on the channels plain",
        ),
    ):
        with pytest.raises(ThreefoldError) as error:
            list(asked.predict(inputs))
        assert expected in str(error.value)


def test_images_and_channels_are_not_named_together() -> None:
    for arguments in (["a.png", "--channel", "t1=b.png"], []):
        result = CliRunner().invoke(app, ["run", *arguments, "--out", "out"])
        assert result.exit_code != 0
        assert "name either images, folders and cohorts, or each --channel" in str(result.exception)
