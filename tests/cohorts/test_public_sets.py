"""Importers of public sets, each on a miniature of the set's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from threefold.audits.audit import audit
from threefold.cohorts.cohort import Cohort, read_cohort
from threefold.cohorts.public.bhsd import import_bhsd
from threefold.cohorts.public.cq500 import import_cq500
from threefold.cohorts.public.ct_ich import import_ct_ich
from threefold.cohorts.public.rsna import import_rsna
from threefold.cohorts.public.waterbirds import import_waterbirds
from threefold.cohorts.samples import read_sample
from threefold.cohorts.targets import read_mask, read_structures
from threefold.core.targets import MultilabelTarget
from threefold.errors import CohortError
from threefold.experiment import PreprocessingSpec
from threefold.images.reading import read_image, read_label_map
from threefold.images.writing import write_nifti

from ..images.conftest import write_dicom

CT_ICH_HEADER = (
    "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,"
    "No_Hemorrhage,Fracture_Yes_No"
)
KINDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


@pytest.fixture
def ct_ich(tmp_path: Path) -> Path:
    folder = tmp_path / "ct-ich"
    rng = np.random.default_rng(0)
    for part in ("ct_scans", "masks"):
        (folder / part).mkdir(parents=True)
    for patient in ("049", "050"):
        scan = rng.integers(-100, 100, (6, 5, 3)).astype(np.int16)
        write_nifti(folder / "ct_scans" / f"{patient}.nii", scan, np.diag([0.5, 0.5, 5, 1.0]))
        mask = np.zeros((6, 5, 3), np.uint8)
        if patient == "049":
            mask[1:3, 1:3, 1] = 255
        write_nifti(folder / "masks" / f"{patient}.nii", mask, np.diag([0.5, 0.5, 5, 1.0]))
    (folder / "hemorrhage_diagnosis_raw_ct.csv").write_text(
        f"{CT_ICH_HEADER}\n49,1,0,0,0,0,0,1,0\n49,2,0,1,0,0,1,0,0\n49,3,0,0,0,0,0,1,1\n50,1,0,0,0,0,0,1,0\n"
    )
    return folder


def test_ct_ich_as_published(ct_ich: Path, tmp_path: Path) -> None:
    cohort = import_ct_ich(ct_ich, tmp_path / "out")
    assert read_cohort(tmp_path / "out") == cohort
    assert [case.case_id for case in cohort.cases][:2] == ["ct-ich-049-000", "ct-ich-049-001"]
    assert [case.patient_id for case in cohort.cases] == ["ct-ich-049"] * 3 + ["ct-ich-050"]
    assert [case.label for case in cohort.cases] == [0, 1, 0, 0]
    assert cohort.cases[1].extra["subtypes"] == "intraparenchymal subdural"
    bleeding = cohort.cases[1]
    image = read_image(bleeding.image, slice_index=bleeding.slice_index)
    scan = read_image(ct_ich / "ct_scans/049.nii").array
    assert np.array_equal(image.array, scan[..., 1])
    assert bleeding.mask is not None
    assert read_mask(bleeding.mask, bleeding.slice_index, image, cohort.spec).array.sum() == 4
    assert len(list((tmp_path / "out").rglob("*.nii"))) == 4  # a scan is copied once
    size = PreprocessingSpec(size=(8, 8))
    assert "mask" in read_sample(bleeding, cohort.spec, size).targets


def test_ct_ich_with_a_table_spelt_otherwise(ct_ich: Path, tmp_path: Path) -> None:
    text = (ct_ich / "hemorrhage_diagnosis_raw_ct.csv").read_text()
    spelt = text.replace("PatientNumber", "Patient Number").replace("SliceNumber", "Slice Number")
    (ct_ich / "hemorrhage_diagnosis_raw_ct.csv").unlink()
    (ct_ich / "hemorrhage_diagnosis.csv").write_text(f"{spelt},,,,,,,,\n")
    cohort = import_ct_ich(ct_ich, tmp_path / "out", copy=False)
    assert len(cohort.cases) == 4
    assert cohort.cases[0].image == ct_ich / "ct_scans/049.nii"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("49,1,0,1,0,0,0,1,0", "row 6 of the diagnoses: No_Hemorrhage is 1 and 1 kinds are named"),
        ("49,x,0,0,0,0,0,1,0", "row 6 of the diagnoses: .*'x'"),
    ],
)
def test_ct_ich_rows_that_are_wrong(ct_ich: Path, tmp_path: Path, line: str, said: str) -> None:
    with (ct_ich / "hemorrhage_diagnosis_raw_ct.csv").open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(CohortError, match=said):
        import_ct_ich(ct_ich, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("49,4,0,0,0,0,0,1,0", "row 6 of the diagnoses: slice 4 of .*049.nii, which has 3"),
        ("51,1,0,0,0,0,0,1,0", r"row 6 of the diagnoses: there is no .*ct_scans/051\.nii"),
    ],
)
def test_ct_ich_rows_whose_slice_is_not_there(ct_ich: Path, tmp_path: Path, line: str, said: str) -> None:
    with (ct_ich / "hemorrhage_diagnosis_raw_ct.csv").open("a") as stream:
        stream.write(f"{line}\n")
    assert len(import_ct_ich(ct_ich, tmp_path / "out").cases) == 4
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert [*failed] == ["row 6"]
    assert re.search(said, failed["row 6"])


def test_ct_ich_of_an_earlier_release(ct_ich: Path, tmp_path: Path) -> None:
    (ct_ich / "ct_scans").rename(ct_ich / "Patients_CT")
    with pytest.raises(CohortError, match=r"has no folder ct_scans.*get version 1\.3\.1"):
        import_ct_ich(ct_ich, tmp_path / "out")


def test_ct_ich_without_its_masks(ct_ich: Path, tmp_path: Path) -> None:
    (ct_ich / "masks").rename(ct_ich / "mask")
    with pytest.raises(CohortError, match=r"expected .* as masks/NNN\.nii .*, found none.*get that folder"):
        import_ct_ich(ct_ich, tmp_path / "out")
    (ct_ich / "masks").mkdir()
    with pytest.raises(CohortError, match=r"expected .* as masks/NNN\.nii"):
        import_ct_ich(ct_ich, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def bhsd(tmp_path: Path) -> Path:
    folder = tmp_path / "BHSD"
    for part in ("label_192/images", "label_192/ground truths", "unlabel_2000"):
        (folder / part).mkdir(parents=True)
    for number, name in enumerate(("ID_a", "ID_b")):
        write_nifti(folder / f"label_192/images/{name}.nii.gz", np.zeros((4, 4, 3), np.int16), np.eye(4))
        truth = np.zeros((4, 4, 3), np.uint8)
        truth[0, :, 1] = number + 4
        write_nifti(folder / f"label_192/ground truths/{name}.nii.gz", truth, np.eye(4))
    write_nifti(folder / "unlabel_2000/ID_c.nii.gz", np.zeros((4, 4, 2), np.int16), np.eye(4))
    return folder


def test_bhsd(bhsd: Path, tmp_path: Path) -> None:
    cohort = import_bhsd(bhsd, tmp_path / "volumes")
    assert [case.case_id for case in cohort.cases] == ["bhsd-ID_a", "bhsd-ID_b", "bhsd-ID_c"]
    assert cohort.spec.structures == ("EDH", "IPH", "IVH", "SAH", "SDH")
    first, second, third = cohort.cases
    assert first.mask == first.structures
    assert third.mask is None
    assert second.structures is not None
    assert second.mask is not None
    image = read_image(second.image)
    assert set(np.unique(read_structures(second.structures, None, image, cohort.spec).array)) == {0, 5}
    assert read_mask(second.mask, None, image, cohort.spec).array.sum() == 4
    assert len(list((tmp_path / "volumes").rglob("*.nii.gz"))) == 5
    slices = import_bhsd(bhsd / "label_192", tmp_path / "slices", dimensions=2, copy=False)
    assert len(slices.cases) == 6
    assert {case.patient_id for case in slices.cases} == {"bhsd-ID_a", "bhsd-ID_b"}
    middle = slices.cases[1]
    assert middle.structures is not None
    assert read_label_map(middle.structures, slice_index=middle.slice_index).array.sum() == 16


def test_bhsd_without_a_truth(bhsd: Path, tmp_path: Path) -> None:
    (bhsd / "label_192/ground truths/ID_b.nii.gz").unlink()
    assert "bhsd-ID_b" not in {case.case_id for case in import_bhsd(bhsd, tmp_path / "out").cases}
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert "ground truths/ID_b.nii.gz: no such file" in failed["bhsd-ID_b"]
    with pytest.raises(CohortError, match=r"no NIfTI volumes\. Name the folder that holds label_192"):
        import_bhsd(tmp_path / "elsewhere", tmp_path / "out")


def test_bhsd_folders_that_can_not_be_listed_are_named(
    bhsd: Path, tmp_path: Path, refuse_to_list: Callable[[Path], None]
) -> None:
    closed = bhsd / "unlabel_2000" / "more"
    closed.mkdir()
    refuse_to_list(closed)
    assert len(import_bhsd(bhsd, tmp_path / "out").cases) == 3
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert [*failed] == [str(closed)]
    assert "can't be listed (Permission denied)" in failed[str(closed)]
    refuse_to_list(bhsd / "label_192/images")
    with pytest.raises(CohortError, match=r"images: can't be listed"):
        import_bhsd(bhsd, tmp_path / "none")


CQ500_TAKEN = ["CT PRE CONTRAST 5MM STD", "CT 5mm", "CT Plain"]


@pytest.fixture
def cq500(tmp_path: Path) -> Path:
    folder = tmp_path / "cq500"
    header = ["name", "Category"]
    header += [f"R{r}:{kind}" for r in (1, 2, 3) for kind in ("ICH", "IPH", "IVH", "SDH", "EDH", "SAH")]
    lines = [",".join(header)]
    votes = {0: ("100000", "110000", "000000"), 1: ("000000", "100001", "000000"), 12: ("100001",) * 3}
    votes |= {3: ("000000",) * 3, 4: ("000000",) * 3}
    for number, readers in votes.items():
        lines.append(",".join([f"CQ500-CT-{number}", "B1", *"".join(readers)]))
    (folder / "qct01").mkdir(parents=True)
    (folder / "reads.csv").write_text("\n".join(lines) + "\n")
    even, thin = ([(0, 0, mm * k) for k in range(5)] for mm in (5.0, 0.625))
    series = {
        0: {"CT PRE CONTRAST 5MM STD": even, "CT 0.625mm": thin, "CT POST CONTRAST": even},
        1: {"CT 5mm": even, "CT BONE": even},
        12: {"CT Plain": even},
        3: {"CT Plain": [(0, 0, mm) for mm in (0, 5, 13, 18, 23)]},
    }
    for number, parts in series.items():
        for name, places in parts.items():
            here = folder / "qct01" / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / name
            here.mkdir(parents=True)
            for k, place in enumerate(places):
                write_dicom(here / f"CT{k:06d}.dcm", np.full((6, 8), 1000 + k), place)
    return folder


def test_cq500(cq500: Path, tmp_path: Path) -> None:
    cohort = import_cq500(cq500, tmp_path / "out", copy=False)
    assert [case.case_id for case in cohort.cases] == ["cq500-CT0", "cq500-CT1", "cq500-CT12"]
    assert [case.label for case in cohort.cases] == [1, 0, 1]
    assert [case.extra["SAH"] for case in cohort.cases] == ["0", "0", "1"]
    assert [case.image.name for case in cohort.cases] == CQ500_TAKEN
    assert read_image(cohort.cases[0].image).array.shape == (6, 8, 5)
    left_out = json.loads((tmp_path / "out/provenance.json").read_text())["left out"]
    assert {*left_out} == {"cq500-CT3", "cq500-CT4"}
    assert left_out["cq500-CT4"] == "its folder does not exist"
    thin = import_cq500(cq500, tmp_path / "thin", thin=True)
    assert [case.case_id for case in thin.cases] == ["cq500-CT0"]
    assert thin.cases[0].image.is_relative_to(tmp_path / "thin")


def _add_series(cq500: Path, scan: int, name: str, slices: int = 5, mm: float = 5.0) -> Path:
    here = cq500 / "qct01" / f"CQ500CT{scan} CQ500CT{scan}" / "Unknown Study" / name
    here.mkdir(parents=True)
    for k in range(slices):
        write_dicom(here / f"CT{k:06d}.dcm", np.full((6, 8), 1000 + k), (0, 0, mm * k))
    return here


@pytest.mark.parametrize(
    "name", ["CT CECT", "CT C", "CT_C-2", "CT C 5MM", "CT ORAL IV", "CT IV", "CT 4cc sec 150cc D3D on"]
)
def test_cq500_series_with_contrast_are_not_taken(cq500: Path, tmp_path: Path, name: str) -> None:
    _add_series(cq500, 12, name)
    _add_series(cq500, 4, name)  # the only one of its scan
    cohort = import_cq500(cq500, tmp_path / "out", copy=False)
    assert [case.extra["series"] for case in cohort.cases] == [
        "CT PRE CONTRAST 5MM STD",
        "CT 5mm",
        "CT Plain",
    ]
    assert "cq500-CT4" in json.loads((tmp_path / "out/provenance.json").read_text())["left out"]


@pytest.mark.parametrize("name", ["CT I To S", "CT PRE-C", "CT Civic", "CT 2.55mm", "CT SPIRAL CORAL"])
def test_cq500_plain_series_of_odd_names_are_taken(cq500: Path, tmp_path: Path, name: str) -> None:
    _add_series(cq500, 4, name)
    cohort = import_cq500(cq500, tmp_path / "out")
    assert {case.case_id: case.extra["series"] for case in cohort.cases}["cq500-CT4"] == name


def test_cq500_on_another_disk(cq500: Path, tmp_path: Path) -> None:
    (cq500 / "qct01").rename(tmp_path / "disk")
    (cq500 / "qct01").symlink_to(tmp_path / "disk")
    (tmp_path / "link").symlink_to(cq500)
    for folder in (cq500, tmp_path / "link"):
        cohort = import_cq500(folder, tmp_path / f"{folder.name}-out", copy=False)
        assert [case.case_id for case in cohort.cases] == ["cq500-CT0", "cq500-CT1", "cq500-CT12"]


def test_cq500_archives_beside_their_folders_are_no_scans(cq500: Path, tmp_path: Path) -> None:
    (cq500 / "qct01" / "CQ500CT1 CQ500CT1.zip").write_bytes(b"PK")
    cohort = import_cq500(cq500, tmp_path / "out", copy=False)
    assert "cq500-CT1" in [case.case_id for case in cohort.cases]


def test_cq500_series_are_passed_over_one_by_one(cq500: Path, tmp_path: Path) -> None:
    """A scout is no second series of thick slices, and a damaged series takes no scan with it."""
    _add_series(cq500, 1, "CT Scout", slices=1)
    damaged = _add_series(cq500, 12, "CT 0.625mm", mm=0.625)
    for path in damaged.iterdir():
        path.write_bytes(path.read_bytes()[:200])
    _add_series(cq500, 4, "CT Scout", slices=4)
    cohort = import_cq500(cq500, tmp_path / "out", copy=False)
    assert [case.extra["series"] for case in cohort.cases] == [
        "CT PRE CONTRAST 5MM STD",
        "CT 5mm",
        "CT Plain",
    ]
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    passed = provenance["series passed over"]
    scout = "CT Scout (fewer than 5 images (4): a scout)"
    assert passed["cq500-CT1"] == {"CT Scout": "fewer than 5 images (1): a scout"}
    assert "CT000000.dcm" in passed["cq500-CT12"]["CT 0.625mm"]
    assert provenance["left out"]["cq500-CT4"] == f"expected one plain series, found 0 of: {scout}"


def test_cq500_scans_of_which_nothing_can_be_read_have_failed(cq500: Path, tmp_path: Path) -> None:
    for path in (cq500 / "qct01").rglob("CT 5mm/CT000004.dcm"):  # the last one of its series
        path.write_bytes(path.read_bytes()[:600])
    cohort = import_cq500(cq500, tmp_path / "out")
    assert [case.case_id for case in cohort.cases] == ["cq500-CT0", "cq500-CT12"]
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert [*failed] == ["cq500-CT1"]
    assert "CT000004.dcm" in failed["cq500-CT1"]


@pytest.mark.parametrize(
    ("closed", "named"),
    [
        ("qct02", "qct02"),
        ("qct01/CQ500CT12 CQ500CT12", "cq500-CT12"),
        ("qct01/CQ500CT12 CQ500CT12/Unknown Study", "cq500-CT12"),
    ],
)
def test_cq500_folders_that_can_not_be_listed_are_named(
    cq500: Path, tmp_path: Path, refuse_to_list: Callable[[Path], None], closed: str, named: str
) -> None:
    (cq500 / "qct02").mkdir()
    refuse_to_list(cq500 / closed)
    import_cq500(cq500, tmp_path / "out")
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert [name.removeprefix(f"{cq500}/") for name in failed] == [named]
    assert "can't be listed (Permission denied)" in next(iter(failed.values()))


def test_cq500_reads_that_are_wrong(cq500: Path, tmp_path: Path) -> None:
    text = (cq500 / "reads.csv").read_text()
    (cq500 / "reads.csv").write_text(text.replace("B1,1", "B1,2", 1))
    with pytest.raises(CohortError, match=r"reads\.csv: row 2, ICH: expected 0 or 1 of each reader, found"):
        import_cq500(cq500, tmp_path / "out")
    (cq500 / "reads.csv").write_text(text.replace("R3:SAH", "R3:SA"))
    with pytest.raises(CohortError, match="no column 'R3:SAH'"):
        import_cq500(cq500, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def rsna(tmp_path: Path) -> Path:
    folder = tmp_path / "rsna"
    (folder / "stage_2_train").mkdir(parents=True)
    lines = ["ID,Label"]
    for number, (name, patient) in enumerate(
        (("ID_1", "P1"), ("ID_2", "P1"), ("ID_3", "P2"), ("ID_4", None))
    ):
        lines += [f"{name}_{kind},{int(number == 1 and kind == 'subdural')}" for kind in KINDS]
        lines.append(f"{name}_any,{int(number == 1)}")
        pixels = np.full((4, 4), 1024 + number)
        write_dicom(folder / "stage_2_train" / f"{name}.dcm", pixels, (0, 0, number), PatientID=patient)
    (folder / "stage_2_train.csv").write_text("\n".join([*lines, "", lines[-1]]) + "\n")
    return folder


def test_rsna(rsna: Path, tmp_path: Path) -> None:
    write_dicom(rsna / "stage_2_train/ID_3.dcm", np.zeros((64, 64)), (0, 0, 0), PatientID="P2")
    whole = (rsna / "stage_2_train/ID_3.dcm").read_bytes()
    (rsna / "stage_2_train/ID_3.dcm").write_bytes(whole[:-7000])
    cohort = import_rsna(rsna, tmp_path / "out")
    assert [(case.case_id, case.patient_id, case.label) for case in cohort.cases] == [
        ("ID_1", "P1", 0),
        ("ID_2", "P1", 1),
    ]
    findings = cohort.spec.targets["findings"]
    assert isinstance(findings, MultilabelTarget)
    assert findings.classes == ("any", *KINDS)
    assert cohort.cases[0].targets["findings"] == (False,) * 6
    bleeding = dict(zip(findings.classes, cohort.cases[1].targets["findings"], strict=True))
    assert [name for name, there in bleeding.items() if there] == ["any", "subdural"]
    assert not any(case.extra for case in cohort.cases)
    assert not [one for one in audit(cohort).findings if "findings" in one.message]
    assert (read_image(cohort.cases[1].image).array == 1).all()
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert {*failed} == {"ID_3", "ID_4"}
    assert "has no PatientID" in failed["ID_4"]
    assert "its pixels alone are 8192" in failed["ID_3"]
    for path in (rsna / "stage_2_train").iterdir():
        path.write_bytes(b"no slice")
    with pytest.raises(CohortError, match=r"no case could be made.\n  failed: ID_1: .*damaged"):
        import_rsna(rsna, tmp_path / "none")


def test_some_patients_of_rsna_are_whole_and_the_same_each_time(rsna: Path, tmp_path: Path) -> None:
    made: list[Cohort] = [
        import_rsna(rsna, tmp_path / name, patients=1, copy=False) for name in ("first", "second")
    ]
    assert [case.case_id for case in made[0].cases] == [case.case_id for case in made[1].cases]
    assert len({case.patient_id for case in made[0].cases}) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ID_1_any,1", "row 27: 'ID_1_any' has another label in an earlier row"),
        ("ID_1_some,1", "row 27: expected ID_xxx_KIND,0 or 1, found 'ID_1_some,1'"),
        ("ID_9_any,0", "ID_9 has no row for epidural"),
    ],
)
def test_rsna_labels_that_are_wrong(rsna: Path, tmp_path: Path, line: str, said: str) -> None:
    with (rsna / "stage_2_train.csv").open("a") as stream:
        stream.write(f"{line}\n")
    with pytest.raises(CohortError, match=said):
        import_rsna(rsna, tmp_path / "out")


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    folder = tmp_path / "waterbird_complete95_forest2water2"
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(4):
        name = f"00{number % 2}.Bird/Bird_{number}.jpg"
        for path in (folder / name, tmp_path / "segmentations" / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.full((10, 12, 3), (200, 100, 50), np.uint8)
        PIL.Image.fromarray(colours).save(folder / name)
        bird = np.zeros((10, 12), np.uint8)
        bird[2:5, 3:6] = 204
        bird[5, 5] = 51  # one annotator of five
        PIL.Image.fromarray(bird).save((tmp_path / "segmentations" / name).with_suffix(".png"))
        lines.append(f"{number},{name},{number % 2},{number % 3},{number // 2},forest/1.jpg")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_waterbirds(birds: Path, tmp_path: Path) -> None:
    cohort = import_waterbirds(birds, tmp_path / "out", segmentations=tmp_path / "segmentations")
    assert [case.label for case in cohort.cases] == [0, 1, 0, 1]
    assert [case.split for case in cohort.cases] == ["train", "validation", "test", "train"]
    assert [case.extra["shortcut"] for case in cohort.cases] == ["0", "0", "1", "1"]
    image = read_image(cohort.cases[0].image, spacing=cohort.spec.spacing)
    assert np.abs(image.array - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).max() < 4  # JPEG
    mask = cohort.cases[0].mask
    assert mask is not None
    assert read_mask(mask, None, image, cohort.spec).array.sum() == 9
    assert import_waterbirds(birds, tmp_path / "plain").spec.mask is None


def test_waterbirds_that_are_wrong(birds: Path, tmp_path: Path) -> None:
    small = np.zeros((3, 3), np.uint8)
    PIL.Image.fromarray(small).save(tmp_path / "segmentations/000.Bird/Bird_0.png")
    import_waterbirds(birds, tmp_path / "small", segmentations=tmp_path / "segmentations")
    (birds / "000.Bird/Bird_0.jpg").write_bytes(b"no picture")
    import_waterbirds(birds, tmp_path / "damaged")
    assert not list((tmp_path / "small").rglob("Bird_0.png"))  # nor does what was written of it stay
    for made, said in (
        ("small", "Bird_0.png: is (3, 3), its photograph (10, 12)"),
        ("damaged", "Bird_0.jpg: truncated, damaged or not a JPEG or PNG"),
    ):
        failed = json.loads((tmp_path / made / "provenance.json").read_text())["failed"]
        assert [*failed] == ["Bird_0"]
        assert said in failed["Bird_0"]
    table = birds / "metadata.csv"
    table.write_text(table.read_text().replace(",0,0,0,", ",7,0,0,", 1))
    with pytest.raises(CohortError, match="row 2, column y: expected one of 0, 1, found '7'"):
        import_waterbirds(birds, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_waterbirds_too_large_for_memory_are_left_out(birds: Path, tmp_path: Path) -> None:
    wide = np.zeros((16, 2**15), np.uint8)
    PIL.Image.fromarray(wide).save(birds / "000.Bird/Bird_0.jpg")
    data = bytearray((birds / "000.Bird/Bird_0.jpg").read_bytes())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 2] = (2**15).to_bytes(2, "big")  # 2**30 pixels, which Pillow calls a bomb
    (birds / "000.Bird/Bird_0.jpg").write_bytes(data)
    assert len(import_waterbirds(birds, tmp_path / "out").cases) == 3
    assert [*json.loads((tmp_path / "out/provenance.json").read_text())["failed"]] == ["Bird_0"]


def test_files_of_waterbirds_have_names_that_every_system_holds(birds: Path, tmp_path: Path) -> None:
    for path in (birds / "000.Bird/Bird_0.jpg", tmp_path / "segmentations/000.Bird/Bird_0.png"):
        path.rename(path.with_stem("a?b"))
    (birds / "000.Bird/Bird_2.jpg").rename(birds / "000.Bird/bird_1.jpg")
    table = birds / "metadata.csv"
    table.write_text(table.read_text().replace("Bird_0", "a?b").replace("Bird_2", "bird_1"))
    cohort = import_waterbirds(birds, tmp_path / "out")
    assert [case.case_id for case in cohort.cases] == ["a?b", "Bird_1", "Bird_3"]
    assert all("?" not in case.image.name for case in cohort.cases)
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert "'bird_1' and 'Bird_1' differ in case alone" in failed["bird_1"]


def test_tables_that_name_files_elsewhere_are_not_followed(birds: Path, rsna: Path, tmp_path: Path) -> None:
    outside = tmp_path / "Secret_1.jpg"
    outside.write_bytes((birds / "000.Bird/Bird_0.jpg").read_bytes())
    table = birds / "metadata.csv"
    table.write_text(table.read_text().replace("000.Bird/Bird_0.jpg", "../Secret_1.jpg"))
    assert len(import_waterbirds(birds, tmp_path / "out").cases) == 3
    failed = json.loads((tmp_path / "out/provenance.json").read_text())["failed"]
    assert "Secret_1.jpg' leaves" in failed["Secret_1"]

    (rsna / "stage_2_train/ID_3.dcm").rename(tmp_path / "ID_3.dcm")
    labels = rsna / "stage_2_train.csv"
    labels.write_text(labels.read_text().replace("ID_3_", "../../ID_3_"))
    import_rsna(rsna, tmp_path / "slices")
    failed = json.loads((tmp_path / "slices/provenance.json").read_text())["failed"]
    assert "ID_3.dcm' leaves" in failed["../../ID_3"]
