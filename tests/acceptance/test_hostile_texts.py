"""Whatever a text says, a command answers with a message of bounded length and an exit code: nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threefold.cli.app import main

pytestmark = pytest.mark.acceptance

MEANING = (
    b"name: squares\nmodality: photo\ndimensions: 2\nspacing: [1.0, 1.0]\n"
    b"intensity: {unit: grey, window: [0, 255]}\n"
)
TABLE = b"case_id,patient_id,site,image\na,p,s,a.png\nb,q,s,b.png\n"
LONGEST = 12_000

_BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
)

YAML = {
    "empty": b"",
    "binary": bytes(range(256)) * 40,
    "NUL": b"name: a\0b\n",
    "Latin-1": "name: Z\xfcrich\n".encode("latin-1"),
    "UTF-16": MEANING.decode().encode("utf-16"),
    "a bomb of anchors": _BOMB.encode(),
    "a wide bomb of anchors": b"a: &a [" + b"x, " * 700 + b"x]\nb: [" + b"*a, " * 700 + b"*a]\n",
    "an endless alias": b"name: &a [*a]\n",
    "deep lists": b"name: " + b"[" * 1500,
    "deep mappings": b"".join(b" " * n + b"a:\n" for n in range(200)),
    "deep but whole": b"name: " + b"[" * 200 + b"]" * 200 + b"\n",
    "a huge whole number": b"dimensions: " + b"9" * 10_000 + b"\n",
    "a huge number": MEANING.replace(b"[1.0, 1.0]", b"[1e400, 1.0]"),
    "not a number": MEANING.replace(b"[1.0, 1.0]", b"[.nan, 1.0]"),
    "a date": b"2020-13-45",
    "a date for a name": MEANING.replace(b"squares", b"2020-01-01"),
    "a key twice": MEANING + b"name: circles\n",
    "a tab": b"name:\n\t- a\n",
    "an object": b"!!python/object/apply:os.system ['true']\n",
    "a tag that converts": b"name: !!int ''\n",
    "another tag that converts": b"name: !!timestamp x\n",
    "a merge of a word": b"<<: a\nname: b\n",
    "keys that are no text": b"1: a\nnull: b\n",
    "a long value": b"dimensions: " + b"x" * 50_000 + b"\n",
    "a long key": b"x" * 50_000 + b": 1\n",
    "escapes of a terminal": b'name: "\\e[2J"\ndimensions: "\\e]0;\\a"\n',
}

CSV = {
    "empty": b"",
    "binary": bytes(range(256)) * 40,
    "NUL": TABLE.replace(b"q", b"q\0"),
    "UTF-16": TABLE.decode().encode("utf-16"),
    "Latin-1": TABLE.replace(b",q,", b",Z\xfcrich,"),
    "a quote that stays open": TABLE.replace(b"b,q", b'"b,q'),
    "a megabyte in a cell": TABLE.replace(b",q,", b"," + b"x" * 1_000_000 + b","),
    "lone carriage returns": TABLE.replace(b"\n", b"\r"),
    "many columns": b"case_id," + b",".join(b"c%d" % n for n in range(1000)) + b"\n",
    "a name twice": b"case_id,case_id\na,b\n",
    "a row that is too long": TABLE + b"c,r,s,a.png,1,2,3\n",
    "escapes of a terminal": TABLE.replace(b",q,", b",\x1b[2J,"),
    "a formula": TABLE.replace(b",q,", b",\"=cmd|' /C calc'!A0\","),
}


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _unreadable(path: Path) -> None:
    path.write_bytes(MEANING)
    path.chmod(0)


PLACES: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "a folder": Path.mkdir,
    "a loop of links": _loop,
    "a pipe": _pipe,
    "a file without permission": _unreadable,
}


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    folder = tmp_path / "cohort"
    folder.mkdir()
    for name in "ab":
        Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save(folder / f"{name}.png")
    (folder / "cohort.yaml").write_bytes(MEANING)
    (folder / "cases.csv").write_bytes(TABLE)
    return folder


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., int]:
    """Run a command; require a bounded answer without a traceback; return the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["threefold", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        assert "\x1b" not in printed.err
        assert len(printed.err) + len(printed.out) < LONGEST, f"{arguments}: {len(printed.err)}"
        return int(stop.value.code or 0)

    return run


def _verbs(file: str) -> dict[str, tuple[str, ...]]:
    return {
        "check": ("check", "cohort"),
        "train": ("train", file, "--cohort", "cohort", "--out", "run"),
        "chain": ("chain", file, "--cohort", "cohort", "--out", "chained"),
        "study": ("study", "run", file, "--out", "study"),
        "status": ("study", "status", "study"),
    }


@pytest.mark.parametrize("name", YAML)
def test_a_text_that_is_no_specification(
    name: str, cohort: Path, tmp_path: Path, call: Callable[..., int]
) -> None:
    (tmp_path / "file.yaml").write_bytes(YAML[name])
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.yaml").write_bytes(YAML[name])
    (cohort / "cohort.yaml").write_bytes(YAML[name])
    verbs = _verbs("file.yaml")
    turn = [*YAML].index(name) % 3  # the last three read alike: each text is for one of them
    for verb in ("check", "train", [*verbs][2 + turn]):
        assert call(*verbs[verb]) in (1, 2), verb


@pytest.mark.parametrize("name", PLACES)
def test_a_place_where_no_text_is(name: str, cohort: Path, tmp_path: Path, call: Callable[..., int]) -> None:
    if name == "a file without permission" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "study").mkdir()
    for path in (tmp_path / "file.yaml", tmp_path / "study" / "study.yaml", cohort / "cohort.yaml"):
        path.unlink(missing_ok=True)
        PLACES[name](path)
    for verb, arguments in _verbs("file.yaml").items():
        assert call(*arguments) in (1, 2), verb
    (cohort / "cohort.yaml").rename(tmp_path / "away") if name != "nothing" else None
    (cohort / "cohort.yaml").write_bytes(MEANING)
    (cohort / "cases.csv").unlink()
    PLACES[name](cohort / "cases.csv")
    assert call("check", "cohort") in (1, 2)


@pytest.mark.parametrize("name", CSV)
def test_a_table_that_is_none(name: str, cohort: Path, tmp_path: Path, call: Callable[..., int]) -> None:
    (cohort / "cases.csv").write_bytes(CSV[name])
    call("check", "cohort")
    (tmp_path / "table.csv").write_bytes(CSV[name])
    assert call("evaluate", "table.csv", "--out", "evaluated") in (1, 2)


@pytest.mark.parametrize(
    "name", ["deep lists", "a huge whole number", "a bomb of anchors", "a merge of a word"]
)
def test_an_override_that_is_no_value(name: str, cohort: Path, call: Callable[..., int]) -> None:
    override = f"training.epochs={YAML[name].decode()[:5000]}"
    assert call("train", "hematoma/demo", "--cohort", "cohort", "--out", "run", override) == 2
