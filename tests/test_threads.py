"""What is set so that threads give way to other work; the benchmark busy_cores.py says what that gains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from threefold import threads
from threefold.threads import available_cores, sharing_environment

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}


@pytest.fixture
def no_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of eight cores without control groups; returns where they would be."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "_OWN_GROUPS", tmp_path / "own")
    return tmp_path / "cgroup"


def test_waiting_is_short_and_the_number_of_threads_the_runtimes_own(no_groups: Path) -> None:
    assert sharing_environment({}) == WAITING


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_way_of_waiting_that_the_user_chose_stays(no_groups: Path, name: str) -> None:
    assert sharing_environment({name: "ACTIVE"}) == {}


def test_a_process_that_gets_a_number_of_threads_has_it_in_every_library(no_groups: Path) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    assert sharing_environment({"OMP_NUM_THREADS": "7"}, 3) == WAITING | dict.fromkeys(names, "3")


@pytest.mark.parametrize(
    ("files", "own", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/", 8),
        ({"cpu.max": "150000 100000"}, "0::/", 2),
        ({"cpu.max": "20000 100000"}, "0::/", 1),
        ({"cpu.max": "1600000 100000"}, "0::/", 8),
        ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 3),
        ({"a/cpu.max": "300000 100000"}, "0::/elsewhere", 8),
        ({"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/a", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 8),
    ],
)
def test_a_quota_counts_as_cores(no_groups: Path, files: dict[str, str], own: str, cores: int) -> None:
    for name, content in files.items():
        (no_groups / name).parent.mkdir(parents=True, exist_ok=True)
        (no_groups / name).write_text(content + "\n")
    (no_groups.parent / "own").write_text(own + "\n")
    assert available_cores() == cores
    limited = {name for name in sharing_environment({"MKL_NUM_THREADS": "5"}) if name.endswith("_THREADS")}
    assert limited == (set() if cores == 8 else {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"})


def _say(code: str) -> dict[str, object]:
    """Run code in a process whose user set nothing about threads; return the JSON that it prints last."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_the_command_sets_it_before_pytorch_is_there() -> None:
    said = _say(
        "import json, os, sys, threefold.cli.app as app\n"
        "before = 'GOMP_SPINCOUNT' in os.environ\n"
        "sys.argv = ['threefold', '--version']\n"
        "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
        "names = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')\n"
        "print(json.dumps({'before': before, 'torch': 'torch' in sys.modules,"
        " 'set': {name: os.environ.get(name) for name in names}}))"
    )
    assert said == {"before": False, "torch": False, "set": WAITING}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU's OpenMP runtime is PyTorch's on Linux")
def test_where_pytorch_is_there_already_its_runtime_is_told_of_more_threads_than_cores_once() -> None:
    said = _say(
        "import json, os, threading, torch\n"
        "from threefold.threads import share_cores\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
        "before, threads = tasks(), torch.get_num_threads()\n"
        "share_cores()\nonce = tasks()\nshare_cores()\n"
        "print(json.dumps({'more': once - before, 'again': tasks() - once, 'same': "
        "threads == torch.get_num_threads(), 'cores': len(os.sched_getaffinity(0))}))"
    )
    cores = said["cores"]
    assert isinstance(cores, int)
    assert said == {"more": cores + 1, "again": 0, "same": True, "cores": cores}
