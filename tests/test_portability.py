"""The package imports, locks, writes and runs where there is nothing of POSIX, as on Windows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_of_posix_is_needed(tmp_path: Path) -> None:
    script = Path(__file__).with_name("without_posix.py")
    result = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
