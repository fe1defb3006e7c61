"""What README and the how-to show runs as written, on a small phantom cohort in place of the reader's own."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from threefold.cli.app import main
from threefold.experiments import load_experiment
from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort
from threefold.studies import study_pools
from threefold.studies.study_folder import Outcome
from threefold.studies.study_worker import execute
from threefold.training import plan as training_plan

from ..hearts import SMALL_HEART

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "docs" / "how-to" / "own-data.md",
    ROOT / "docs" / "how-to" / "models.md",
    ROOT / "docs" / "how-to" / "explain.md",
    ROOT / "docs" / "how-to" / "probe.md",
    ROOT / "docs" / "tutorials" / "demo.md",
)
TINY = 'network.encoder={"size": "mini", "embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}'
# A reader trains for hours; the test asks whether the command works.
SHORT = (
    "training.epochs=1",
    "training.batch_size=8",
    TINY,
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=50",
)
AUTO_SHORT = ("network.channels=[4,8]", *(short for short in SHORT if short != TINY))
MODEL_SHORT = ("training.epochs=1", "data.preprocessing.size=[32, 32]", "evaluation.replicates=20")
PHANTOM_SHORT = ("external_patients_per_site=2", "slices=[1, 2]")
STUDY_SHORT = (
    "training.epochs=1",
    "training.selection.metric=loss",
    TINY,
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=20",
)
ARCH_PAGES = (ROOT / "docs" / "how-to" / "propagate.md", ROOT / "docs" / "how-to" / "aortic-arch.md")
PROPAGATION = (
    "size=[24,24,24]",
    "channels=[4,4,4,4]",
    "final_channels=[4]",
    "epochs=1",
    "refinement_steps=2",
    "affine_steps=2",
)
TRAINING = (
    "training.epochs=1",
    "training.selection.metric=loss",
    "data.preprocessing.size=[24, 24, 24]",
    "evaluation.replicates=50",
)
UNET, DENSENET = "channels=[4,8]", ("blocks=[1,1]", "growth=4", "stem=4")
CASCADE = (f"network.segmenter.{UNET}", *(f"network.classifier.{key}" for key in DENSENET))
ARCH_SHORT = {
    "propagate": PROPAGATION,
    "seg-lp-man": (*TRAINING, f"network.{UNET}"),
    "joint-multi-image": (*TRAINING, *CASCADE),
    "chain": (
        *(f"propagation.{key}" for key in PROPAGATION),
        *TRAINING,
        f"segmenter.network.{UNET}",
        *(f"{stage}.{key}" for stage in ("classifier", "joint") for key in CASCADE),
    ),
}
pytestmark = pytest.mark.acceptance


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of a page in one language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the arguments of each threefold command of a page."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "threefold":
                yield words[1:]


def run(arguments: list[str]) -> str:
    """Run a command in this process and return what it printed."""
    target = None
    if ">" in arguments:
        position = arguments.index(">")
        target, arguments = Path(arguments[position + 1]), arguments[:position]
    of_arch = [key for key in ARCH_SHORT if arguments[0] == key or f"aortic-arch/{key}" in arguments]
    if of_arch:
        # After what is given, so that a reader's 60 epochs are 1 here.
        arguments = [*arguments, *ARCH_SHORT[of_arch[0]]]
    elif arguments[0] == "phantom":
        arguments = [*arguments, *PHANTOM_SHORT]
    elif arguments[0] == "train" and {"threefold/head-ct", "hematoma/head-ct"} & {*arguments}:
        arguments = [*arguments, *MODEL_SHORT]
    elif arguments[1] == "auto":
        arguments = [*arguments, *AUTO_SHORT]
    elif arguments[0] == "train" and not arguments[1].endswith(".yaml"):
        given = {word.partition("=")[0] for word in arguments}
        arguments = [*arguments, *(short for short in SHORT if short.partition("=")[0] not in given)]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", ["threefold", *arguments])
        try:
            main()
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"threefold {shlex.join(arguments)} ended with {stop.code}")
    if target is not None:
        target.write_text(printed.getvalue())
    return printed.getvalue()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `my-cohort`, in which the snippets run."""
    folder = tmp_path_factory.mktemp("snippets")
    with contextlib.chdir(folder):
        run(
            ["phantom", "head-ct", "my-cohort", "--preset", "demo", "--patients-per-site", "4", "--seed", "3"]
        )
        (folder / "FILES").symlink_to(folder / "my-cohort" / "images")
        yield folder


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `my-hearts`, also as `my-cohort`, and `new-scans`, in which the snippets run."""
    folder = tmp_path_factory.mktemp("hearts")
    make_fetal_heart_cohort(folder / "my-hearts", PRESETS["demo"].model_copy(update=SMALL_HEART), 0)
    (folder / "my-cohort").symlink_to(folder / "my-hearts")
    (folder / "new-scans").symlink_to(folder / "my-hearts" / "images")
    with contextlib.chdir(folder):
        yield folder


@pytest.mark.parametrize("page", ARCH_PAGES, ids=lambda page: page.name)
def test_commands_of_the_aortic_arch_run_as_written(page: Path, hearts: Path) -> None:
    found = list(commands(page))
    assert len(found) >= 2
    for arguments in found:
        assert run(arguments), f"threefold {' '.join(arguments)} printed nothing"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_as_written(page: Path, workplace: Path) -> None:
    found = list(commands(page))
    assert len(found) >= 2
    for arguments in found:
        assert run(arguments), f"threefold {' '.join(arguments)} printed nothing"


def test_a_study_runs_as_written(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "how-to" / "studies.md"
    (text,) = blocks(page, "yaml")
    content = yaml.safe_load(text)
    content["seeds"], content["replicates"] = [0], 50
    content["overrides"] = [*content["overrides"], *STUDY_SHORT]
    Path("my-study.yaml").write_text(yaml.safe_dump(content))
    trained: list[str] = []

    def run_here(folder: Path, name: str, threads: int, **ignored: object) -> Outcome:
        trained.append(f"{folder}/{name}")
        if folder.name == "my-study":  # what is shipped trains for hours
            execute(folder, name)
        return Outcome(name, "finished", "", 0.0, 0.1)

    monkeypatch.setattr(study_pools, "run_in_process", run_here)
    monkeypatch.setattr(study_pools, "local_workers", lambda threads, gpus: 1)
    found = list(commands(page))
    assert {arguments[1] for arguments in found} == {"run", "status", "compare", "pack"}
    for arguments in found:
        assert run(arguments), f"threefold {' '.join(arguments)} printed nothing"
    assert len(trained) == len({*trained}) == 4 + 15
    assert len(Path("my-study/tables/claims.md").read_text().splitlines()) > 5


def test_folds_and_ensembles_run_as_written(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "how-to" / "cross-validation.md"

    def run_here(folder: Path, name: str, threads: int, **ignored: object) -> Outcome:
        execute(folder, name)
        return Outcome(name, "finished", "", 0.0, 0.1)

    monkeypatch.setattr(study_pools, "run_in_process", run_here)
    monkeypatch.setattr(study_pools, "local_workers", lambda threads, gpus: 1)
    monkeypatch.setattr(training_plan, "_audited", lambda *_: [])  # takes longer than two tiny trainings
    short = (*SHORT, "training.selection.metric=loss", "data.augmentation.flip=[0, 0.5]")
    for arguments in commands(page):
        more = short if arguments[0] == "crossvalidate" else ()
        assert run([*arguments, *more]), f"threefold {' '.join(arguments)} printed nothing"
    (code,) = blocks(page, "python")
    exec(code, {})
    rows = Path("my-folds/predictions.csv").read_text().splitlines()
    assert len(rows) == len(Path("my-cohort/cases.csv").read_text().splitlines())


def test_commands_on_reports_run_as_written(workplace: Path) -> None:
    known = [path for name in ("my-run", "my-trial", "tutorial/run") if (path := workplace / name).is_dir()]
    if known:
        (workplace / "shown-run").symlink_to(known[0])
    else:
        run(["train", "hematoma/swin-cls", "--cohort", "my-cohort", "--out", "shown-run"])
    for arguments in commands(ROOT / "docs" / "how-to" / "report.md"):
        assert run(arguments), f"threefold {' '.join(arguments)} printed nothing"
    assert (workplace / "shown-run.html").is_file()


def test_python_runs_as_written(workplace: Path) -> None:
    (snippet,) = blocks(PAGES[0], "python")
    if not (workplace / "my-run").exists():
        run(["train", "hematoma/mtl-cls-seg-rec", "--cohort", "my-cohort", "--out", "my-run"])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), {})
    assert len(printed.getvalue().splitlines()) == len(list((workplace / "my-cohort" / "images").iterdir()))


def test_an_exported_network_is_used_as_written(workplace: Path) -> None:
    pytest.importorskip("onnxruntime")
    page = ROOT / "docs" / "how-to" / "export.md"
    if not (workplace / "my-run").exists():
        run(["train", "hematoma/mtl-cls-seg-rec", "--cohort", "my-cohort", "--out", "my-run"])
    first, *others = commands(page)  # the others take as long each, and are tried with a network for tests
    assert [arguments[0] for arguments in others] == ["export", "predict", "predict"]
    assert "4 of the cohort" in run(first)
    (snippet,) = blocks(page, "python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "export.md", "exec"), {})
    assert "'classification': (4, 2)" in printed.getvalue()


def test_table_and_meaning_read_as_written(tmp_path: Path) -> None:
    from threefold.cohorts.cohort import read_cohort

    (tmp_path / "cases.csv").write_text(blocks(PAGES[0], "csv")[0])
    (tmp_path / "cohort.yaml").write_text(blocks(PAGES[0], "yaml")[0])
    cohort = read_cohort(tmp_path)
    assert [case.label for case in cohort.cases] == [1, 0, None]
    assert [case.mask is not None for case in cohort.cases] == [True, False, False]


OWN_CODE = {"own-network.md": "my_nets.py", "own-task.md": "my_tasks.py"}


def _own_code(page: Path) -> dict[str, dict[str, Any]]:
    """Save the code of a page and its experiments in the working folder; return these by their files."""
    if page.name in OWN_CODE:
        Path(OWN_CODE[page.name]).write_text("\n".join(blocks(page, "python")))
        sys.modules.pop(OWN_CODE[page.name].removesuffix(".py"), None)
    found = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    experiments = {f"{one['name']}.yaml": one for one in found if "extends" in one}
    for name, content in experiments.items():
        Path(name).write_text(yaml.safe_dump(content))
    return experiments


@pytest.mark.parametrize("name", ["own-network.md", "own-task.md", "targets.md"])
def test_experiments_with_targets_and_code_of_ones_own_build_as_written(name: str, workplace: Path) -> None:
    from threefold.cohorts.cohort import CohortSpec, read_cohort
    from threefold.core.targets import NumberTarget
    from threefold.tasks.build import build_network, build_tasks

    page = ROOT / "docs" / "how-to" / name
    declared = [yaml.safe_load(block) for block in blocks(page, "yaml")]
    cohort = next((CohortSpec.model_validate(one) for one in declared if "targets" in one), None)
    if cohort is None:
        volume = {"volume": NumberTarget(kind="number", unit="mL")}
        cohort = read_cohort(workplace / "my-cohort").spec.model_copy(update={"targets": volume})
    experiments = _own_code(page)
    assert experiments
    for file, said in experiments.items():
        experiment = load_experiment(file)
        tasks = build_tasks(experiment, cohort)
        heads = {task.name for task in tasks if task.head is not None}
        assert {key for key, value in said["tasks"].items() if value is not None} <= heads
        assert build_network(experiment, cohort, tasks)


def test_a_network_of_ones_own_runs_as_written(workplace: Path) -> None:
    page = ROOT / "docs" / "how-to" / "own-network.md"
    content = _own_code(page)["convnext.yaml"]
    content["training"] = {"epochs": 1, "batch_size": 8, "selection": {"metric": "loss"}}
    content["data"] = {"preprocessing": {"size": [32, 32]}}
    content["evaluation"] = {"replicates": 20}
    Path("convnext.yaml").write_text(yaml.safe_dump(content))
    found = list(commands(page))
    assert [arguments[0] for arguments in found] == ["train", "evaluate", "explain", "predict"]
    for arguments in found:
        assert run(arguments), f"threefold {' '.join(arguments)} printed nothing"


def test_targets_read_as_written(tmp_path: Path) -> None:
    from threefold.cohorts.cohort import read_cohort

    page = ROOT / "docs" / "how-to" / "targets.md"
    (tmp_path / "cases.csv").write_text(blocks(page, "csv")[0])
    (tmp_path / "cohort.yaml").write_text(blocks(page, "yaml")[0])
    cases = read_cohort(tmp_path).cases
    assert cases[0].targets["findings"] == (False, True, None)
    assert [case.targets.get("hypodensity") for case in cases] == [1, None, 0]
    assert [case.targets.get("age") for case in cases] == [71, 71, None]
    assert ["hematoma" in case.targets for case in cases] == [True, False, True]
