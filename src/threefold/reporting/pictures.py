"""Figures of a folder as pictures of a page."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from threefold.reporting.html import Block, Notice, Picture

_AS_IT_IS = 150_000
"""Bytes up to which a PNG is taken as it is; larger ones, with scans in them, are encoded anew."""
_QUALITY = 88
_SHOWN = 96 / 150
"""CSS pixels for a pixel of a figure, which has 150 to an inch: sharp on fine screens and in print."""


def picture(path: Path, caption: str) -> Block:
    """Return a PNG as a picture of a page, large ones as WebP; a notice where the file can't be read."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            width, height = (round(side * _SHOWN) for side in image.size)
            if len(content) <= _AS_IT_IS:
                image.verify()
                return Picture(caption, content, "image/png", width, height)
            smaller = io.BytesIO()
            image.convert("RGB").save(smaller, format="WEBP", quality=_QUALITY, method=4)
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is Pillow's of a broken PNG
        return Notice("bad", f"{path.name}: the picture can't be read ({error}). Make it again.")
    return Picture(caption, smaller.getvalue(), "image/webp", width, height)
