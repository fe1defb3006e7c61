"""What is planted is found and ranked first; what is not planted is not reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage

from threefold.audits.acquisition import measure_acquisition
from threefold.audits.audit import audit
from threefold.audits.confounders import Confounder, check_confounders, find_confounders
from threefold.cohorts.cohort import Cohort, CohortSpec, IntensitySpec, write_cohort
from threefold.core.targets import MultilabelTarget, NumberTarget
from threefold.images.reading import read_image
from threefold.images.writing import write_png
from threefold.reporting.audit_report import write_audit

COUNT = 40
Draw = Callable[[int, bool, np.random.Generator], Any]


def head(number: int, positive: bool, generator: np.random.Generator, side: int = 40) -> np.ndarray[Any, Any]:
    """A disc of its own size and place with noise, whatever its class."""
    rows, columns = np.mgrid[:side, :side] / side
    middle, radius = generator.uniform(0.4, 0.6, 2), generator.uniform(0.2, 0.35)
    disc = (rows - middle[0]) ** 2 + (columns - middle[1]) ** 2 < radius**2
    return np.clip(20 + 120 * disc + generator.normal(0, 8, (side, side)), 0, 255).astype(np.uint8)


def cohort_of(
    folder: Path, draw: Draw = head, extra: dict[str, Any] | None = None, ending: Any = None
) -> Cohort:
    """40 patients with a slice each, every second one abnormal."""
    folder.mkdir()
    generator, rows = np.random.default_rng(7), []
    order = generator.permutation(COUNT)
    for place, number in enumerate(order):
        positive = bool(number % 2)
        name = f"{place:03d}.{ending(positive) if ending else 'png'}"
        picture = draw(int(number), positive, generator)
        if isinstance(picture, PIL.Image.Image):
            picture.save(folder / name)
        elif name.endswith("png"):
            write_png(folder / name, picture)
        else:
            PIL.Image.fromarray(picture).save(folder / name, quality=98)
        rows.append(
            {
                "case_id": f"c{place:03d}",
                "patient_id": f"p{place:03d}",
                "site": "a",
                "image": name,
                "label": "abnormal" if positive else "normal",
                **{key: made(positive, generator) for key, made in (extra or {}).items()},
            }
        )
    spec = CohortSpec(
        name="c",
        modality="photo",
        dimensions=2,
        classes=("normal", "abnormal"),
        spacing=(1.0, 1.0),
        intensity=IntensitySpec(),
        columns=dict.fromkeys(extra or {}, ""),
    )
    return write_cohort(folder, spec, rows)


def strong(cohort: Cohort) -> dict[str, Confounder]:
    return {one.name: one for one in audit(cohort).confounders if one.is_strong}


def test_nothing_is_reported_where_nothing_tells(tmp_path: Path) -> None:
    extra = {"sex": lambda p, g: g.choice(["f", "m"]), "age": lambda p, g: round(g.normal(60, 9), 1)}
    result = audit(cohort_of(tmp_path / "c", extra=extra))
    assert [one.text() for one in result.confounders if one.is_strong] == []
    assert {"column.sex", "column.age", "grid.rows", "look.noise"} - {o.name for o in result.confounders} == {
        "grid.rows"  # the same everywhere
    }
    assert not [f for f in result.findings if f.check in ("confounders", "near duplicates")]


@pytest.mark.parametrize(
    ("name", "draw", "severity"),
    [
        (
            "grid.rows",
            lambda n, p, g: head(n, p, g, side=40 if g.random() < (0.9 if p else 0.2) else 48),
            "warn",
        ),
        (
            "look.noise",
            lambda n, p, g: ndimage.gaussian_filter(head(n, p, g), 0.6 if p else 0),
            "note",
        ),
        (
            "border.marks",
            lambda n, p, g: np.where(
                np.pad(np.zeros((38, 38)), ((2, 0), (2, 0)), constant_values=p), 255, head(n, p, g)
            ).astype(np.uint8),
            "warn",
        ),
        ("values.maximum", lambda n, p, g: (head(n, p, g) * (0.7 if p else 1.0)).astype(np.uint8), "note"),
    ],
)
def test_what_is_planted_in_the_images_is_found(tmp_path: Path, name: str, draw: Draw, severity: str) -> None:
    result = audit(cohort_of(tmp_path / "c", draw))
    found = {one.name: one for one in result.confounders if one.is_strong}
    assert name in found
    assert np.isnan(found[name].low) or found[name].low > 0.5  # of a perfect one there is no interval
    (finding,) = [f for f in result.findings if f.check == "confounders" and f.severity == severity]
    assert "label" in finding.message
    assert finding.cases


def test_columns_formats_and_tints_are_found(tmp_path: Path) -> None:
    extra = {
        "scanner": lambda p, g: g.choice(["A", "B"], p=[0.9, 0.1] if p else [0.1, 0.9]),
        "dose": lambda p, g: round(g.normal(3 if p else 1, 0.5), 2),
        "remark": lambda p, g: "seen" if p else None,
    }
    found = strong(cohort_of(tmp_path / "c", extra=extra, ending=lambda p: "jpg" if p else "png"))
    assert {"column.scanner", "column.dose", "column.remark", "file.format"} <= set(found)
    assert found["column.dose"].higher == "abnormal"
    assert found["column.scanner"].metric == "cramers_v"
    assert found["file.format"].value == pytest.approx(1, abs=0.01)
    assert not found["file.format"].from_disease

    def tinted(number: int, positive: bool, generator: np.random.Generator) -> Any:
        grey = head(number, positive, generator)
        tint = np.array([1.0, 0.9, 0.8]) if positive else np.ones(3)
        return PIL.Image.fromarray((grey[..., None] * tint).astype(np.uint8))

    tints = cohort_of(tmp_path / "tinted", tinted)
    from threefold.audits.acquisition import measure_file

    measured = {case.case_id: measure_file(case) for case in tints.cases}
    first = next(one for one in find_confounders(tints, measured) if one.name.startswith("header."))
    assert (first.name, first.value, first.higher) == ("header.tint", 1.0, "abnormal")


def test_the_order_of_the_table_and_numbers_in_names_are_measured(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "c")
    ordered = sorted(cohort.cases, key=lambda case: case.label or 0)
    names = {
        one.name: one for one in find_confounders(Cohort(cohort.folder, cohort.spec, tuple(ordered)), {})
    }
    assert names["table.row"].value == 1.0
    assert names["table.row"].is_strong
    assert names["table.row"].extremes[0] == (ordered[0].case_id, "0")


def test_every_kind_of_target_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    cohort = cohort_of(folder)
    spec = cohort.spec.model_copy(
        update={
            "targets": {
                "findings": MultilabelTarget(kind="multilabel", classes=("x", "y")),
                "age": NumberTarget(kind="number", unit="weeks"),
            }
        }
    )
    from dataclasses import replace

    cases = tuple(
        replace(case, targets={**case.targets, "findings": (n % 2 == 0, None), "age": float(n)})
        for n, case in enumerate(cohort.cases)
    )
    found = {(one.target, one.name) for one in find_confounders(Cohort(folder, spec, cases), {})}
    assert {
        ("label", "table.row"),
        ("findings=x", "table.row"),
        ("age above its median", "table.row"),
    } <= found
    assert not [target for target, _ in found if target == "findings=y"]  # nobody knows it


def test_of_many_columns_that_tell_nothing_hardly_one_is_reported(tmp_path: Path) -> None:
    extra = {f"noise{n}": lambda p, g: round(g.normal(), 4) for n in range(20)} | {
        f"kind{n}": lambda p, g: str(g.choice(["a", "b", "c"])) for n in range(20)
    }
    cohort = cohort_of(tmp_path / "c", extra=extra)
    assert not list(check_confounders(find_confounders(cohort, {})))


def test_the_files_of_an_audit(tmp_path: Path) -> None:
    cohort = cohort_of(tmp_path / "c", extra={"scanner": lambda p, g: "A" if p else "B"})
    files = write_audit(audit(cohort), cohort, tmp_path / "out")
    assert [file.name for file in files] == [
        "audit.json",
        "confounders.csv",
        "confounders.md",
        "extremes.png",
    ]
    text = (tmp_path / "out/confounders.md").read_text()
    assert "| column.scanner | label | Cramér's V 1.00 [1.00, 1.00] |" in text
    with PIL.Image.open(tmp_path / "out/extremes.png") as picture:
        assert picture.size[0] > 500


def test_measurements_of_a_volume(tmp_path: Path) -> None:
    from threefold.cohorts.cohort import Case
    from threefold.images.writing import write_nifti

    write_nifti(
        tmp_path / "v_12.nii.gz",
        np.arange(16 * 12 * 10).reshape(16, 12, 10).astype(np.int16),
        np.diag([1.0, 2, 3, 1]),
    )
    case = Case("v", "p", "a", tmp_path / "v_12.nii.gz")
    found = measure_acquisition(case, read_image(case.image))
    assert (found["grid.rows"], found["grid.slices"]) == (16, 10)
    assert found["grid.field of view along slices (mm)"] == pytest.approx(30)
    assert (found["file.format"], found["file.number in name"]) == (".nii.gz", 12)


def test_what_can_not_be_read_costs_its_header_alone(tmp_path: Path) -> None:
    from threefold.audits.acquisition import measure_file
    from threefold.cohorts.cohort import Case

    write_png(tmp_path / "whole.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:40])
    (tmp_path / "empty").mkdir()
    found = {
        name: measure_file(Case(name, "p", "a", tmp_path / name))
        for name in ("whole.png", "cut.png", "empty", "absent.png")
    }
    assert found["whole.png"]["header.colour mode"] == "L"
    for name in ("cut.png", "empty", "absent.png"):
        assert not [key for key in found[name] if key.startswith("header.")]
        assert found[name]["file.name length"] == len(name)


def test_a_header_of_zero_is_stated(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    from threefold.images.dicom_slice import stated

    path = Path(str(get_testdata_file("CT_small.dcm")))
    found = stated(path, ("InstanceNumber", "PatientID", "NoSuchName", "GantryDetectorTilt"))
    assert found.keys() == {"InstanceNumber", "PatientID", "GantryDetectorTilt"}
    assert (found["PatientID"], float(found["GantryDetectorTilt"])) == ("1CT1", 0.0)
