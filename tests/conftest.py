"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests run side by side and start processes: threads that wait for each other cost more than they give, and
# where a test asks for several, those that wait leave the core to others.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ.update(_THREADS | os.environ)

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real scans beside the project (THREEFOLD_SHARED overrides `../shared`)."""
    folder = Path(os.environ.get("THREEFOLD_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real scans are not at {folder} (set THREEFOLD_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of golden numbers beside the project (THREEFOLD_SHARED overrides `../shared`)."""
    folder = Path(os.environ.get("THREEFOLD_SHARED", ROOT.parent / "shared")) / "golden"
    if not folder.is_dir():
        pytest.skip(f"golden numbers are not at {folder} (set THREEFOLD_SHARED)")
    return folder
