"""The golden numbers that travel with the project."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent


@pytest.fixture(scope="session")
def masc_losses() -> dict[str, Tensor]:
    return load_file(FOLDER / "masc_losses.safetensors")


@pytest.fixture(scope="session")
def swin_unet_formula() -> dict[str, Tensor]:
    return load_file(FOLDER / "swin_unet_formula.safetensors")
