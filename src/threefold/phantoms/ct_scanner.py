"""Scanner physics: what is outside the head, beam hardening, point spread, correlated noise.

Arrays are (I, J) float32; i grows to the patient's left and j to the back, as rows and columns of a scanner's
own image do.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from threefold.phantoms.head_parameters import Acquisition
from threefold.phantoms.head_section import Section
from threefold.phantoms.shapes import cover, soft
from threefold.phantoms.smooth_noise import Plane

_HOLDER_HU = {"cup": 900.0, "rails": 800.0, "table": 800.0}
_CLIP_HU = 1500.0
_CLIP_LENGTH, _CLIP_WIDTH = 15.0, 3.0  # mm


def pixel_positions(acquisition: Acquisition) -> tuple[Plane, Plane]:
    """Return (I, 1) positions to the left and (1, J) positions to the front of the gantry's axis, mm."""
    middle = (acquisition.size - 1) / 2
    steps = (np.arange(acquisition.size, dtype=np.float32) - np.float32(middle)) * np.float32(
        acquisition.spacing
    )
    return steps[:, None], -steps[None, :]


def section_of(acquisition: Acquisition, level: float) -> Section:
    """Return where the scanner cuts the head at a level, mm above the third ventricle's floor."""
    across, along = pixel_positions(acquisition)
    turn, tilt = math.radians(acquisition.rotation), math.radians(acquisition.tilt)
    across, along = across - np.float32(acquisition.shift[0]), along - np.float32(acquisition.shift[1])
    x = np.float32(math.cos(turn)) * across + np.float32(math.sin(turn)) * along
    y = np.float32(math.cos(turn)) * along - np.float32(math.sin(turn)) * across
    # A tilted gantry cuts the head at an angle: it looks longer, and its front is higher than its back.
    return Section(
        x=x,
        y=y * np.float32(math.cos(tilt)),
        level=level,
        slope=math.tan(tilt),
        pixel=acquisition.spacing,
        rows=across[:, 0],
        columns=along[0],
    )


def affine(acquisition: Acquisition, level: float) -> NDArray[np.float64]:
    """Return the (4, 4) affine of a slice to RAS+ mm; its third column is the slice's thickness."""
    step = acquisition.spacing
    corner = (acquisition.size - 1) / 2 * step
    return np.array(
        [[-step, 0, 0, corner], [0, -step, 0, corner], [0, 0, acquisition.thickness, level], [0, 0, 0, 1.0]]
    )


def add_surroundings(hu: Plane, acquisition: Acquisition) -> None:
    """Draw the head holder and, where it is there, the planted clip, in place."""
    x, y = pixel_positions(acquisition)
    width = acquisition.spacing
    if acquisition.holder == "cup":  # a thin shell under the head, from ear to ear
        d = np.abs(np.hypot(x, y + 2) - 108) - 0.8
        cover(hu, soft(d, width) * (y < -38), _HOLDER_HU["cup"])
    elif acquisition.holder == "rails":  # two upright arms
        d = np.abs(np.hypot(np.maximum(np.abs(x) - 74, 0), np.minimum(y + 52, 0)) - 34) - 1.0
        cover(hu, soft(d, width) * ((y < -20) & (np.abs(x) > 74)), _HOLDER_HU["rails"])
    elif acquisition.holder == "table":  # the wide curve of the table's top
        d = np.abs(np.hypot(x, y - 130) - 238) - 1.2
        cover(hu, soft(d, width), _HOLDER_HU["table"])
    if acquisition.shortcut:
        left, front, direction = acquisition.clip
        along = (x - left) * np.float32(np.cos(direction)) + (y - front) * np.float32(np.sin(direction))
        across = (y - front) * np.float32(np.cos(direction)) - (x - left) * np.float32(np.sin(direction))
        d = np.maximum(np.abs(along) - _CLIP_LENGTH / 2, np.abs(across) - _CLIP_WIDTH / 2)
        cover(hu, soft(d, width), _CLIP_HU)


def scan(
    hu: Plane, acquisition: Acquisition, *, in_head: Plane, petrous: Plane, noise_seed: int
) -> NDArray[np.int16]:
    """Turn the HU of the object into what the scanner shows.

    Args:
        hu: (I, J) of the object; overwritten.
        acquisition: the scanner.
        in_head: (I, J) squared distance from the head's middle in units of the skull's radius.
        petrous: (I, J) weight 0..1 of the dark band between the petrous bones.
        noise_seed: of the noise, which does not depend on what the object holds.

    Returns:
        (I, J) int16.
    """
    inside = in_head < 1
    # A bowl over the whole head, and a bright rim in the last centimetre under the skull.
    square = in_head * in_head
    bowl = inside * (square - np.float32(0.33) + np.float32(2.5) * square**3)
    hu += np.float32(acquisition.cupping) * bowl
    hu -= np.float32(acquisition.streak) * petrous
    sigma = acquisition.blur / acquisition.spacing
    # Separable and truncated, so that a change of the object stays where it is.
    hu = ndimage.gaussian_filter(hu, sigma, truncate=3.0, mode="nearest")
    if acquisition.sharpening:
        wide = ndimage.gaussian_filter(hu, 1.6 * max(sigma, 0.5), truncate=3.0, mode="nearest")
        hu += np.float32(acquisition.sharpening) * (hu - wide)
    # Photons are fewest through the middle of the head.
    amplitude = np.float32(acquisition.noise) * (np.float32(0.55) + np.float32(0.45) * np.exp(-1.5 * in_head))
    hu += amplitude * _noise(acquisition, noise_seed)
    hu += np.float32(acquisition.offset)
    return np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)


def _noise(acquisition: Acquisition, seed: int) -> Plane:
    """Return (I, J) noise of unit variance with the spectrum of filtered back-projection."""
    white = np.random.default_rng(seed).standard_normal((acquisition.size,) * 2, dtype=np.float32)
    spectrum = fft.rfft2(white)
    spectrum *= _noise_filter(acquisition.size, acquisition.spacing * acquisition.noise_frequency)
    return np.asarray(fft.irfft2(spectrum, s=white.shape), np.float32)


@lru_cache(maxsize=4)
def _noise_filter(size: int, peak: float) -> Plane:
    """Return the square root of the ramp times the kernel's fall beyond `peak` (cycles/pixel)."""
    first = fft.fftfreq(size).astype(np.float32)[:, None]
    last = fft.rfftfreq(size).astype(np.float32)[None, :]
    radius = np.hypot(first, last)
    gain = np.sqrt(radius) * np.exp(-0.5 * (radius / peak) ** 2)
    # Each column but the first and, for an even size, the last stands for two of the full spectrum.
    weight = np.full(last.shape, 2.0, np.float32)
    weight[:, 0] = 1
    if size % 2 == 0:
        weight[:, -1] = 1
    power = float((gain**2 * weight).sum()) / size**2
    return np.asarray(gain / np.sqrt(power), np.float32)
