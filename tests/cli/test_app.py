"""The program as a whole: its version, schemas, recipes, and errors that are printed alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import threefold
from threefold.cli.app import app, main, program
from threefold.errors import ThreefoldError
from threefold.experiments import recipe_names
from threefold.interruption import Stopped


def _output(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_version_names_the_extras_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("threefold.cli.extras.EXTRAS", {"first": "json", "second": "no_such_library"})
    said = "extras: first (of first, second)"
    assert _output("--version") == f"threefold {threefold.__version__}\n{said}\n"


@pytest.mark.parametrize(
    ("subject", "key"), [("experiment", "tasks"), ("cohort", "site_groups"), ("study", "variants")]
)
def test_schemas_are_json(subject: str, key: str) -> None:
    assert key in json.loads(_output("schema", subject))["properties"]


def test_recipes_are_listed_and_shown_with_changes() -> None:
    assert [row["name"] for row in json.loads(_output("recipes", "list", "--json"))] == [*recipe_names()]
    shown = ("recipes", "show", "hematoma/swin-cls", "training.epochs=3")
    assert yaml.safe_load(_output(*shown))["training"]["epochs"] == 3
    assert json.loads(_output(*shown, "--json")) == yaml.safe_load(_output(*shown))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("recipes", "show", "hematoma/swin-cl"), 2, "Did you mean 'hematoma/swin-cls'?"),
        (("check", "nowhere"), 1, "found nothing"),
    ],
)
def test_errors_are_printed_alone_with_their_code(
    arguments: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["threefold", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err


class _OddError(Exception):
    pass


FAILURES: list[tuple[BaseException, int, str]] = [
    (KeyboardInterrupt(), 130, "interrupted."),
    (Stopped(signal.SIGTERM), 143, "interrupted."),
    (MemoryError("Unable to allocate 9 TiB"), 1, "not enough memory (Unable to allocate 9 TiB)"),
    (RecursionError("maximum depth"), 1, "nested too deeply"),
    (OSError(errno.ENOSPC, "No space left on device", "run/a"), 1, "run/a: the disk refuses (No space left"),
    (OSError(errno.ELOOP, "Too many levels of symbolic links", b"b\xff"), 1, "the system refuses (Too many"),
    (OSError("no number"), 1, "the system refuses (no number)"),
    (
        UnicodeEncodeError("ascii", "\xe9", 0, 1, "ordinal not in range"),
        70,
        "UnicodeEncodeError: 'ascii' codec",
    ),
    (_OddError("first line\nwhat it is"), 70, "(_OddError: what it is)"),
    (KeyError("x"), 70, "(KeyError: 'x')"),
    (AssertionError(), 70, "(AssertionError)"),
    (ThreefoldError("a" * 2_000_000 + ". Do that."), 1, "1994010 characters left out"),
    (ThreefoldError("a\x1b[31m\r\nb\udce9\tc"), 1, "error: a\\x1b[31m\\r\nb\\xe9\tc\n"),
]


@pytest.mark.parametrize(("error", "code", "said"), FAILURES, ids=lambda value: type(value).__name__)
def test_nothing_but_a_message_and_a_code_leaves_the_program(
    error: BaseException,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("threefold.cli.app.app", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr().err
    assert stop.value.code == code
    assert said in printed
    assert "Traceback" not in printed
    assert len(printed) < 7000
    reports = list(tmp_path.glob("threefold-*.txt"))
    assert len(reports) == (code == 70)
    if reports:
        assert str(reports[0]) in printed
        assert type(error).__name__ in reports[0].read_text(encoding="utf-8")


def test_the_traceback_is_printed_where_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THREEFOLD_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["threefold", "check", "nowhere"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.splitlines()[-1].startswith("error: nowhere")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_last_word_changes_nothing(name: str) -> None:
    code = (
        "import atexit, os, signal, sys\n"
        "from threefold.cli.app import program\n"
        f"atexit.register(os.kill, os.getpid(), signal.{name})\n"
        "sys.argv = ['threefold', '--version']\n"
        "program()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("place", ["threefold.cli.app.app", "threefold.cli.verbs.Verbs.invoke"])
def test_a_signal_between_the_parts_of_a_program_ends_it_as_interrupted(
    place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(place, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(sys, "argv", ["threefold", "check", "nowhere"])
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as stop:
            program()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert stop.value.code == 143
    assert capsys.readouterr().err == "interrupted.\n"


def test_terminals_without_the_letters_and_readers_that_leave_are_answered() -> None:
    """A terminal of ASCII alone, and a pipe whose reader has gone."""
    script = f"'{sys.executable}' -m threefold"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    shown = subprocess.run(
        [sys.executable, "-m", "threefold", "check", "Z\xfcrich-\udce9"], env=environment, capture_output=True
    )
    assert (shown.returncode, b"Traceback" in shown.stderr) == (1, False)
    assert b"Z\\xfcrich" in shown.stderr
    assert b"\\xe9" in shown.stderr
    piped = subprocess.run(f"{script} schema study | true", shell=True, capture_output=True, text=True)
    assert piped.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="the names of files are UTF-8 there")
def test_files_have_their_names_in_a_locale_without_the_letters(tmp_path: Path) -> None:
    (tmp_path / "Z\xfcrich").mkdir()
    (tmp_path / "Z\xfcrich" / "cohort.yaml").write_text("name: x")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = (
        "import sys; from threefold.cli.app import main; from pathlib import Path\n"
        "sys.argv = ['threefold', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n"
        f"    print(Path({str(tmp_path)!r}, 'Z\\xfcrich', 'cohort.yaml').read_text())"
    )
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert shown.stdout.splitlines()[-1:] == ["name: x"], shown.stderr
