"""When threads that wait go to sleep; the benchmark busy_cores.py says what that gains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from threefold import waiting

pytestmark = pytest.mark.skipif(not waiting.can_watch(), reason="waiting for a core is in Linux's /proc")


def _say(code: str, **environment: str) -> dict[str, object]:
    """Run code in a process whose user set nothing about threads; return the JSON that it prints last."""
    given = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=given | environment, capture_output=True, text=True, check=True
    )
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_waiting_for_a_core_is_summed_over_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task, content in {"1": "900 1500000000 7", "2": "1 500000000 7", "3": ""}.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(content)
    monkeypatch.setattr(waiting, "_TASKS", tmp_path)
    assert waiting.seconds_without_core() == 2.0


def test_the_runtime_is_told_of_more_threads_than_cores_while_the_machine_is_busy() -> None:
    said = _say(
        "import json, os, time, torch\n"
        "from threefold import waiting\n"
        "from threefold.threads import share_cores\n"
        "busy, begin = [0.0], time.monotonic()\n"
        "waiting.seconds_without_core = lambda: busy[0] * (time.monotonic() - begin)\n"
        "waiting.PERIOD = 0.005\n"
        "tasks = lambda: len(os.listdir('/proc/self/task'))\n"
        "def settles(expected):\n"
        "    deadline = time.monotonic() + 60\n"
        "    while tasks() != expected and time.monotonic() < deadline:\n"
        "        time.sleep(0.01)\n"
        "    return tasks() == expected\n"
        "threads, before = torch.get_num_threads(), tasks()\n"
        "share_cores()\n"
        "share_cores()\n"
        "idle = tasks() - before\n"
        "busy[0] = 1.0\n"
        "crowded = settles(before + 1 + 1 + os.cpu_count())\n"
        "busy[0] = 0.0\n"
        "alone = settles(before + 1)\n"
        "print(json.dumps({'idle': idle, 'crowded': crowded, 'alone': alone,"
        " 'threads kept': threads == torch.get_num_threads()}))"
    )
    assert said == {"idle": 1, "crowded": True, "alone": True, "threads kept": True}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_a_way_of_waiting_that_the_user_chose_is_not_watched(name: str) -> None:
    said = _say(
        "import json, threading\n"
        "from threefold.threads import share_cores\n"
        "share_cores()\n"
        "print(json.dumps({'threads': threading.active_count()}))",
        **{name: "1" if name.startswith("GOMP") else "ACTIVE"},
    )
    assert said == {"threads": 1}


def test_the_command_watches_without_loading_pytorch() -> None:
    said = _say(
        "import json, sys, threading, threefold.cli.app as app\n"
        "before = threading.active_count()\n"
        "sys.argv = ['threefold', '--version']\n"
        "try:\n    app.main()\nexcept SystemExit:\n    pass\n"
        "print(json.dumps({'more': threading.active_count() - before, 'torch': 'torch' in sys.modules}))"
    )
    assert said == {"more": 1, "torch": False}
