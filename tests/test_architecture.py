"""The architecture: imports point one way, and heavy or foreign libraries stay in their packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from threefold.cli.verbs import GROUPS

SOURCE = Path(__file__).parents[1] / "src" / "threefold"

# A package may import packages of its own layer and of lower ones.
LAYERS = (
    {"checksums", "csv_tables", "errors", "experiment", "file_names", "interruption", "locks", "partials"}
    | {"paths", "validation", "experiments", "run", "threads", "topology", "waiting"}
    | {"allocation", "core", "models"},
    {"images"},
    {"cohorts"},
    {"phantoms"},
    {"networks", "evaluation"},
    {"atlases", "audits"},
    {"tasks"},
    {"inference", "interchange", "reporting", "runs"},
    {"training"},
    {"studies"},
    {"api", "__init__"},
    {"cli", "__main__"},
)
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}

FOREIGN = {
    "lightning": {"cli", "training", "inference"},
    "pydicom": {"images", "interchange"},
    "highdicom": {"interchange"},
    "nibabel": {"images"},
    "typer": {"cli"},
    "matplotlib": {"reporting"},
}
NO_TORCH = (
    "allocation",
    "checksums",
    "csv_tables",
    "experiment",
    "experiments",
    "validation",
    "errors",
    "run",
    "locks",
    "topology",
    "models",
    "file_names",
    "evaluation",
    "phantoms",
)


OPENING_NO_TEXT = ("PIL.Image.open", "Image.open", "gzip.open", "tarfile.open", "os.open")


@dataclass(frozen=True)
class SourceFile:
    """A file of the package, read and parsed once."""

    name: str
    imports: tuple[tuple[int, str], ...]  # line and module
    texts: tuple[tuple[int, str], ...]  # line of a text file that is opened, and what it leaves to the system
    writes: tuple[int, ...]  # lines of calls that write, copy or rename files

    @property
    def room(self) -> str:
        return self.name.split("/")[0].removesuffix(".py")


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module


def _texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield where text files are read or written in the encoding, or with the line ends, of the system."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        words = [value.value for value in node.args if isinstance(value, ast.Constant)]
        mode = next((w for w in words if isinstance(w, str) and {*w} <= {*"rwxabt+"}), "r")
        method = isinstance(node.func, ast.Attribute)
        writes = name == "write_text" or (name == "open" and mode[0] in "wxa")
        if name not in ("open", "read_text", "write_text") or "b" in mode:
            continue
        if name == "open" and method and ast.unparse(node.func) in OPENING_NO_TEXT:
            continue
        if name == "read_text" and not method:  # the project's own, which knows encodings
            continue
        given = {keyword.arg for keyword in node.keywords}
        if "encoding" not in given and "utf-8" not in words:
            yield node.lineno, f"{name} without an encoding"
        if writes and "newline" not in given:
            yield node.lineno, f"{name} without newline"


_WRITING = {"write_text", "write_bytes", "touch", "symlink_to", "copyfile", "copy2", "copytree", "move"}


def _writes(tree: ast.Module) -> Iterator[int]:
    """Yield the lines of calls that make, copy or rename files by themselves."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        words = [each.value for each in given if isinstance(each, ast.Constant)]
        alone = len(node.args) == 1 and not node.keywords and not words
        if (
            name in _WRITING
            or (name == "to_csv" and node.args)
            or (name in ("replace", "rename") and isinstance(node.func, ast.Attribute) and alone)
            or (
                name == "open"
                and ast.unparse(node.func) != "tarfile.open"
                and any(re.fullmatch(r"[rbt]*[wax+][bt+]*", str(word)) for word in words)
            )
        ):
            yield node.lineno


@pytest.fixture(scope="module")
def files() -> list[SourceFile]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(text)
        parts = (tuple(part(tree)) for part in (_imports, _texts, _writes))
        found.append(SourceFile(name, *parts))
    assert len(found) > 200
    return found


def test_every_package_has_a_layer(files: list[SourceFile]) -> None:
    homeless = {file.room for file in files} - LAYER.keys()
    assert not homeless, f"no layer: {homeless}; add them to LAYERS and to docs/explanation/house.md"


def test_imports_point_one_way(files: list[SourceFile]) -> None:
    wrong = []
    for file in files:
        for line, module in file.imports:
            top, _, rest = module.partition(".")
            other = rest.split(".")[0] if top == "threefold" else ""
            if (
                (other and LAYER[other] > LAYER[file.room])
                or file.room not in FOREIGN.get(top, {file.room})
                or (file.room in NO_TORCH and top in ("torch", "lightning"))
            ):
                wrong.append(f"{file.name}:{line}: {file.room} may not import {other or top}")
    assert not wrong, "\n".join(wrong)


def test_the_cpu_kernels_have_one_door(files: list[SourceFile]) -> None:
    """The rest of the program knows `cpu_kernels`, and the networks' plain classes not even that."""
    outside = [file for file in files if not file.name.startswith("networks/cpu/")]
    lines = [
        (file, line)
        for file in outside
        for line in (SOURCE / file.name).read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) threefold\.networks(\.cpu| import .*\bcpu\b)", line)
    ]
    assert len(lines) > 2
    wrong = [
        f"{file.name}: {line}"
        for file, line in lines
        if file.room == "networks" or line != "from threefold.networks.cpu import cpu_kernels"
    ]
    assert not wrong, "import cpu_kernels from threefold.networks.cpu: " + ", ".join(wrong)


def test_text_is_the_same_on_every_system(files: list[SourceFile]) -> None:
    wrong = [f"{file.name}:{line}: {what}" for file in files for line, what in file.texts]
    assert not wrong, "\n".join(wrong)


WRITE_THEMSELVES = {
    "run.py": "the functions that all others write through",
    "studies/study_worker.py": "the log of a run, which grows while it runs",
}


def test_files_are_written_through_one_module(files: list[SourceFile]) -> None:
    wrong = [
        f"{file.name}:{line}" for file in files if file.name not in WRITE_THEMSELVES for line in file.writes
    ]
    assert not wrong, "write by threefold.run, so that a kill leaves the old file or the new: " + ", ".join(
        wrong
    )


HEAVY = ("torch", "lightning", "pandas", "scipy", "sklearn", "skimage", "matplotlib")


QUICK = [
    (["--help"], 0),
    (["recipes", "list"], 0),
    (["check", "--help"], 0),
    (["train", "--help"], 0),
    (["recipes", "show", "hematoma/swin-cls"], 0),
    (["train", "hematoma/swin-cls", "--cohort", "x", "--out", "y", "training.epcohs=3"], 2),
]
"""Arguments and exit code."""


def test_quick_commands_import_nothing_heavy() -> None:
    script = (
        "import sys, threefold.cli.app as app\n"
        f"for arguments, _ in {QUICK!r}:\n"
        "    sys.argv = ['threefold', *arguments]\n"
        "    try:\n        app.main()\n    except SystemExit as end:\n        code = end.code\n"
        f"    heavy = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "    print('AFTER', arguments, code, heavy)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    after = [line for line in result.stdout.splitlines() if line.startswith("AFTER")]
    assert after == [f"AFTER {arguments} {code} []" for arguments, code in QUICK], (
        result.stdout + result.stderr
    )


def test_help_lists_the_verbs_without_importing_them() -> None:
    script = (
        "import sys, threefold.cli.app as app\nsys.argv = ['threefold', '--help']\n"
        "try:\n    app.main()\nexcept SystemExit:\n"
        "    print('AFTER', *{'numpy', 'pydantic', 'yaml', 'rich'} & {*sys.modules})\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    *lines, after = result.stdout.splitlines()
    assert after.split() == ["AFTER"]
    for verb in (verb for verbs in GROUPS.values() for verb in verbs.values()):
        assert any(line.endswith(verb.help) for line in lines), verb.help
        assert verb.load() is not None
