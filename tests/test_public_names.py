"""`import threefold as tf`: what it offers, what it costs, and what type checkers know of it."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from mypy import api as mypy

import threefold as tf

HEAVY = {"numpy", "torch", "pandas", "typer", "pydantic", "yaml", "rich"}
SCRIPT = f"""
import sys
before = {{*sys.modules}}
import threefold as tf
assert {{*tf.__all__}} < {{*dir(tf)}}
print(*sorted({HEAVY!r} & {{*sys.modules}}), *(name for name in sys.modules if name.startswith("threefold.")))
print(len({{*sys.modules}} - before))
tf.Experiment, tf.read_cohort, tf.recipe
print(*sorted({{"torch", "lightning", "matplotlib"}} & {{*sys.modules}}))
"""


def test_importing_the_package_imports_nothing_else() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    heavy, count, after_use = result.stdout.split("\n")[:3]
    assert heavy == ""
    assert int(count) < 50
    assert after_use == ""  # an experiment is read without torch


@pytest.mark.parametrize("name", tf.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    value = getattr(tf, name)
    assert inspect.getdoc(value)
    members = vars(value).items() if inspect.isclass(value) and value.__module__ == "threefold.api" else ()
    for inner, member in members:
        if not inner.startswith("_") and (callable(member) or isinstance(member, property)):
            assert inspect.getdoc(member), f"{name}.{inner}"


def test_all_names_are_found_and_no_others() -> None:
    """Those that are imported when they are used are those that type checkers are shown."""
    places = {name: module for module, names in tf._PLACES.items() for name in names}
    shown = {
        alias.name: str(node.module).removeprefix("threefold.")
        for node in ast.walk(ast.parse(inspect.getsource(tf)))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("threefold.")
        for alias in node.names
    }
    assert places == shown
    assert sorted(places) == tf.__all__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(tf, "nothing")  # noqa: B009


CONSUMER = """
import threefold as tf

experiment: tf.Experiment = tf.recipe("hematoma/demo", {"training.epochs": 5})
run: tf.Run = tf.train(experiment, tf.read_cohort("my-cohort"), "my-run")
reveal_type(tf.evaluate(run))
reveal_type(run.predict("scan.nii.gz")[0].probabilities)
reveal_type(tf.compare(run, "other", metric="auc").change.value)
tf.recipes("hematoma/demo")
tf.train("hematoma/demo", "my-cohort", "my-run")
"""
SAID = (
    'Revealed type is "threefold.api.Results"',
    'Revealed type is "typing.Mapping[str, float]"',
    'Revealed type is "float"',
    'Module has no attribute "recipes"; maybe "recipe"?',
    'Argument 1 to "train" has incompatible type "str"; expected "Experiment | Plan"',
)


def test_the_names_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = tmp_path / "consumer.py"
    consumer.write_text(CONSUMER, encoding="utf-8", newline="\n")
    monkeypatch.setenv("MYPYPATH", str(Path(tf.__file__).parents[1]))
    # Of other packages nothing is read, which would take a minute.
    options = ["--strict", "--follow-imports", "silent", "--no-site-packages", "--ignore-missing-imports"]
    said, _, _ = mypy.run(
        ["--config-file", "", "--cache-dir", str(tmp_path), *options, "--no-error-summary", str(consumer)]
    )
    lines = said.splitlines()
    assert len(lines) == len(SAID), said
    for line, expected in zip(lines, SAID, strict=True):
        assert expected in line
