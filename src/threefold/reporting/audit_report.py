"""What an audit found, as files: findings, the ranked confounders, and pictures of their extremes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.audits.audit import Audit
from threefold.audits.confounders import Confounder
from threefold.cohorts.cohort import Case, Cohort
from threefold.csv_tables import table_text
from threefold.errors import ImageError
from threefold.images.reading import read_image
from threefold.reporting.table import Table, page
from threefold.run import make_folder, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "name",
    "target",
    "metric",
    "value",
    "low",
    "high",
    "higher",
    "p",
    "n",
    "patients",
    "from_disease",
)
_DRAWN = 6
_A_ROW = 8
_READS_BEST = 40


def write_audit(result: Audit, cohort: Cohort, folder: Path) -> tuple[Path, ...]:
    """Write audit.json, confounders.csv and .md, and extremes.png where a confounder is strong.

    Args:
        result: the audit of `cohort`.
        folder: made where it does not exist; files of an earlier audit are replaced.

    Returns:
        The files.

    Raises:
        RunError: the disk refuses.
    """
    make_folder(folder)
    rows = [[getattr(one, name) for name in _COLUMNS] for one in result.confounders]
    contents = {
        "audit.json": json.dumps(result.as_json(), indent=2) + "\n",
        "confounders.csv": table_text([_COLUMNS, *rows]),
        "confounders.md": page([confounder_table(result.confounders)]),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    paths = [folder / name for name in contents]
    strong = [one for one in result.confounders if one.is_strong][:_DRAWN]
    if strong:
        from threefold.reporting.figures import save

        paths.append(save(_extremes(strong, cohort), folder / "extremes.png"))
    return tuple(paths)


def confounder_table(found: Sequence[Confounder]) -> Table:
    """Return the strongest confounders as a table."""
    return Table(
        title="What tells the targets beside the images' content",
        columns=("column or measurement", "target", "AUC or Cramér's V", "higher in", "corrected p", "n"),
        rows=tuple(
            (
                one.name + (" *" if one.from_disease else ""),
                one.target,
                one.text().split(": ", 1)[1].split(" (higher")[0],
                one.higher,
                f"{one.p:.2g}",
                f"{one.n}/{one.patients}",
            )
            for one in found[:_READS_BEST]
        ),
        notes=(
            "[low, high]: 95 % interval over patients. p: corrected for all pairs of measurement and target "
            "(Holm). n: cases/patients. An AUC of 0.5 and a V of 0 tell nothing.",
            "* The disease itself can change it.",
        ),
    )


def _extremes(strong: Sequence[Confounder], cohort: Cohort) -> Figure:
    """Draw the cases of the lowest and the highest values, a row for each confounder."""
    from matplotlib.figure import Figure

    cases = {case.case_id: case for case in cohort.cases}
    figure = Figure(figsize=(1.6 * _A_ROW, 2.3 * len(strong)), layout="constrained")
    for part, one in zip(figure.subfigures(len(strong), 1, squeeze=False)[:, 0], strong, strict=True):
        part.suptitle(f"{one.target}: {one.text()}", fontsize=9, x=0.005, ha="left")
        for axes in (row := part.subplots(1, _A_ROW)):
            axes.axis("off")
        for axes, (case_id, value) in zip(row, one.extremes, strict=False):
            picture = _picture(cases[case_id], cohort)
            if picture is not None:
                axes.imshow(picture, cmap="gray", interpolation="nearest")
            axes.set_title(f"{case_id}\n{value}", fontsize=6)
    return figure


def _picture(case: Case, cohort: Cohort) -> NDArray[Any] | None:
    """Return a slice in the cohort's window, rows downwards; None where the file can't be read."""
    try:
        image = read_image(case.image, slice_index=case.slice_index, spacing=cohort.spec.spacing)
    except ImageError:
        return None
    plane = image.array if image.array.ndim == 2 else image.array[:, :, image.array.shape[2] // 2]
    values = plane.astype(np.float32)
    low, high = cohort.spec.intensity.window or np.percentile(values, (1, 99))
    shown = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return np.asarray(shown if image.facts.format == "picture" else np.rot90(shown))
