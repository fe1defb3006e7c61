"""Predictions as DICOM: highdicom reads the masks and measurements back, on the source's grid."""

from __future__ import annotations

import io
import re
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import highdicom
import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from scipy.spatial.distance import pdist

from threefold.cli.app import main
from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import MultilabelTarget, NumberTarget
from threefold.errors import ImageError, UsageError
from threefold.images.geometry import Image
from threefold.images.reading import read_image, read_label_map
from threefold.images.writing import write_nifti
from threefold.inference.out_of_distribution import OutOfDistribution
from threefold.inference.output import Prediction
from threefold.inference.predictor import Predictor
from threefold.interchange.dicom_codes import coded_class, coded_segment
from threefold.interchange.dicom_results import DicomResults
from threefold.interchange.dicom_seg import Algorithm
from threefold.tasks.questions import Question

from ..images.conftest import write_dicom
from ..images.test_dicom_frames import STUDY
from ..inference.conftest import AFFINE, Threshold, make_experiment, make_slice, make_spec, write_run

HEADER: dict[str, Any] = {
    **STUDY, "PixelSpacing": [0.5, 0.5], "SliceThickness": 4, "RescaleIntercept": 0,
    "StudyInstanceUID": "1.2.8", "FrameOfReferenceUID": "1.2.9", "SeriesNumber": 3,
}  # fmt: skip
EVEN = [(3.0, -7.0, 4.0 * k) for k in range(4)]
NAMES = ("SVC", "AO")


def write_series(folder: Path, places: Sequence[Sequence[float]] = EVEN, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    order = np.random.default_rng(1).permutation(len(places))  # of files, not of slices
    for k, place in enumerate(places):
        write_dicom(folder / f"{order[k]}.dcm", make_slice(k), place, **HEADER | changes)
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = write_run(tmp_path_factory.mktemp("runs") / "tiny", make_experiment(), make_spec(), 0.3)
    return replace(Predictor.from_run(folder.path), network=Threshold())


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_series(tmp_path_factory.mktemp("scans") / "scan")


def results_of(names: tuple[str, ...] = NAMES, kind: Any = "binary", **spec: Any) -> DicomResults:
    question = Question("segmentation", "labels", "", "structures", None, names)
    return DicomResults(make_spec(**spec), (question,), Algorithm("run", "0.2.0+abc"), kind)


def objects(results: DicomResults, image: Image, labels: NDArray[Any]) -> tuple[Any, Any]:
    """Return segmentation and report of a label map, as highdicom reads them."""
    prediction = Prediction("case", {}, None, None, image)
    return opened(results.objects_of(image, {"": labels.astype(np.uint8)}, [prediction]))


def opened(found: Mapping[str, bytes]) -> tuple[Any, Any]:
    seg, report = (pydicom.dcmread(io.BytesIO(found[name])) for name in ("seg", "sr"))
    return (
        highdicom.seg.Segmentation.from_dataset(seg),
        highdicom.sr.Comprehensive3DSR.from_dataset(report),
    )


def label_map(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).choice(3, shape, p=[0.8, 0.15, 0.05]).astype(np.uint8)


def by_instance(seg: Any, image: Image) -> NDArray[np.uint8]:
    """Return the labels of an image's slices, by the UIDs of their files, (slices, rows, columns)."""
    uids = [str(pydicom.dcmread(one.path, stop_before_pixels=True).SOPInstanceUID) for one in image.slices]
    found: NDArray[np.uint8] = seg.get_pixels_by_source_instance(uids, combine_segments=True)
    return found


def measured(report: Any) -> list[dict[str, tuple[float, str]]]:
    groups = report.content.get_volumetric_roi_measurement_groups()
    return [
        {one.name.meaning: (float(one.value), one.unit.value) for one in group.get_measurements()}
        for group in groups
    ]


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_highdicom_reads_masks_and_measurements_back(scan: Path, kind: str) -> None:
    image = read_image(scan)
    labels = label_map(image.array.shape)
    seg, report = objects(results_of(kind=kind), image, labels)
    assert_array_equal(by_instance(seg, image), np.moveaxis(labels, -1, 0))
    assert seg.SegmentationType == kind.upper()
    assert seg.NumberOfFrames == (8 if kind == "binary" else 4)
    assert seg.StudyInstanceUID == report.StudyInstanceUID == "1.2.8"
    for number, found in enumerate(measured(report), start=1):
        inside = labels == number
        assert found["Volume"] == (pytest.approx(inside.sum() * 0.5 * 0.5 * 4 / 1000, rel=1e-5), "mL")
        places = (np.argwhere(inside) * (0.5, 0.5, 4)).astype(float)
        assert found["Diameter"] == (pytest.approx(pdist(places).max(), rel=1e-5), "mm")
    for group in report.content.get_volumetric_roi_measurement_groups():
        assert group.reference_type.meaning == "Referenced Segment"
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID


def test_codes_are_the_known_ones_or_those_of_the_cohort(scan: Path) -> None:
    codes = {"AO": {"type": [12345, "SCT", "Own aorta"], "anatomy": ["51185008", "SCT", "Thorax"]}}
    image = read_image(scan)
    spec = {"structures": list(NAMES), "codes": codes}
    seg, _ = objects(results_of(**spec), image, label_map(image.array.shape))
    vein, aorta = (seg.get_segment_description(number) for number in (1, 2))
    assert vein.segmented_property_type == highdicom.sr.CodedConcept("48345005", "SCT", "Superior vena cava")
    assert aorta.segmented_property_type.value == "12345"
    assert aorta.anatomic_regions[0].meaning == "Thorax"
    assert aorta.algorithm_identification.version == "0.2.0+abc"
    known = coded_segment("Hematoma", {})
    assert (known.kind[0], known.anatomy and known.anatomy[2]) == ("35566002", "Brain")
    assert coded_class("CoA", {}) == ("CoA", "99THREEFOLD", "CoA")
    with pytest.raises(ValueError, match=r"codes: 'A0' is no mask, structure or class\. Did you mean 'AO'?"):
        CohortSpec.model_validate({**make_spec().model_dump(), **spec, "codes": {"A0": {}}})


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_an_empty_mask_keeps_its_frames_and_measures_nothing(scan: Path, kind: str) -> None:
    image = read_image(scan)
    seg, report = objects(results_of(kind=kind), image, np.zeros(image.array.shape))
    assert seg.NumberOfFrames == (8 if kind == "binary" else 4)
    assert not by_instance(seg, image).any()
    assert measured(report) == [{"Volume": (0, "mL")}] * 2


def test_a_tilted_uneven_series_gets_its_masks_on_its_own_slices(tmp_path: Path) -> None:
    """Where a ball is, resampled and back, is where it is on the slices as scanned, to a voxel's border."""
    heights = [0.0, 2, 5, 9, 14, 18, 22]
    places = [(3.0, -7 + 0.3 * z, z) for z in heights]
    image = read_image(write_series(tmp_path / "tilted", places), uneven="resample")
    assert image.array.shape[2] != len(heights)

    def distance(affine: NDArray[Any], index: NDArray[Any]) -> NDArray[Any]:
        centre = np.array([-9.0, -1.0, 9.0])  # RAS+ mm
        return np.linalg.norm((index @ affine.T)[..., :3] - centre, axis=-1)

    grid = np.stack([*np.indices(image.array.shape), np.ones(image.array.shape)], axis=-1)
    labels = distance(image.affine, grid) < 6
    seg, report = objects(results_of(("ball",)), image, labels)
    found = by_instance(seg, image)
    for plane, one in zip(found, image.slices, strict=True):
        index = np.stack([*np.indices(plane.shape), np.zeros(plane.shape), np.ones(plane.shape)], axis=-1)
        far = distance(one.grid.affine, index)
        assert plane[far < 3.5].all()
        assert not plane[far > 8.5].any()
    positions = [
        frame.PlanePositionSequence[0].ImagePositionPatient for frame in seg.PerFrameFunctionalGroupsSequence
    ]
    assert_allclose(sorted(map(tuple, positions), key=lambda one: one[2]), places)
    thickness = np.array([2, 2.5, 3.5, 4.5, 4.5, 4, 4])
    volume = (found.sum(axis=(1, 2)) * 0.25 * thickness).sum() / 1000
    assert measured(report)[0]["Volume"][0] == pytest.approx(volume, rel=1e-5)


def test_a_slice_alone_has_an_area(scan: Path) -> None:
    image = read_image(scan / "0.dcm")
    labels = label_map(image.array.shape)
    seg, report = objects(results_of(), image, labels)
    assert_array_equal(by_instance(seg, image)[0], labels)
    assert measured(report)[0]["Area"] == (pytest.approx((labels == 1).sum() * 0.25), "mm2")


def test_an_enhanced_file_is_referred_to_by_its_frames(scan: Path, tmp_path: Path) -> None:
    slices = [pydicom.dcmread(path) for path in sorted(scan.iterdir())]  # not in the order of their places
    enhanced = highdicom.legacy.LegacyConvertedEnhancedCTImage(slices, generate_uid(), 2, generate_uid(), 1)
    enhanced.save_as(tmp_path / "e.dcm")
    image = read_image(tmp_path / "e.dcm")
    labels = label_map(image.array.shape)
    seg, report = objects(results_of(), image, labels)
    frames = [one.frame for one in image.slices]
    found = seg.get_pixels_by_source_frame(
        enhanced.SOPInstanceUID, [frame + 1 for frame in frames if frame is not None], combine_segments=True
    )
    assert_array_equal(found, np.moveaxis(labels, -1, 0))
    assert measured(report)[0]["Volume"][0] == pytest.approx((labels == 1).sum() / 1000, rel=1e-5)


def test_predictions_of_a_run_are_in_the_report(predictor: Predictor, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = list(predictor.predict([scan], out, dicom="binary"))
    mask = read_label_map(out / "masks" / "scan.nii.gz").array
    seg = highdicom.seg.segread(out / "dicom" / "scan-seg.dcm")
    assert_array_equal(by_instance(seg, read_image(scan)), np.moveaxis(mask, -1, 0))
    report = highdicom.sr.srread(out / "dicom" / "scan-sr.dcm")
    groups = report.content.get_image_measurement_groups()
    assert len(groups) == len(found) == 4
    for group, prediction, one in zip(groups, found, read_image(scan).slices, strict=True):
        values = {each.name.meaning: float(each.value) for each in group.get_measurements()}
        assert values["Probability of yes"] == pytest.approx(prediction.probabilities["yes"], rel=1e-5)
        said = {each.name.meaning: each.value.meaning for each in group.get_qualitative_evaluations()}
        assert said["Diagnosis"] == prediction.decision
        uid = pydicom.dcmread(one.path, stop_before_pixels=True).SOPInstanceUID
        assert [image.referenced_sop_instance_uid for image in group.source_images] == [uid]
    assert list(predictor.predict([scan], out, dicom="binary")) == []
    (out / "dicom" / "scan-sr.dcm").unlink()
    assert len(list(predictor.predict([scan], out, dicom="binary"))) == 4
    assert (out / "dicom" / "scan-sr.dcm").is_file()


def test_how_far_to_trust_a_diagnosis_is_in_the_report(scan: Path, predictor: Predictor) -> None:
    image = read_image(scan / "0.dcm")
    results = DicomResults(predictor.cohort, predictor.questions, Algorithm("run", "1"))
    prediction = Prediction(
        "case", {"no": 0.9, "yes": 0.1}, "no", None, image, calibrated={"no": 0.8, "yes": 0.2},
        prediction_set=("no", "yes"), out_of_distribution=OutOfDistribution(True, None, ("far",)),
    )  # fmt: skip
    found = results.objects_of(image, {}, [prediction])
    assert list(found) == ["sr"]
    report = highdicom.sr.Comprehensive3DSR.from_dataset(pydicom.dcmread(io.BytesIO(found["sr"])))
    (group,) = report.content.get_image_measurement_groups()
    values = {one.name.meaning: float(one.value) for one in group.get_measurements()}
    assert values == {
        "Probability of no": 0.9, "Probability of yes": 0.1, "Calibrated probability of no": 0.8,
        "Calibrated probability of yes": 0.2,
    }  # fmt: skip
    said = [(one.name.meaning, one.value.meaning) for one in group.get_qualitative_evaluations()]
    member = "Possible diagnosis (member of the prediction set)"
    for expected in ((member, "no"), (member, "yes"), ("Image differs from the training images", "Yes")):
        assert expected in said


def test_what_gets_no_dicom_objects_keeps_its_prediction(predictor: Predictor, tmp_path: Path) -> None:
    """A NIfTI has no study to belong to; a DICOM without a frame of reference can't be referred to."""
    write_nifti(tmp_path / "a.nii.gz", make_slice(1), AFFINE)
    bad = write_series(tmp_path / "bad", FrameOfReferenceUID=None)
    out = tmp_path / "out"
    found = list(predictor.predict([tmp_path / "a.nii.gz", bad], out, dicom="binary"))
    assert len(found) == len(pd.read_csv(out / "predictions.csv")) == 5
    assert not (out / "dicom").exists()
    assert (out / "masks" / "bad.nii.gz").is_file()
    failed = pd.read_csv(out / "failed.csv")
    assert failed["case_id"].tolist() == ["bad"]
    assert "lacks FrameOfReferenceUID" in failed["error"][0]
    with pytest.raises(Exception, match="dicom: binary there, None now"):
        list(predictor.predict([tmp_path / "a.nii.gz", bad], out))


def test_labels_that_may_overlap_are_no_labelmap(predictor: Predictor, tmp_path: Path) -> None:
    two = [replace(one, prefix="x.") for one in predictor.questions if one.kind == "labels"] * 2
    several = replace(predictor, questions=tuple(two))
    with pytest.raises(UsageError, match="one label a voxel"):
        list(several.predict([], tmp_path / "out", dicom="labelmap"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"StudyInstanceUID": None}, "lacks StudyInstanceUID"),
        ({"StudyDate": "19700230"}, "can refer to it .*day"),
    ],
)
def test_odd_headers_are_an_image_error(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = read_image(write_series(tmp_path / "odd", **changes))
    with pytest.raises(ImageError, match=says):
        objects(results_of(), image, label_map(image.array.shape))


def test_names_of_any_language_are_kept(tmp_path: Path) -> None:
    name = {"SpecificCharacterSet": "ISO_IR 100", "PatientName": "M\xfcller^J\xf6rg"}
    image = read_image(write_series(tmp_path / "scan", **name))
    found = objects(results_of(("h\xe9matome", "\u8840\u816b")), image, label_map(image.array.shape))
    for one in found:
        assert str(one.PatientName) == "M\xfcller^J\xf6rg"
    labels = [found[0].get_segment_description(number).segment_label for number in (1, 2)]
    assert labels == ["h\xe9matome", "\u8840\u816b"]


def known(**what: Any) -> Any:
    """A task that knows its target, which is all that a report asks of it."""
    return SimpleNamespace(context=SimpleNamespace(known=SimpleNamespace(**what)))


def test_several_tasks_have_segments_and_answers_of_their_own(scan: Path) -> None:
    """Two label maps that overlap, a number and findings."""
    image = read_image(scan)
    maps = {"vessels": label_map(image.array.shape), "lesion": (label_map(image.array.shape, 1) > 0)}
    number = known()
    number.context.known = NumberTarget(kind="number", unit="weeks")
    findings = known()
    findings.context.known = MultilabelTarget(kind="multilabel", classes=("a", "b"))
    results = replace(
        results_of(),
        questions=(
            Question("vessels", "labels", "vessels.", "structures", None, NAMES),
            Question("lesion", "labels", "lesion.", "mask", None),
            Question("age", "other", "age.", "age", number),
            Question("found", "other", "found.", "found", findings),
        ),
    )
    answers = {"age.predicted": 31.25, "found.probability_a": 0.75, "found.probability_b": 0.125}
    prediction = Prediction("case", {}, None, None, image, answers=answers)
    masks = {name: labels.astype(np.uint8) for name, labels in maps.items()}
    seg, report = opened(results.objects_of(image, masks, [prediction]))
    uids = [str(pydicom.dcmread(one.path, stop_before_pixels=True).SOPInstanceUID) for one in image.slices]
    pixels = np.moveaxis(seg.get_pixels_by_source_instance(uids), 0, 2)  # rows, columns, slices, segments
    labels = [seg.get_segment_description(one).segment_label for one in (1, 2, 3)]
    assert labels == ["vessels.SVC", "vessels.AO", "lesion.hematoma"]
    for number_, expected in enumerate((maps["vessels"] == 1, maps["vessels"] == 2, maps["lesion"])):
        assert_array_equal(pixels[..., number_] > 0, expected)
    said = {
        one.name.meaning: (float(one.value), one.unit.meaning)
        for group in report.content.get_image_measurement_groups()
        for one in group.get_measurements()
    }
    assert said["age"] == (31.25, "weeks")
    assert (said["Probability of a"][0], said["Probability of b"][0]) == (0.75, 0.125)


def test_the_page_runs_as_written(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "pacs.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "my-run", make_experiment(), make_spec(), 0.3)
    write_series(tmp_path / "scan")
    for series in ("1.1", "1.2"):
        write_series(tmp_path / "export" / series, SeriesInstanceUID=series)
    commands = re.findall(r"^```sh\nthreefold (.*?)\n```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["threefold", *shlex.split(command)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/dicom/*")}
    assert written == {f"my-predictions/dicom/scan-{kind}.dcm" for kind in ("seg", "sr")} | {
        f"export-predictions/dicom/{series}-{kind}.dcm" for series in ("1.1", "1.2") for kind in ("seg", "sr")
    }
    (codes,) = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    spec = make_spec(classes=["CoA", "RAA"], positive="CoA", **yaml.safe_load(codes))
    assert coded_class("CoA", spec.codes)[0] == "7305005"
    assert coded_segment("hematoma", spec.codes).kind[0] == "1386000"
