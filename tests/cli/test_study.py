"""`threefold study list | run | status | compare`, with good input and bad."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from threefold.cli.app import main
from threefold.cohorts.cohort import Cohort, write_cohort
from threefold.cohorts.staging import row_of
from threefold.phantoms.head_ct import HeadCtSpec, make_head_ct_cohort
from threefold.studies import study_pools
from threefold.studies.study_folder import Outcome
from threefold.studies.study_worker import execute

ENCODER = '{"size": "mini", "embed_dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4}'
STUDY = {
    "name": "tiny",
    "description": "Two classifiers.",
    "cohorts": {"heads": {"phantom": "head-ct"}},
    "overrides": [
        "training.epochs=1",
        "training.selection.metric=loss",
        f"network.encoder={ENCODER}",
        "data.preprocessing.size=[32, 32]",
        "evaluation.replicates=20",
    ],
    "variants": {
        "cls": {"recipe": "hematoma/swin-cls"},
        "seg": {"recipe": "hematoma/mtl-cls-seg"},
        "bad": {"recipe": "hematoma/swin-cls", "overrides": ["training.optimiser.learning_rate=1.0e+30"]},
    },
    "seeds": [0],
    "memory": 0.2,
    "replicates": 50,
    "claims": [{"claim": "masks help", "variant": "seg", "baseline": "cls"}],
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    spec = HeadCtSpec(patients_per_site=4, external_patients_per_site=2, slices=(1, 2), sites=6, size=64)
    return make_head_ct_cohort(tmp_path_factory.mktemp("cli") / "my scans", spec, seed=5)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny.yaml, in which a run is trained in this process."""

    def run_here(folder: Path, run: str, threads: int, **ignored: object) -> Outcome:
        try:
            execute(folder, run)
        except Exception as error:
            return Outcome(run, "failed", str(error), 0.0, 0.1)
        return Outcome(run, "finished", "", 0.0, 0.1)

    monkeypatch.setattr(study_pools, "run_in_process", run_here)
    monkeypatch.setenv("THREEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Call the program; return exit status and what it printed on stdout and stderr."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["threefold", "study", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
    printed = capsys.readouterr()
    code = stop.value.code
    assert code is None or isinstance(code, int)
    return code or 0, printed.out, printed.err


def test_shipped_studies_are_listed_with_their_size(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert "hematoma-claims: 45 runs, 16 claims. The claims of arXiv 2505.06185" in out


def test_a_users_cohort_is_run_and_compared(
    workplace: Path, cohort: Cohort, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ("run", "tiny.yaml", "--out", "out", "--cohort", str(cohort.folder), "--workers", "1")
    code, out, err = call(capsys, *run, "--only", "my-scans/cls/*")
    assert (code, out) == (0, "out: 1 run finished now, 0 did not.\nNext: threefold study compare out\n")

    code, out, err = call(capsys, *run)
    assert code == 1  # a run failed; the others are there
    assert out.startswith("out: 1 run finished now, 1 did not.")
    assert "my-scans/bad/split-0-seed-0: failed: the validation loss is not finite" in err

    code, out, _ = call(capsys, "status", "out")
    assert code == 0
    assert "3 runs: 2 finished, 1 failed" in out
    code, out, _ = call(capsys, "status", "out", "--json")
    assert [(each["id"], each["state"], each["epochs"]) for each in json.loads(out)][:2] == [
        ("my-scans/cls/split-0-seed-0", "finished", 1),
        ("my-scans/seg/split-0-seed-0", "finished", 1),
    ]

    code, out, _ = call(capsys, "compare", "out")
    assert code == 0
    assert "masks help" in out
    assert "1 run not finished, for example my-scans/bad/split-0-seed-0" in out
    assert Path("out/tables/claims.md").is_file()
    assert Path("out/figures/claims.png").is_file()
    code, out, _ = call(capsys, "compare", "out", "--json")
    found = json.loads(out)
    assert found["missing"] == ["my-scans/bad/split-0-seed-0"]
    (claim,) = found["claims"]
    assert claim["verdict"] in ("supported", "contradicted", "undecided", "not estimable")
    assert claim["effect"]["cases"] > claim["effect"]["patients"] > 0


def test_a_cohort_whose_files_lie_elsewhere_is_asked_for(
    workplace: Path, cohort: Cohort, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row_of(case, cohort.spec) for case in cohort.cases]
    write_cohort(workplace / "elsewhere", cohort.spec, rows, allow_outside=True)
    study = {**STUDY, "cohorts": {"heads": {"folder": "elsewhere"}}}
    Path("tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    code, _, err = call(capsys, "run", "tiny.yaml", "--out", "o")
    assert code == 1
    assert "--allow-outside" in err
    assert not Path("o").exists()
    monkeypatch.setattr("threefold.studies.study.run_study", lambda *_: [])
    assert call(capsys, "run", "tiny.yaml", "--out", "o", "--allow-outside")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("run", "hematoma-claim", "--out", "o"), 2, "Did you mean 'hematoma-claims'?"),
        (("run", "nowhere.yaml", "--out", "o"), 2, "nowhere.yaml: no such file"),
        (("run", "tiny.yaml", "--out", "o", "--only", "heads/cl/*"), 2, "no run matches 'heads/cl/*'"),
        (("run", "tiny.yaml", "--out", "o", "--cohort", "nowhere"), 1, "nowhere"),
        (("status", "nowhere"), 1, "nowhere: not a study folder"),
        (("compare", "nowhere"), 1, "nowhere: not a study folder"),
    ],
)
def test_mistakes_are_told_alone(
    arguments: tuple[str, ...], code: int, said: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, out, err = call(capsys, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert said in err
    assert not Path("o", "runs").exists()


def test_a_study_without_a_finished_run_says_how_to_get_one(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("study").mkdir()
    Path("tiny.yaml").rename("study/study.yaml")
    code, _, err = call(capsys, "compare", "study")
    assert code == 1
    assert "study: none of its 3 runs has finished. Run it: `threefold study run`." in err


def test_an_interrupted_study_says_how_to_go_on(
    workplace: Path, cohort: Cohort, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: study_pools.LocalPool) -> list[Outcome]:
        raise KeyboardInterrupt

    stopped: list[str] = []
    monkeypatch.setattr(study_pools.LocalPool, "wait", interrupted)

    def stop(self: study_pools.LocalPool) -> list[Outcome]:
        stopped.append("stopped")
        return []

    monkeypatch.setattr(study_pools.LocalPool, "stop", stop)
    monkeypatch.setattr(study_pools, "run_in_process", lambda *a, **k: Outcome(a[1], "interrupted", "", 0, 0))
    code, _, err = call(capsys, "run", "tiny.yaml", "--out", "out", "--cohort", str(cohort.folder))
    assert code == 130
    assert err.endswith("interrupted. Repeat the command to resume.\n")
    assert stopped == ["stopped"]


def test_a_study_is_started_once_not_once_a_device(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("GROUP_RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "0")
    code, _, err = call(capsys, "run", "tiny.yaml", "--out", "out")
    assert code == 2
    assert "a study is one process" in err
    assert not Path("out").exists()
