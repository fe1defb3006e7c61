"""Draw docs/results/fetal-heart-phantom/cases.png: a patient of each diagnosis, as the protocol makes them.

Run: python docs/figures/fetal_heart_phantom.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from threefold.phantoms.fetal_heart import PRESETS, preview, render_case, settled
from threefold.phantoms.fetal_parameters import draw_cases
from threefold.phantoms.fetal_protocol import DIAGNOSES

OUT = Path(__file__).parents[1] / "results" / "fetal-heart-phantom" / "cases.png"


def main() -> None:
    """Draw the picture."""
    spec = PRESETS["study"]
    internal = [case for case in draw_cases(spec, 0) if case.site == "site-01"]
    rows = []
    for diagnosis in DIAGNOSES:
        case = settled(next(c for c in internal if c.anatomy.diagnosis == diagnosis), spec, 0)
        rows.append(preview(render_case(case), case))
    picture = Image.fromarray(np.concatenate(rows))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.BICUBIC).save(OUT, optimize=True)
    print(OUT)


if __name__ == "__main__":
    main()
