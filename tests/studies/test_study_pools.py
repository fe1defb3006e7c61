"""Where runs are computed: memory, GPUs and stopping on this machine, and a Ray cluster of two workers."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from threefold import threads
from threefold.errors import UsageError
from threefold.studies import study_pools
from threefold.studies.study import run_study
from threefold.studies.study_folder import Outcome, StudyFolder
from threefold.studies.study_pools import (
    LocalPool,
    RayPool,
    fits,
    free_memory,
    local_workers,
    resident_memory,
    visible_gpus,
)
from threefold.studies.study_spec import load_study, plan_runs
from threefold.studies.study_worker import main, run_in_process

from .tiny import CLS, OVERRIDES, Heard, until, write_study

Started = Callable[[subprocess.Popen[bytes]], None] | None


def test_a_run_fits_beside_what_the_others_may_still_take() -> None:
    assert fits(4.0, 5.0, [])
    assert not fits(4.6, 5.0, [])  # some is left free
    assert not fits(4.0, 7.0, [(4.0, 1.0)])
    assert fits(4.0, 7.6, [(4.0, 1.0)])
    assert fits(4.0, 4.6, [(4.0, 6.0)])  # one that took more than promised takes no more from the rest


def test_memory_is_the_machines_or_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < free_memory() < 10_000
    assert resident_memory(os.getpid()) > 0.01
    assert resident_memory(2**30) == 0

    root, own = tmp_path / "cgroup", tmp_path / "own"
    group = root / "jobs" / "job-1"
    group.mkdir(parents=True)
    (group / "memory.max").write_text(f"{3 * 2**30}\n")
    (group / "memory.current").write_text(f"{2 * 2**30}\n")
    # What was read from files and can be dropped is no memory in use.
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {2**29}\n")
    own.write_text("4:cpuset:/elsewhere\n0::/jobs/job-1\n")
    monkeypatch.setattr(threads, "_CGROUP", root)
    monkeypatch.setattr(threads, "_OWN_GROUPS", own)
    monkeypatch.setattr(
        study_pools,
        "_fields",
        lambda path, known=study_pools._fields: (
            {"MemAvailable": 10 * 2**20} if path == Path("/proc/meminfo") else known(path)
        ),
    )
    assert free_memory() == pytest.approx(1.5)
    (group / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(10.0)
    # The group around it has a limit of its own; where the path is not there, the root's holds.
    for folder, left in ((group.parent, 1.0), (root, 0.25)):
        (folder / "memory.max").write_text(f"{int((left + 1) * 2**30)}\n")
        (folder / "memory.current").write_text(f"{2**30}\n")
        assert free_memory() == pytest.approx(left)
    own.write_text("0::/a/path/of/the/host\n")
    assert free_memory() == pytest.approx(0.25)
    own.unlink()
    assert free_memory() == pytest.approx(0.25)
    (root / "memory.max").unlink()
    monkeypatch.setattr(study_pools, "_fields", lambda path: {})
    assert free_memory() == math.inf


def test_workers_are_as_many_as_gpus_or_cores_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    assert [local_workers(threads, 0) for threads in (1, 3, 16)] == [8, 2, 1]
    assert local_workers(4, 2) == 2


def test_gpus_keep_the_names_that_a_scheduler_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(2) == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_gpus(2) == ("5", "7")
    assert visible_gpus(0) == ()


class Runs:
    """Stands for `run_in_process`: runs last until they are let go, and what was asked is kept."""

    def __init__(self) -> None:
        self.gpus: dict[str, str | None] = {}
        self.ends: dict[str, threading.Event] = {}

    def __call__(
        self, folder: Path, run: str, threads: int, *, gpu: str | None = None, started: Started = None
    ) -> Outcome:
        self.gpus[run] = gpu
        self.ends.setdefault(run, threading.Event()).wait(20)
        return Outcome(run, "finished", "", 0.0, 1.0)

    def end(self, run: str) -> None:
        self.ends.setdefault(run, threading.Event()).set()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs()
    monkeypatch.setattr(study_pools, "run_in_process", found)
    return found


def test_runs_are_admitted_while_workers_and_memory_last(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_pools, "free_memory", lambda: 8.0)
    pool = LocalPool(tmp_path, 1, 3)
    assert pool.has_room(1000.0)  # one goes even where it seems too much: the estimate may be wrong
    pool.submit("a", 4.0)
    assert not pool.has_room(4.0)  # 8 - 4 promised - 0.5
    assert pool.has_room(3.0)
    pool.submit("b", 3.0)
    assert not pool.has_room(1.0)
    monkeypatch.setattr(study_pools, "free_memory", lambda: 80.0)
    pool.submit("c", 3.0)
    assert not pool.has_room(1.0)  # no worker is free
    runs.end("b")
    assert [outcome.run for outcome in pool.wait()] == ["b"]
    assert pool.has_room(1.0)
    runs.end("a")
    runs.end("c")
    pool.close()
    assert {outcome.run for outcome in pool.wait()} == {"a", "c"}


def test_gpus_are_handed_out_evenly_and_come_back(runs: Runs, tmp_path: Path) -> None:
    pool = LocalPool(tmp_path, 1, 4, ("5", "7"))
    for run in "abc":
        pool.submit(run, 0.0)
    while len(runs.gpus) < 3:
        time.sleep(0.01)
    assert runs.gpus == {"a": "5", "b": "7", "c": "5"}
    runs.end("b")
    assert [outcome.run for outcome in pool.wait()] == ["b"]
    pool.submit("d", 0.0)
    while "d" not in runs.gpus:
        time.sleep(0.01)
    assert runs.gpus["d"] == "7"
    for run in "acd":
        runs.end(run)
    pool.close()


def fake_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Let the process of a run execute some code in place of a training."""
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        assert command[1:3] == ["-m", "threefold.studies.study_worker"]
        return real([sys.executable, "-c", code, *command[3:]], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


RUN = "one/a/split-0-seed-0"


@pytest.mark.parametrize(
    ("code", "state", "message"),
    [
        ("print('well')", "finished", ""),
        ("print('a'); print('error: too\\n  bad'); raise SystemExit(1)", "failed", "too\n  bad"),
        ("raise KeyError('x')", "failed", "exit status 1: KeyError: 'x'"),
        ("raise SystemExit(3)", "failed", "exit status 3: it said nothing"),
        ("raise SystemExit(130)", "interrupted", "stopped by a signal"),
        ("import os; os.kill(os.getpid(), 15)", "interrupted", "stopped by a signal"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "killed from outside (signal 9)"),
    ],
)
def test_how_a_run_ended_is_read_from_its_process(
    code: str, state: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_worker(monkeypatch, code)
    outcome = run_in_process(tmp_path, RUN, 1)
    assert (outcome.run, outcome.state) == (RUN, state)
    assert outcome.message == message if state != "failed" else outcome.message.startswith(message)
    assert 0 < outcome.memory < 1
    assert outcome.seconds > 0


def test_a_run_gets_its_threads_and_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_worker(
        monkeypatch,
        "import os, sys\n"
        "print(sys.argv[1:], os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])",
    )
    assert run_in_process(tmp_path, RUN, 3, gpu="7").state == "finished"
    said = StudyFolder(tmp_path).log(RUN).read_text()
    assert said == f"['{tmp_path}', '{RUN}'] 3 7\n"


def test_stopping_ends_the_processes_also_one_that_starts_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_worker(monkeypatch, "import time; time.sleep(60)")
    pool = LocalPool(tmp_path, 1, 2)
    pool.submit(RUN, 0.0)
    pool.submit("one/b/split-0-seed-0", 0.0)
    ended = pool.stop()  # most likely before the processes are there
    assert [outcome.state for outcome in ended] == ["interrupted"] * 2  # left alone, they finish
    pool.close()


def test_the_worker_tells_what_is_wrong_by_its_exit_status(
    tmp_path: Path, cohort_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), RUN]) == 1
    assert "not a study folder" in capsys.readouterr().err
    file = write_study(tmp_path / "tiny.yaml", cohort_folder)
    StudyFolder(tmp_path / "out").write(load_study(str(file)))
    assert main([str(tmp_path / "out"), RUN]) == 1
    assert f"the study has no run '{RUN}'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of this machine with two workers, which ignore Ctrl-C as if a script had started it."""
    ray = pytest.importorskip("ray")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    signal.signal(signal.SIGINT, before)
    yield ray
    ray.shutdown()


@pytest.mark.peer
def test_a_study_runs_on_a_ray_cluster(cluster: Any, cohort_folder: Path, tmp_path: Path) -> None:
    overrides = [*OVERRIDES[1:], "training.epochs=1"]
    file = write_study(
        tmp_path / "tiny.yaml", cohort_folder, variants={"cls": {"recipe": CLS}}, overrides=overrides
    )
    study, folder = load_study(str(file)), StudyFolder(tmp_path / "out")
    pool, heard = RayPool(folder.path, study.threads, "local"), Heard()
    (outcome,) = run_study(study, folder, pool, heard)
    pool.close()
    (plan,) = plan_runs(study)
    assert (outcome.run, outcome.state) == (plan.id, "finished"), heard.text
    assert folder.run(plan.id).predictions.is_file()
    assert cluster.is_initialized()  # it was there before the pool, and stays


@pytest.mark.peer
def test_what_a_ray_worker_does_wrong_is_its_runs_failure(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(folder: Path, run: str, threads: int, home: Path) -> Outcome:
        import os
        import subprocess
        import sys
        import time

        from threefold.studies import study_worker
        from threefold.studies.study_folder import Outcome

        if run == "dies":
            os._exit(1)
        if run.startswith("meets"):
            (folder / run).touch()
            while len([*folder.glob("meets*")]) < 2:  # alone it would wait for ever
                time.sleep(0.01)
        if run == "lasts":
            real = subprocess.Popen
            note = str(folder / "pid")
            code = (
                "import os, time; readers = os.environ.get('THREEFOLD_READERS'); "
                f"print(os.getpid(), os.getcwd(), readers, file=open({note!r}, 'w')); "
                "time.sleep(60); "
                f"print('left alone', file=open({note!r}, 'a'))"
            )
            study_worker.subprocess.Popen = lambda command, **options: real(  # type: ignore[attr-defined]
                [sys.executable, "-c", code], **options
            )
            return study_worker.run_in_process(folder, run, threads, home=home)
        return Outcome(run, "finished", "", 0.0, 0.0)

    monkeypatch.setattr(study_pools, "run_in_process", work)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("THREEFOLD_READERS", "my:READER")
    pool = RayPool(tmp_path, 1, "local")
    pool.submit("dies", 0.1)
    pool.submit("fine", 10**6)  # more than any node has: it is not left waiting for ever
    ended = {outcome.run: outcome for _ in range(2) if pool._running for outcome in pool.wait()}
    assert ended["fine"].state == "finished"
    assert ended["dies"].state == "failed"
    assert ended["dies"].message.startswith("the Ray worker was lost")
    for number in range(2):
        pool.submit(f"meets {number}", 0.1)
    assert {outcome.state for _ in range(2) if pool._running for outcome in pool.wait()} == {"finished"}
    for number in range(4):  # on two cores two run and two wait; a fifth would be asked what is known now
        assert pool.has_room(10**6)
        pool.submit(f"fine {number}", 0.1)
    assert not pool.has_room(0.1)
    while pool._running:
        pool.wait()
    pool.submit("lasts", 0.1)
    written = tmp_path / "pid"
    until(lambda: written.is_file() and written.read_text().endswith("\n"))
    pool.stop()
    process, home, readers = written.read_text().split()  # and did not come to its own end
    assert (home, readers) == (str(tmp_path / "home"), "my:READER"), "where your own code is imported from"
    with pytest.raises(ProcessLookupError):  # the run's own process ended with its task
        os.kill(int(process), 0)
    with pytest.raises(
        UsageError, match="`threads` is 64, but no node of the Ray cluster has more than 2 cores"
    ):
        RayPool(tmp_path, 64, "local")


def test_without_ray_or_its_cluster_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_pools, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'threefold\[ray\]'"):
        RayPool(tmp_path, 1, "local")


def test_a_run_that_the_system_does_not_start_is_that_runs_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: object, **options: object) -> Outcome:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(study_pools, "run_in_process", no_memory)
    pool = LocalPool(tmp_path, 1, 1)
    pool.submit("one/a/split-0-seed-0", 0.1)
    (outcome,) = pool.wait()
    pool.close()
    assert (outcome.run, outcome.state) == ("one/a/split-0-seed-0", "failed")
    assert "could not be started: [Errno 12] Cannot allocate memory" in outcome.message
