"""Figures of docs/explanation/head-ct-phantom.md.

Run: python docs/figures/head_ct_phantom.py SHARED_DATA
where SHARED_DATA holds ct_ich/ and head_ct_dicom/. Of the real scans only histograms are kept.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from threefold.phantoms.head_ct import PRESETS, CaseParameters, case_parameters, render_case

OUT = Path(__file__).parents[1] / "results" / "head-ct-phantom"
SEED = 0
SITES = ("site-01", "site-02", "site-04", "site-05", "site-06", "site-09")
BINS = np.arange(-20, 101, 2.0)


def inside_skull(hu: NDArray[np.floating], bone_hu: float) -> NDArray[np.bool_] | None:
    """Return what the skull encloses, 3 pixels away from it; None where the section has no closed skull."""
    bone = ndimage.binary_closing(hu > bone_hu, iterations=2)
    labels, count = ndimage.label(ndimage.binary_fill_holes(bone) & ~bone)
    if count == 0:
        return None
    sizes = ndimage.sum_labels(np.ones_like(hu), labels, range(1, count + 1))
    inside = ndimage.binary_erosion(labels == 1 + int(np.argmax(sizes)), iterations=3)
    return inside if inside.sum() > 5000 else None


def dicom_values(folder: Path) -> NDArray[np.floating]:
    """Return the HU inside the skull of a DICOM series."""
    values = []
    for path in sorted(folder.glob("*.dcm")):
        data = pydicom.dcmread(path)
        hu = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
        hu = ndimage.uniform_filter(hu, 2)[::2, ::2]  # to about the phantom's pixels
        inside = inside_skull(hu, 150)
        if inside is not None:
            values.append(hu[inside])
    return np.concatenate(values)


def ct_ich_values(folder: Path) -> NDArray[np.floating]:
    """Return the same of the CT-ICH pictures, their window undone."""
    values = []
    for path in sorted(folder.glob("*.jpg")):
        grey = np.asarray(Image.open(path).convert("L").resize((224, 224), Image.Resampling.BOX), float)
        hu = grey / 255 * 120 - 20  # stored in the window of level 40 and width 120
        inside = inside_skull(hu, 96)
        if inside is not None:
            values.append(hu[inside])
    return np.concatenate(values)


def phantom_values(cases: list[CaseParameters]) -> NDArray[np.floating]:
    """Return the same of phantoms."""
    values = []
    for case in cases:
        hu = render_case(case).hu.astype(np.float32)
        inside = inside_skull(hu, 150)
        if inside is not None:
            values.append(hu[inside])
    return np.concatenate(values)


def histograms(shared: Path, cases: list[CaseParameters]) -> None:
    """Draw phantom and real scans side by side, and print their quantiles."""
    curves = {
        "phantom, sites 1 to 4": (phantom_values([c for c in cases if c.site <= "site-04"]), "C0", "-"),
        "phantom, sites 5 to 11": (phantom_values([c for c in cases if c.site > "site-04"]), "C1", "-"),
        "real: one DICOM head, no hemorrhage": (dicom_values(shared / "head_ct_dicom" / "series"), "k", "--"),
        "real: CT-ICH, 8-bit brain window": (ct_ich_values(shared / "ct_ich" / "images"), "0.5", "--"),
    }
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, (values, colour, style) in curves.items():
        share, _ = np.histogram(values, BINS)
        axes.plot(
            (BINS[:-1] + BINS[1:]) / 2, share / len(values) * 100, style, color=colour, label=name, lw=1.6
        )
        quantiles = np.percentile(values, [5, 25, 50, 75, 95]).round(1)
        print(f"{name:38s} n={len(values):8d}  HU at 5/25/50/75/95 %: {quantiles}")
    axes.set(xlabel="HU inside the skull", ylabel="% of pixels per 2 HU", xlim=(-20, 100), ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT / "histograms.png", dpi=110)


def sheet(cases: list[CaseParameters]) -> None:
    """Sites in columns; two slices without and two with hypodensities in rows."""
    figure, axes = plt.subplots(4, len(SITES), figsize=(9.6, 6.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[union-attr]
    for column, site in enumerate(SITES):
        for label in (False, True):
            chosen = [c for c in cases if c.site == site and c.label == label and c.slice_number == 3]
            for row, case in enumerate(chosen[:2]):
                axis = axes[row + 2 * label, column]
                axis.imshow(render_case(case).hu.T, cmap="gray", vmin=0, vmax=80, interpolation="bilinear")
        axes[0, column].set_title(site, fontsize=9)
    for row, axis in enumerate(axes[:, 0]):
        axis.set_ylabel("homogeneous" if row < 2 else "hypodensities", fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(OUT / "sheet.png", dpi=110)


def main() -> None:
    """Make both figures."""
    OUT.mkdir(parents=True, exist_ok=True)
    cases = list(case_parameters(PRESETS["study"], SEED))
    sheet(cases)
    histograms(Path(sys.argv[1]), cases[::12])
    for path in OUT.glob("*.png"):
        picture = Image.open(path).convert("L" if path.stem == "sheet" else "RGB")
        picture.save(path, optimize=True)
        print(path, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    main()
