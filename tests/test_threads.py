"""What is set so that threads give way to other work; the benchmark busy_cores.py says what that gains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from threefold import threads
from threefold.threads import available_cores, sharing_environment

WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
ALONE = {"OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture
def no_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of eight cores without control groups; returns where they would be."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(threads, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(threads, "can_watch", lambda: False)
    return tmp_path / "cgroup"


def test_threads_sleep_where_cores_cant_be_watched_and_their_number_is_the_runtimes_own(
    no_groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sharing_environment({}) == WAITING | ALONE
    monkeypatch.setattr(threads, "can_watch", lambda: True)
    assert sharing_environment({}) == ALONE


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_a_way_of_waiting_that_the_user_chose_stays(no_groups: Path, name: str) -> None:
    assert sharing_environment({name: "ACTIVE"}) == ALONE


def test_numpys_threads_are_as_many_as_the_user_says(no_groups: Path) -> None:
    assert sharing_environment({"OPENBLAS_NUM_THREADS": "4"}) == WAITING


def test_a_process_that_gets_a_number_of_threads_has_it_where_networks_compute(no_groups: Path) -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    assert sharing_environment({"OMP_NUM_THREADS": "7"}, 3) == WAITING | ALONE | dict.fromkeys(names, "3")


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
    added = sharing_environment({"MKL_NUM_THREADS": "5"})
    limited = {"OMP_NUM_THREADS": str(cores)} if cores < 8 else {}
    assert added == WAITING | ALONE | limited


def test_numpy_that_is_loaded_already_computes_with_one_thread() -> None:
    code = (
        "import numpy, threefold.threads; threefold.threads.share_cores()\n"
        "import threadpoolctl; print(*{each['num_threads'] for each in threadpoolctl.threadpool_info()})"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["1"]
