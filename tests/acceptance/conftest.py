"""What the commands of several tests need."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .places import Places


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """Folders and files by name, made when they are needed."""
    base = tmp_path_factory.mktemp("places")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THREEFOLD_CACHE", str(base / "cache"))
        yield Places(base)
    shutil.rmtree(base)
