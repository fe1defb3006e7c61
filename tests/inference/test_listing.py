"""What folders, files and cohorts are taken for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from threefold.errors import ImageError, ThreefoldError
from threefold.file_names import printable
from threefold.images.writing import write_nifti
from threefold.inference.listing import Source, find_sources
from threefold.inference.naming import LONGEST_STEM, MaskNames
from threefold.inference.predictor import Predictor

from ..images.conftest import write_dicom as write_ct_slice
from .conftest import AFFINE, Threshold, make_experiment, make_slice, make_spec, write_run


def write_dicom(path: Path, z: float, series: str = "1.2.3", shape: tuple[int, int] = (40, 30)) -> Path:
    """Write a CT slice in HU at a height of z mm."""
    path.parent.mkdir(exist_ok=True, parents=True)
    place = {"SeriesInstanceUID": series, "PixelSpacing": [0.5, 0.5], "SliceThickness": 4}
    pixels = make_slice(int(z), shape=shape)
    return write_ct_slice(path, pixels, (0, 0, z), RescaleIntercept=0, **place)


@pytest.fixture
def predictor(run: Path, known: Threshold) -> Predictor:
    return replace(Predictor.from_run(run), network=known)


def predict(predictor: Predictor, *inputs: Path) -> tuple[list[str], list[str]]:
    """Return the case ids of what is predicted, and the errors."""
    errors: list[str] = []

    def fail(source: Source, error: ThreefoldError) -> None:
        errors.append(str(error))

    return [one.case_id for one in predictor.predict(inputs, on_error=fail)], errors


def test_a_bad_file_costs_a_series_only_itself(predictor: Predictor, tmp_path: Path) -> None:
    """Two good slices and one bad: the two are a volume. Without the middle of five: slices by themselves."""
    two, five = tmp_path / "two", tmp_path / "five"
    for z in range(2):
        write_dicom(two / f"{z}.dcm", 4.0 * z)
    (two / "bad.dcm").write_bytes(b"no DICOM")
    for z in range(5):
        write_dicom(five / f"{z}.dcm", 4.0 * z)
    whole = (five / "1.dcm").read_bytes()
    (five / "1.dcm").write_bytes(whole[:-700])
    names, errors = predict(predictor, two)
    assert names == ["two#0", "two#1"]
    assert len(errors) == 1
    assert "bad.dcm" in errors[0]
    names, errors = predict(predictor, five)
    assert names == [f"five/{z}.dcm" for z in (0, 2, 3, 4)]
    assert len(errors) == 1
    assert "1.dcm" in errors[0]


@pytest.mark.parametrize("ending", [".dcm", ""])
@pytest.mark.parametrize("kept", [0, 100, 300])
@pytest.mark.parametrize("bad", [1, 4])
def test_a_slice_whose_header_is_cut_is_a_gap_in_its_series(
    predictor: Predictor, tmp_path: Path, ending: str, kept: int, bad: int
) -> None:
    """Without the last one the others are an even volume, which says that it may be short."""
    folder = tmp_path / "scan"
    for z in range(5):
        write_dicom(folder / f"IM{z}{ending}", 4.0 * z)
    lost = folder / f"IM{bad}{ending}"
    lost.write_bytes(lost.read_bytes()[:kept])
    (folder / "LICENSE").write_text("not an image of this series")
    errors: list[str] = []
    found = list(predictor.predict(folder, on_error=lambda source, error: errors.append(str(error))))
    assert [lost.name in error for error in errors] == [True]
    if bad == 4:
        assert [one.case_id for one in found] == [f"scan#{k}" for k in range(4)]
        said = "1 of the 5 files of its series can't be read: slices may be missing"
        assert all(said in one.notes for one in found)
    else:
        assert [one.case_id for one in found] == [f"scan/IM{z}{ending}" for z in (0, 2, 3, 4)]


def test_a_whole_series_that_is_uneven_is_refused_as_before(predictor: Predictor, tmp_path: Path) -> None:
    for z in (0, 4, 12):
        write_dicom(tmp_path / "uneven" / f"{z}.dcm", z)
    names, errors = predict(predictor, tmp_path / "uneven")
    assert names == []
    assert len(errors) == 1
    assert "unevenly spaced" in errors[0]


def test_series_in_one_folder_are_told_apart(predictor: Predictor, tmp_path: Path) -> None:
    """Two series of three, a scout of another size within the first, a second acquisition in one place."""
    folder = tmp_path / "study"
    for z in range(3):
        write_dicom(folder / f"a{z}", 4.0 * z, "1.1")
        write_dicom(folder / f"b{z}", 4.0 * z, "1.2")
        write_dicom(folder / f"c{z}", 4.0 * z, "1.3")
        write_dicom(folder / f"d{z}", 4.0 * z, "1.3")
    write_dicom(folder / "scout", 30, "1.1", (50, 44))
    names, errors = predict(predictor, folder)
    assert names == [
        *(f"study/series of a0#{z}" for z in range(3)),
        *(f"study/series of b0#{z}" for z in range(3)),
        *(f"study/series of c0/{one}{z}" for one in "cd" for z in range(3)),
        "scout",
    ]
    assert errors == []


def test_what_is_no_image_is_counted_and_named(predictor: Predictor, images: Path) -> None:
    elsewhere = images.parent / "elsewhere"
    elsewhere.mkdir()
    write_nifti(elsewhere / "z.nii", make_slice(1), AFFINE)
    (images / "linked").symlink_to(elsewhere)
    (images / "gone.nii").symlink_to(images / "nowhere.nii")
    os.mkfifo(images / "pipe.nii.gz")
    (images / "._a.nii").write_bytes(b"what another system keeps beside a file")
    (images / ".settings").touch()
    for number in range(7):
        (images / f"{number}.tif").write_bytes(b"II*\0")
    with socket.socket(socket.AF_UNIX) as one:
        place = Path.cwd()
        os.chdir(images)  # a socket's path is short
        try:
            one.bind("socket")
        finally:
            os.chdir(place)
        listing = find_sources(images)
    assert [source.name for source in listing.sources] == ["a", "volume", "below/b"]
    assert listing.passed.counts == {
        "files of no known format": 8,
        "hidden images": 2,
        "linked folders, which are not followed": 1,
        "links that lead nowhere": 1,
        "pipes, sockets and devices": 2,
    }
    lines = "\n".join(listing.passed.lines())
    assert "0.tif, " in lines
    assert "and 3 more" in lines
    assert "linked" in lines
    only = images.parent / "only"
    only.mkdir()
    (only / "x.tif").write_bytes(b"II*\0")
    with pytest.raises(ImageError, match=r"holds no image.*files of no known format \(1\): .*x\.tif"):
        find_sources(only)


def test_an_empty_or_misnamed_image_fails_by_name_and_is_not_passed_over(
    predictor: Predictor, images: Path
) -> None:
    (images / "empty.nii").touch()
    (images / "text.png").write_text("no picture")
    names, errors = predict(predictor, images)
    assert len(names) == 7
    assert sorted(Path(error.split(": ")[0]).name for error in errors) == ["empty.nii", "text.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cant_be_read_fails_by_name(predictor: Predictor, images: Path) -> None:
    (images / "below").chmod(0)
    names, errors = predict(predictor, images)
    (images / "below").chmod(0o755)
    assert len(names) == 6
    assert "below" in errors[0]


@pytest.mark.parametrize(
    "name",
    [
        b"caf\xe9",
        b"new\nline",
        b"tab\tand\x07bell",
        b"=cmd|calc",
        b"x" * 240,
        "ünïcödé".encode(),
        b" ",
        b"CON",
    ],
)
def test_any_file_name_is_predicted_and_written(predictor: Predictor, tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write_nifti(folder / "x.nii", make_slice(1), AFFINE)
    (folder / "x.nii").rename(os.fsdecode(bytes(folder) + b"/" + name + b".nii"))
    write_nifti(folder / "good.nii", make_slice(2), AFFINE)
    found = list(predictor.predict(folder, tmp_path / "out"))
    assert len(found) == 2
    masks = sorted((tmp_path / "out" / "masks").iterdir())
    assert len(masks) == 2
    assert all(len(os.fsencode(mask.name)) < 200 for mask in masks)
    table = (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 3


def test_names_that_differ_by_case_or_form_alone_get_masks_of_their_own(
    predictor: Predictor, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [
        "scan",
        "Scan",
        "SCAN",
        "e\N{COMBINING ACUTE ACCENT}",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "a:b",
        "a?b",
    ]
    for number, name in enumerate(names):
        write_nifti(folder / f"{name}.nii", make_slice(number), AFFINE)
    found = {one.case_id: one for one in predictor.predict(folder, tmp_path / "out")}
    assert sorted(found) == sorted(names)
    files = {one.mask_file for one in found.values()}
    assert len({str(path).casefold() for path in files}) == len(names)
    assert all(path is not None and path.is_file() for path in files)


def test_printable_is_text_that_any_table_can_hold() -> None:
    assert printable(os.fsdecode(b"caf\xe9 \xf0\x9f\x98\x80\n\x00")) == "caf\\xe9 \N{GRINNING FACE}\\n\\x00"
    assert printable("plain/ü") == "plain/ü"


def test_names_of_masks_do_not_depend_on_what_was_named_before() -> None:
    ids = ["a", "A", "b/c", "b_c", "d" * 500, "d" * 500 + "e", "#"]
    once, again = MaskNames(ids), MaskNames(reversed(ids))
    stems = [once.stem(one) for one in ids]
    assert stems == [again.stem(one) for one in ids]
    assert len({stem.casefold() for stem in stems}) == len(ids)
    assert max(len(stem.encode()) for stem in stems) <= LONGEST_STEM
    assert once.stem("f") != "f"  # which none of the listed has


def test_memory_that_runs_out_costs_one_case(run: Path, tmp_path: Path) -> None:
    """In reading, in preparing and in the network; batches fall back to single images."""

    class Hungry(Threshold):
        def forward(self, image):  # type: ignore[no-untyped-def]
            if (image[:, 0] > 0.99).any(dim=(1, 2)).any():
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")
            return super().forward(image)

    for number in range(5):
        array = make_slice(number)
        array[0, 0] = 2000 if number == 2 else 10
        write_nifti(tmp_path / f"{number}.nii", array, AFFINE)
    predictor = replace(Predictor.from_run(run), network=Hungry())
    names, errors = predict(predictor, *sorted(tmp_path.glob("*.nii")))
    assert names == ["0", "1", "3", "4"]
    assert len(errors) == 1
    assert "case 2: not enough memory" in errors[0]


@pytest.mark.parametrize(
    "problem", [MemoryError(), ValueError("odd"), KeyError("x"), OverflowError("too large")]
)
def test_any_exception_of_one_image_is_its_own(
    predictor: Predictor, images: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    from threefold.inference import sources

    read = sources.read_image

    def broken(path: Path, **more: object) -> object:
        if path.name == "a.nii.gz":
            raise problem
        return read(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "read_image", broken)
    names, errors = predict(predictor, images)
    assert len(names) == 6
    assert len(errors) == 1
    assert "a.nii.gz" in errors[0]


def test_a_full_disk_is_not_one_images_fault(
    predictor: Predictor, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from threefold.inference import sources

    def full(path: Path, **more: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "read_image", full)
    with pytest.raises(OSError, match="No space"):
        predict(predictor, images)


def test_not_what_it_was_trained_on_is_one_images_error(tmp_path: Path, known: Threshold) -> None:
    """Haemorrhages in HU for a network of grey pictures, and among them what it can be asked."""
    spec = make_spec(unit="grey", intensity={"unit": "grey", "window": [0, 255]})
    write_run(tmp_path / "run", make_experiment(), spec, 0.5)
    predictor = replace(Predictor.from_run(tmp_path / "run"), network=known)
    hounsfield = make_slice(1).astype(np.int16)
    hounsfield[:4] = -1000
    write_nifti(tmp_path / "hu.nii", hounsfield, AFFINE)
    write_nifti(tmp_path / "grey.nii", make_slice(1), AFFINE)
    names, errors = predict(
        predictor, tmp_path / "hu.nii", write_dicom(tmp_path / "x.dcm", 0), tmp_path / "grey.nii"
    )
    assert names == ["grey"]
    assert (
        "hu.nii: values outside 0 to 255 (-1000 to 90), but the network was trained on grey values"
        in errors[0]
    )
    assert "x.dcm: the file states CT numbers, in HU" in errors[1]


Make = Callable[[Path], None]


def _constant(path: Path) -> None:
    write_nifti(path, np.full((40, 30), 40, np.int16), AFFINE)


def _noise(path: Path) -> None:
    write_nifti(path, np.random.default_rng(0).integers(-1000, 1000, (40, 30, 3)).astype(np.int16), AFFINE)


@pytest.mark.parametrize(("make", "said"), [(_constant, "is constant"), (_noise, "is noise")])
def test_an_image_that_shows_nothing_gets_no_diagnosis(
    predictor: Predictor, tmp_path: Path, make: Make, said: str
) -> None:
    make(tmp_path / "x.nii")
    names, errors = predict(predictor, tmp_path / "x.nii")
    assert names == []
    assert said in errors[0]
