"""Fixtures that every test may use."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# On a busy machine any example may take long: how long says nothing of what it shows.
settings.register_profile("threefold", deadline=None)
settings.load_profile("threefold")

# Tests run side by side and start processes: threads that wait for each other cost more than they give, and
# where a test asks for several, those that wait leave the core to others.
_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
os.environ.update(_THREADS | os.environ)
# A process that a test starts, and each worker, would compile the whole package anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Begun in the background this process ignores interrupts, and so would those that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]


SCANS = {
    "ct_ich": "36 head CT slices with masks, PhysioNet ct-ich 1.0.0",
    "head_ct_dicom": "a tilted, uneven head CT series, dcm_qa_ct of Aliza Medical Imaging",
    "fetal_brain": "8 fetal brain MRI averages with parcellations, Fidon et al. 2021",
    "aortic_arch_ct": "masks of a dissected aortic arch, test files of TotalSegmentator",
}
"""Real scans that some tests read, which don't travel with the project: by folder."""


def shared() -> Path:
    """Return the folder beside the project (THREEFOLD_SHARED overrides `../shared`)."""
    return Path(os.environ.get("THREEFOLD_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def shared_data(request: pytest.FixtureRequest) -> Path:
    """Folder of real scans; a test names those that it reads: `@pytest.mark.real("ct_ich")`."""
    marker, folder = request.node.get_closest_marker("real"), shared() / "data"
    assert marker is not None
    for name in marker.args:
        if not (folder / name).is_dir():
            pytest.skip(f"needs {SCANS[name]}, in {folder / name} (set THREEFOLD_SHARED)")
    return folder


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Folder of golden numbers that are too large to travel with the project."""
    folder = shared() / "golden"
    if not folder.is_dir():
        pytest.skip(f"needs swin_unet_dim24.safetensors, 7.8 MB, in {folder} (set THREEFOLD_SHARED)")
    return folder


EVALUATING = ("acceptance", "cli", "docs", "studies")


@pytest.fixture(autouse=True, scope="module")
def _blank_figures_of_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leave the figures of evaluated runs blank, where drawing them would be half of a test's time.

    They are drawn in the tests of figures, and in modules that are marked `drawn`.
    """
    if request.path.parent.name not in EVALUATING or request.node.get_closest_marker("drawn"):
        yield
        return
    with blank_figures():
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leave what is written to the system: tests kill processes, and none turns the machine off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@contextmanager
def blank_figures() -> Iterator[None]:
    """Write figures of evaluated runs as blank pictures of their size."""
    from PIL import Image

    from threefold.run import write_atomically

    def blank(figure: Any, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        width, height = (9, 6) if figure is None else figure.get_size_inches()
        Image.new("RGB", (int(150 * width), int(150 * height)), "white").save(buffer, format="PNG")
        write_atomically(path, buffer.getvalue())
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threefold.reporting.run_report.save", blank)
        patch.setattr("threefold.reporting.run_report.volume_figure", lambda example: None)
        yield
