"""What a benchmark ran on, in one line: the processor and the instruction sets that were used."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

# What makes oneDNN say, in a process of its own, which instruction set it has settled on.
_MULTIPLY = "import torch; torch.nn.functional.conv2d(torch.ones(2, 8, 8, 8), torch.ones(8, 8, 3, 3))"


def machine() -> str:
    """Name the processor, and the instruction sets of oneDNN and of PyTorch's own loops."""
    import torch

    return f"{_processor()} (oneDNN: {_onednn()}; PyTorch: {torch.backends.cpu.get_cpu_capability()})"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _onednn() -> str:
    """Return the instruction set as oneDNN names it; it heeds ONEDNN_MAX_CPU_ISA."""
    done = subprocess.run(
        [sys.executable, "-c", _MULTIPLY],
        env={**os.environ, "ONEDNN_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    named = re.search(r"isa:(.+)", done.stdout)
    return "none" if named is None else named.group(1).strip()
