"""The report of a propagation: every registration's status and score, and pictures of them, worst first."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from threefold.atlases.outcome import QUALITY_NAME
from threefold.atlases.signals import SIGNALS
from threefold.atlases.workplace import labels_of
from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.targets import read_structures
from threefold.errors import CohortError, ImageError
from threefold.images.geometry import Image
from threefold.images.preprocessing import canonical, place
from threefold.images.reading import read_image
from threefold.reporting.html import Block, Facts, Heading, Notice, Page, Picture, Section, Text, render
from threefold.reporting.table import Table
from threefold.run import write_atomically
from threefold.validation import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_NAME = "report.html"
_DRAWN = 24
_ORDER = {"failed": 0, "check": 1, "ok": 2}
_WIDTH = 900


def write_propagation_report(cohort: Cohort, footer: str) -> Path:
    """Write report.html into a propagated cohort's folder, and return its path.

    Args:
        cohort: as `propagate` returned it.
        footer: who made the page, and when.

    Raises:
        CohortError: quality.csv is missing or damaged.
        RunError: the disk refuses.
    """
    path = cohort.folder / REPORT_NAME
    write_atomically(path, render(propagation_page(cohort, footer)))
    return path


def propagation_page(cohort: Cohort, footer: str) -> Page:
    """Return the page of a propagated cohort.

    Raises:
        CohortError: quality.csv is missing or damaged.
    """
    remedy = "It is of the propagation: put it back, or propagate into another folder."
    table = read_table(cohort.folder / QUALITY_NAME, CohortError, remedy)
    needed = {"case_id", "registration", "reason", "score"}
    if not needed <= {*table}:
        raise CohortError(f"{cohort.folder / QUALITY_NAME}: not a table of registrations. {remedy}")
    rows: list[dict[str, str]] = table.to_dict("records")  # type: ignore[assignment]
    rows.sort(key=lambda row: (_ORDER.get(row["registration"], 0), -float(row["score"] or 1), row["case_id"]))
    counts = {status: sum(row["registration"] == status for row in rows) for status in _ORDER}
    cases = {case.case_id: case for case in cohort.cases}
    shown = [row for row in rows if row["case_id"] in cases][:_DRAWN]
    pictures: list[Block] = []
    for row in shown:
        pictures += _case(cases[row["case_id"]], row, cohort)
    if len(rows) > len(shown):
        pictures.append(Text(f"The {len(shown)} with the highest scores of {len(rows)} cases are drawn."))
    notice = Notice("good", f"None of {len(rows)} registrations failed by its measurements.")
    if counts["failed"] or counts["check"]:
        notice = Notice(
            "warning",
            f"Of {len(rows)} registrations {counts['failed']} failed: their cases have no structures, and "
            f"training leaves them out. {counts['check']} are to be checked: training uses them.",
        )
    return Page(
        title=f"Propagation to {cohort.spec.name}",
        lead="Atlas labels, transferred to each case by registration; the least certain first.",
        opening=(notice, Facts(tuple((status, str(count)) for status, count in counts.items()))),
        sections=(
            Section("Registrations", (_table(rows),)),
            Section("Pictures", tuple(pictures) or (Text("No image can be read."),)),
        ),
        footer=footer,
    )


def _table(rows: list[dict[str, str]]) -> Table:
    measures = [name for name in SIGNALS if any(row.get(name) for row in rows)]
    truth = ["dice"] if any(row.get("dice") for row in rows) else []
    columns = ["score", "correlation", *measures, "agreement", *truth]
    return Table(
        title="Registrations",
        columns=("case", "status", "reason", "atlas", *columns),
        rows=tuple(
            (
                row["case_id"],
                row["registration"],
                row["reason"],
                row.get("atlas", ""),
                *(_rounded(row.get(name, "")) for name in columns),
            )
            for row in rows
        ),
        notes=(
            "score: estimated probability that the true Dice is below 0.6.",
            *(f"{name}: {SIGNALS[name]}." for name in measures),
        ),
    )


def _rounded(text: str) -> str:
    try:
        return f"{float(text):.2f}"
    except ValueError:
        return text


def _case(case: Case, row: Mapping[str, str], cohort: Cohort) -> list[Block]:
    """Return a case's heading, reason and overlay; words instead of it where a file can't be read."""
    score = f", score {float(row['score']):.2f}" if row["score"] else ""
    blocks: list[Block] = [Heading(f"{case.case_id}: {row['registration']}{score}")]
    if row["reason"]:
        blocks.append(Text(row["reason"]))
    file = labels_of(cohort.folder, case.case_id)
    if not file.exists():
        return blocks
    try:
        image = read_image(case.image)
        labels = np.asarray(read_structures(file, None, image, cohort.spec).array, np.uint8)
        stream = io.BytesIO()
        _overlay(image, labels, cohort).savefig(stream, format="png", dpi=100)
    except ImageError as error:
        return [*blocks, Text(f"No picture: {error}")]
    caption = f"{case.case_id}: image, and the labels of {row.get('atlas', 'the atlas')} on it"
    return [*blocks, Picture(caption, stream.getvalue(), "image/png", _WIDTH, _WIDTH // 3 * 2)]


def _overlay(image: Image, labels: np.ndarray, cohort: Cohort) -> Figure:
    """Draw three planes through the labels' middle: the image above, the labels' outlines on it below."""
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    from threefold.reporting.volume_figures import COLOURS, PLANES, cut

    values = np.asarray(image.array, np.float32)
    low, high = cohort.spec.intensity.window or np.percentile(values, (1, 99.5))
    placement = place(image, image.array.shape)
    values, labels = canonical(values, placement), canonical(labels, placement)
    spacing = [image.spacing[axis] for axis in placement.axes]
    shown = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    places = np.argwhere(labels > 0)
    middle = np.round(places.mean(0)).astype(int) if len(places) else np.array(values.shape) // 2
    colours = np.zeros((256, 4))
    colours[1:, :3] = [to_rgb(COLOURS[k % len(COLOURS)]) for k in range(255)]
    colours[1:, 3] = 0.5
    figure = Figure(figsize=(9, 6), layout="constrained", facecolor="black")
    for row, panels in enumerate(figure.subplots(2, 3)):
        for axes, plane in zip(panels, PLANES, strict=True):
            across, down = (size for axis, size in enumerate(spacing) if axis != plane.axis)
            index = int(middle[plane.axis])
            axes.imshow(cut(shown, plane, index), cmap="gray", vmin=0, vmax=1, aspect=down / across)
            if row:
                overlay = colours[cut(labels, plane, index)]
                axes.imshow(overlay, aspect=down / across, interpolation="nearest")
            axes.axis("off")
    return figure
