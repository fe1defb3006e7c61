"""Files of a run are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from threefold.errors import CohortError, RunError
from threefold.locks import alone_in
from threefold.paths import refuse_links_out
from threefold.run import RunFolder, whole_folder, write_atomically
from threefold.training.folder import is_held


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    path.write_text("old")

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=r"status\.json: could not be written \(No space left on device\)"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_a_parent_that_is_a_file_or_absent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for parent in ("file", "absent"):
        with pytest.raises(RunError, match="could not be written"):
            write_atomically(tmp_path / parent / "status.json", "new")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a run folder"):
        RunFolder(tmp_path).read_status()


def test_the_runs_below_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"train ... --out RUN` left\.$"):
        RunFolder(tmp_path).read_status()
    names = [f"runs/c/v/split-0-seed-{seed}" for seed in range(6)]
    for name in names:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "status.json").touch()
    with pytest.raises(RunError, match=r"Runs below it: .*/runs/c/v/split-0-seed-0, .* and 1 more\.$"):
        RunFolder(tmp_path).read_status()


def test_a_folder_appears_when_it_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with whole_folder(target, RunError) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["file"]
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "other", RunError) as folder:
        (folder / str(1 // 0)).touch()
    with pytest.raises(CohortError, match="exists and is not empty"), whole_folder(target, CohortError):
        pass
    with (
        pytest.raises(CohortError, match=r"can't be made .*; nothing was left"),
        whole_folder(target / "file" / "below-a-file", CohortError),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("name", [".", "../here"])
def test_the_current_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(RunError, match="is the current folder"), whole_folder(Path(name), RunError):
        pass
    assert list(tmp_path.iterdir()) == [here]


HOLDER = """
import sys
from pathlib import Path
from threefold.locks import alone_in
with alone_in(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_writer_and_a_killed_one_none(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"held"
        assert is_held(run)
        with pytest.raises(RunError, match="busy"), alone_in(tmp_path, "busy"):
            pass
        holder.kill()
    assert not is_held(run)
    with alone_in(tmp_path, "busy"):
        assert is_held(run)
    assert not is_held(run)


def test_asking_who_writes_makes_no_file(tmp_path: Path) -> None:
    assert not is_held(RunFolder(tmp_path))
    assert not is_held(RunFolder(tmp_path / "absent"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    real = os.open

    def refuse(path: str, *arguments: int) -> int:
        if Path(path).name == ".lock":
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *arguments)

    monkeypatch.setattr(os, "open", refuse)
    with (
        pytest.raises(RunError, match=r"\.lock: can't be locked \(Read-only file system\)"),
        alone_in(tmp_path, "busy"),
    ):
        pass
    assert not is_held(RunFolder(tmp_path))


@pytest.mark.parametrize("code", ["ENOSYS", "ENOLCK", "ENOTSUP", "EINVAL"])
def test_a_file_system_without_locks_will_do(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl", reason="locks files otherwise")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(getattr(errno, code), "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path, "busy"):
        assert not is_held(RunFolder(tmp_path))
    with alone_in(tmp_path, "busy"):
        pass


def _partials(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".partial"))


def test_what_killed_processes_left_is_removed_and_what_live_ones_write_is_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    machine = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:24] or "-"
    abandoned = [f".a.csv.{dead.pid}@{machine}.partial", f".status.json.{dead.pid}.partial"]
    live = [f".d.csv.{os.getpid()}@{machine}.partial", f".b.{os.getppid()}.partial"]
    elsewhere, long_ago = f".a.csv.{dead.pid}@another.partial", f".c.csv.{dead.pid}@another.partial"
    others = [".a.partial", ".12.partial", "a.csv.12.partial", f".a.csv.{10**400}.partial.csv"]
    for name in (*abandoned, *live, elsewhere, long_ago, *others):
        (tmp_path / name[:250]).write_text("half")
    os.utime(tmp_path / long_ago, (0, 0))
    folder = tmp_path / f".out.{dead.pid}@{machine}.partial"
    folder.mkdir()
    (folder / "file").write_text("half")
    write_atomically(tmp_path / "a.csv", "whole")
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {*live, elsewhere, *(name[:250] for name in others), "a.csv"}


def test_a_new_folder_removes_what_was_to_become_it_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in ("out", "other"):
        (tmp_path / f".{name}.{dead.pid}.partial").mkdir()
    with whole_folder(tmp_path / "out", RunError):
        pass
    assert _partials(tmp_path) == [f".other.{dead.pid}.partial"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_an_interruption_amid_a_write_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    path = tmp_path / "a.csv"
    write_atomically(path, "old")

    def interrupt(descriptor: int) -> None:
        raise stop

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(stop):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_the_longest_name_that_the_disk_takes_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{SNOWMAN}" * 85):
        write_atomically(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


def test_a_name_that_is_no_text_is_written_with_backslashes(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.csv", os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == r"caf\udce9.png"


def test_a_link_in_a_run_that_leads_elsewhere_is_not_written_through(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (run / "evaluations" / "other").mkdir(parents=True)
    elsewhere.mkdir()
    (tmp_path / "named").symlink_to(run)
    (run / "latest").symlink_to("evaluations")  # stays inside
    with alone_in(tmp_path / "named", "busy"):
        pass
    for place in ("masks", "evaluations/other/tables"):
        link = run / place
        link.symlink_to(elsewhere)
        for folder in (run, tmp_path / "named"):
            with pytest.raises(RunError, match=rf"{place}: is a link to .*elsewhere, outside"):
                refuse_links_out(folder)
            with pytest.raises(RunError, match="nothing was written"), alone_in(folder, "busy"):
                pass
        link.unlink()


STATUS = {"state": "finished", "epoch": 2, "threshold": 0.4}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", float("nan")),
        ("threshold", float("inf")),
        ("threshold", -0.1),
        ("threshold", "0.5"),
        ("threshold", [0.5]),
        ("threshold", True),
        ("state", "done"),
        ("state", None),
        ("epoch", -1),
        ("epoch", 1.5),
        ("epoch", "2"),
        ("best_value", "x"),
    ],
)
def test_a_status_that_can_not_be_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    run = RunFolder(tmp_path)
    run.write_status(**STATUS)
    assert run.read_status() == STATUS
    run.write_status(**{**STATUS, field: value})
    with pytest.raises(RunError, match=rf"status\.json:\s+{field}: .*\s.*copy the run folder again"):
        run.read_status()


def test_a_status_without_a_state_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_status(threshold=0.5)
    with pytest.raises(RunError, match="state: missing"):
        RunFolder(tmp_path).read_status()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"null", b"[" * 100_000, b"\0"])
def test_a_status_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(RunError, match=r"status\.json: .*copy the run folder again"):
        RunFolder(tmp_path).read_status()
