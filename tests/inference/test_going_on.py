"""A folder of predictions that is gone on with: after a kill at any write, a stop, a change of its inputs."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import threefold.run
from threefold.errors import RunError, ThreefoldError
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti
from threefold.inference.journal import Journal
from threefold.inference.listing import Source
from threefold.inference.predictor import Predictor

from ..acceptance.contents import contents
from .conftest import AFFINE, Threshold, make_slice


@pytest.fixture
def predictor(run: Path, known: Threshold) -> Predictor:
    return replace(Predictor.from_run(run), network=known)


@pytest.fixture
def mixed(images: Path) -> Path:
    """The images, one that can't be read, and two whose names differ by case."""
    (images / "bad.nii").write_text("no image")
    write_nifti(images / "A.nii.gz", make_slice(7), AFFINE)
    return images


def go(predictor: Predictor, images: Path, out: Path, **options: Any) -> list[str]:
    """Predict what is left to do; return the ids of what was done now."""

    def fail(source: Source, error: ThreefoldError) -> None:
        pass

    return [one.case_id for one in predictor.predict(images, out, on_error=fail, **options)]


class Point:
    """Ends the process at the n-th write: before it, in the midst of it, or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, how: str) -> None:
        self.count, self._at, self._how = 0, at, how
        rename, append = Path.replace, Journal.append
        monkeypatch.setattr(Path, "replace", self._around(rename, None))
        monkeypatch.setattr(Journal, "append", self._around(append, self._torn))

    def _around(self, write: Callable[..., Any], torn: Callable[..., None] | None) -> Callable[..., Any]:
        def written(*arguments: Any) -> Any:
            self.count += 1
            here = self.count == self._at
            if here and self._how == "torn" and torn is not None:
                torn(*arguments)
            if here and self._how != "after":
                os._exit(9)  # the file beside is whole, but not renamed
            result = write(*arguments)
            if here:
                os._exit(9)
            return result

        return written

    @staticmethod
    def _torn(journal: Journal, name: str, entry: dict[str, Any]) -> None:
        line = f"00000000 {json.dumps({'source': name, **entry})}"
        with journal.path.open("a") as stream:
            stream.write(line[: len(line) // 2])


def _killed(run: Path, images: Path, out: Path, at: int, how: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        Point(patch, at, how)
        go(replace(Predictor.from_run(run), network=Threshold()), images, out, batch_size=2)
    os._exit(0)


@pytest.mark.parametrize("how", ["before", "torn", "after"])
def test_a_kill_at_any_write_and_the_same_call_leave_what_an_unbroken_one_does(
    run: Path, predictor: Predictor, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        writes = Point(patch, -1, how)
        go(predictor, mixed, whole, batch_size=2)
    assert writes.count >= 11  # a journal, four masks, five inputs, two tables
    expected, fork = contents(whole), multiprocessing.get_context("fork")
    for at in range(1, writes.count + 1):
        out = tmp_path / f"{how}-{at}"
        process = fork.Process(target=_killed, args=(run, mixed, out, at, how))
        process.start()
        process.join()
        assert process.exitcode == 9
        done = go(predictor, mixed, out, batch_size=2)
        found = contents(out)
        assert found.keys() == expected.keys(), at
        for name, data in expected.items():
            assert found[name] == data, (at, name)
        assert len(done) <= 8
        assert go(predictor, mixed, out, batch_size=2) == []


def test_what_is_done_is_not_done_again(predictor: Predictor, mixed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    iterator = predictor.predict(mixed, out, batch_size=1, on_error=lambda source, error: None)
    assert [next(iterator).case_id for _ in range(3)] == ["A", "a", "volume#0"]
    iterator.close()  # as an interruption does
    assert pd.read_csv(out / "predictions.csv")["case_id"].tolist() == ["A", "a"]
    assert [path.name for path in (out / "masks").iterdir()] != []
    assert go(predictor, mixed, out, batch_size=1) == [*(f"volume#{k}" for k in range(5)), "below/b"]
    table = pd.read_csv(out / "predictions.csv")
    assert table["case_id"].tolist() == ["A", "a", *(f"volume#{k}" for k in range(5)), "below/b"]
    assert pd.read_csv(out / "failed.csv")["case_id"].tolist() == ["bad"]


@pytest.mark.parametrize("missing", range(5))
def test_what_is_done_later_has_the_digits_that_it_has_in_its_pass(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    """With a network of many layers, whose last digits depend on the number of images in a pass."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        write_nifti(tmp_path / "images" / f"{number}.nii", make_slice(number), AFFINE)
    predictor, out = Predictor.from_run(run), tmp_path / "out"
    go(predictor, tmp_path / "images", tmp_path / "whole", batch_size=4)
    with monkeypatch.context() as patch:

        def read(path: Path, **options: Any) -> Any:
            if path.name == f"{missing}.nii":
                raise MemoryError
            return read_image(path, **options)

        patch.setattr("threefold.inference.sources.read_image", read)
        go(predictor, tmp_path / "images", out, batch_size=4)
    assert go(predictor, tmp_path / "images", out, batch_size=4) == [str(missing)]
    assert contents(out) == contents(tmp_path / "whole")


def test_changed_inputs_are_done_anew_and_gone_ones_removed(
    predictor: Predictor, mixed: Path, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    go(predictor, mixed, out)
    write_nifti(mixed / "a.nii.gz", make_slice(9, size=14), AFFINE)  # another size in bytes
    state = (mixed / "below" / "b.nii").stat()
    os.utime(mixed / "below" / "b.nii", ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))
    (mixed / "volume.nii.gz").unlink()
    write_nifti(mixed / "bad.nii", make_slice(3), AFFINE)
    write_nifti(mixed / "later.nii", make_slice(4), AFFINE)
    assert sorted(go(predictor, mixed, out)) == ["a", "bad", "below/b", "later"]
    go(predictor, mixed, fresh)
    assert contents(out) == contents(fresh)


@pytest.mark.parametrize("damage", ["missing", "a pipe", "flipped", "journal"])
def test_damaged_results_are_made_again(
    predictor: Predictor, mixed: Path, tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "out"
    go(predictor, mixed, out)
    expected = contents(out)
    mask = out / "masks" / "volume.nii.gz"
    if damage in ("missing", "a pipe"):
        mask.unlink()
        if damage == "a pipe":
            os.mkfifo(mask)
    elif damage == "flipped":
        data = bytearray(mask.read_bytes())
        data[len(data) // 2] ^= 4
        mask.write_bytes(data)
    else:
        lines = (out / "journal.jsonl").read_bytes().splitlines(keepends=True)
        lines[4] = lines[4].replace(b"volume#1", b"volume#7")
        (out / "journal.jsonl").write_bytes(b"".join(lines))
    assert "volume#1" in go(predictor, mixed, out)
    assert contents(out) == expected


def test_another_run_other_options_and_other_inputs_are_refused(
    predictor: Predictor, mixed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    go(predictor, mixed, out)
    expected = contents(out)
    for other, told in (
        (replace(predictor, run="other"), "run: tiny there, other now"),
        (replace(predictor, version="2"), "version: 0.1.0.* there, 2 now"),
        (replace(predictor, threshold=0.5), "threshold: 0.3 there, 0.5 now"),
    ):
        with pytest.raises(RunError, match=told):
            other.predict(mixed, out)
    with pytest.raises(RunError, match="uneven: refuse there, resample now"):
        predictor.predict(mixed, out, uneven="resample")
    with pytest.raises(RunError, match="batch_size: 16 there, 4 now"):
        predictor.predict(mixed, out, batch_size=4)
    with pytest.raises(RunError, match=r"inputs: .*never overwritten"):
        predictor.predict(mixed / "below", out)
    assert contents(out) == expected
    shutil.rmtree(out / "masks")
    (out / "journal.jsonl").unlink()
    with pytest.raises(RunError, match="never overwritten"):
        predictor.predict(mixed, out)


def test_two_into_one_folder_are_refused(predictor: Predictor, mixed: Path, tmp_path: Path) -> None:
    first = predictor.predict(mixed, tmp_path / "out", on_error=lambda source, error: None)
    next(first)
    with pytest.raises(RunError, match="another `threefold predict` is at work in it"):
        next(predictor.predict(mixed, tmp_path / "out"))
    assert len(list(first)) == 7


def test_a_full_disk_keeps_what_was_done(
    predictor: Predictor, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    append = Journal.append
    with monkeypatch.context() as patch:

        def full(journal: Journal, name: str, entry: dict[str, Any]) -> None:
            if name == "below/b":
                raise RunError("the disk is full")
            append(journal, name, entry)

        patch.setattr(Journal, "append", full)
        with pytest.raises(RunError, match="disk is full"):
            go(predictor, mixed, out)
    assert len(pd.read_csv(out / "predictions.csv")) == 7
    assert go(predictor, mixed, out) == ["below/b"]


def test_tables_that_find_no_room_leave_their_rows_in_the_journal_and_say_so(
    predictor: Predictor, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    store = threefold.run._store
    with monkeypatch.context() as patch:

        def full(path: Path, data: Any) -> None:
            if "predictions.csv" in path.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            store(path, data)

        patch.setattr("threefold.run._store", full)
        with pytest.raises(RunError, match=r"rows of \d+ input.*kept in .*journal\.jsonl: the same command"):
            go(predictor, mixed, out)
    assert not (out / "predictions.csv").exists()
    assert go(predictor, mixed, out) == []
    assert len(pd.read_csv(out / "predictions.csv")) == 8


def test_a_volume_that_the_network_fails_on_has_no_row_and_no_mask(
    run: Path, mixed: Path, tmp_path: Path
) -> None:
    class Broken(Threshold):
        def forward(self, image):  # type: ignore[no-untyped-def]
            outputs = super().forward(image)
            if len(self.calls) == 5:
                outputs.heads["classification"][:] = np.nan
            return outputs

    predictor = replace(Predictor.from_run(run), network=Broken())
    errors: list[str] = []
    found = predictor.predict(
        mixed, tmp_path / "out", batch_size=1, on_error=lambda source, error: errors.append(str(error))
    )
    list(found)
    assert len(errors) == 2  # this one and the file that is no image
    assert any("case volume#2" in text and "not finite" in text for text in errors)
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["case_id"].tolist() == ["A", "a", "below/b"]
    assert "volume.nii.gz" not in {path.name for path in (tmp_path / "out" / "masks").iterdir()}
    assert pd.read_csv(tmp_path / "out" / "failed.csv")["case_id"].tolist() == ["bad", "volume#2"]


def test_memory_that_is_short_for_a_moment_changes_no_digit(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, stack = Predictor.from_run(run), np.stack
    go(predictor, images, tmp_path / "whole")
    short = [True]

    def stacked(*arguments: Any, **options: Any) -> Any:
        if short.pop() if short else False:
            raise MemoryError
        return stack(*arguments, **options)

    monkeypatch.setattr(np, "stack", stacked)
    go(predictor, images, tmp_path / "out")
    assert not short
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_rows_are_not_kept_in_memory(predictor: Predictor, tmp_path: Path) -> None:
    """While it predicts, the folder holds what is under way alone."""
    (tmp_path / "images").mkdir()
    for number in range(40):
        write_nifti(tmp_path / "images" / f"{number:02d}.nii", make_slice(number), AFFINE)
    listing_options: dict[str, Any] = {"batch_size": 4}
    from threefold.inference.listing import find_sources

    listing = find_sources(tmp_path / "images")
    folder = predictor.folder(tmp_path / "out", listing, **listing_options)
    for _ in predictor.predict(listing, folder, **listing_options):
        assert len(folder._units) <= 5
    assert len(list(folder.rows())) == 40
