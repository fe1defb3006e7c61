"""What the tables and pictures of results are shown under, and in which order.

A section takes all whose name fits, so that a command that makes further ones needs no change here; what fits
no section is shown at the end, and nothing is shown twice.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from PIL import Image

from threefold.reporting.html import Block, Folded, Notice, Picture, Section, Text
from threefold.reporting.results import Part
from threefold.reporting.table import Table

Need = Literal["two classes", "a diagnosis", "site groups", "masks or structures", "structures"]


@dataclass(frozen=True)
class Chapter:
    """A section of the report and what goes into it.

    Attributes:
        title: of the section.
        text: what a reader should know before looking.
        figures: patterns of the names of figures, without ending.
        tables: patterns of the names of tables.
        folded: patterns of those of them that are shown on demand.
        verb: of threefold, that makes what goes into it.
        needs: what a run must have for there to be anything.
        without: names of figures that a later section shows, though they fit.
        none: what it means that an evaluated run has nothing of it.
    """

    title: str
    text: str
    figures: tuple[str, ...]
    tables: tuple[str, ...]
    verb: str = "evaluate"
    folded: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    without: tuple[str, ...] = ()
    none: str = ""


CHAPTERS = (
    Chapter(
        "Results by site",
        "Metrics on the test cases, with intervals and the numbers of cases and patients.",
        ("confusion*",),
        ("sites.*", "groups.*", "confusion"),
        folded=("*.patient",),
    ),
    Chapter("ROC", "", ("roc*",), ("roc*",), needs=("two classes",)),
    Chapter(
        "Calibration",
        "Whether predictions with a probability of 0.8 are correct in 8 of 10 cases.",
        ("calibration*", "reliability*", "temperature*"),
        ("calibration*", "reliability*", "temperature*"),
        needs=("a diagnosis",),
        none="the curves need two classes, and cases of both; `threefold explain` writes a table.",
    ),
    Chapter(
        "Prediction sets and unfamiliar images",
        "How often sets and intervals contain the truth, and the share of images unlike the training images.",
        (),
        ("coverage*",),
    ),
    Chapter(
        "Shift between sites",
        "The change in performance from the training sites to the others.",
        ("shift*",),
        ("shift*",),
        needs=("site groups",),
    ),
    Chapter(
        "Attention",
        "Where the classifier looks, compared with random maps and a centred blob.",
        ("attention*", "cam*", "grad*cam*"),
        ("attention*",),
        verb="explain",
        needs=("a diagnosis",),
    ),
    Chapter(
        "Shortcut use",
        "Whether the diagnosis relies on the site or another shortcut instead of the lesion.",
        ("shortcut*", "counterfactual*", "probe*"),
        ("shortcut*", "counterfactual*", "probe*"),
        verb="explain",
        needs=("a diagnosis",),
    ),
    Chapter(
        "Segmentation and topology",
        "The best, the worst and typical cases.",
        ("examples*", "volumes-best", "volumes-worst", "volumes-*", "topology*"),
        ("cases.dice", "structures*", "truth", "topology*"),
        needs=("masks or structures",),
        without=("volumes-disagreement",),
    ),
    Chapter(
        "Wrong diagnoses",
        "The test cases to review first.",
        (),
        ("cases.diagnosis",),
        needs=("a diagnosis",),
    ),
    Chapter(
        "Disagreements",
        "Cases in which the segmented topology and the classifier disagree, so one of them is wrong.",
        ("volumes-disagreement", "disagreement*"),
        ("disagreements",),
        needs=("a diagnosis", "structures"),
        none="none: topology and classifier agree in all conclusive cases.",
    ),
    Chapter("Training", "", ("losses*",), ("losses*",)),
)

_CAPTIONS = {
    "roc": "ROC by site group",
    "calibration": "Calibration by site group",
    "shift": "Metrics by site",
    "losses": "Losses and validation metrics by epoch",
    "confusion": "Test cases by true and predicted class",
    "examples": "Test cases by site group, from the best on the left to the worst on the right",
    "volumes-best": "The best test case by Dice",
    "volumes-worst": "The worst test case by Dice",
    "claims": "Each claim's difference with its interval; ticks: single pairs of runs",
    "volumes-all": "A typical test case",
    "volumes-disagreement": "A case whose topology and classifier disagree",
}


@dataclass(frozen=True)
class Shown:
    """Tables and pictures of a folder's results that no section has taken yet.

    Attributes:
        tables: by name.
        pictures: paths by name.
    """

    tables: dict[str, Table]
    pictures: dict[str, Path]

    def take(self, chapter: Chapter) -> tuple[Block, ...]:
        """Return and forget a chapter's figures and tables; empty where there is none."""
        names = [name for name in _fitting(self.pictures, chapter.figures) if name not in chapter.without]
        blocks: list[Block] = [picture(self.pictures.pop(name), caption(name)) for name in names]
        folded: list[Block] = []
        for name in _fitting(self.tables, chapter.tables):
            aside = any(fnmatchcase(name, pattern) for pattern in chapter.folded)
            (folded if aside else blocks).append(self.tables.pop(name))
        if folded:
            blocks.append(Folded("The same counted per patient", tuple(folded)))
        if blocks and chapter.text:
            blocks.insert(0, Text(chapter.text))
        return tuple(blocks)

    def rest(self) -> tuple[Block, ...]:
        """Return and forget everything that is left."""
        return self.take(Chapter("", "", ("*",), ("*",)))


def shown_of(parts: Mapping[str, Part], figures: Path) -> Shown:
    """Return the tables and pictures of some parts of results, those of each kind by their names in order.

    Args:
        parts: by name.
        figures: folder of the pictures.
    """
    tables = {table.name: table for part in parts.values() for table in part.tables}
    pictures = {name: figures / f"{name}.png" for part in parts.values() for name in part.pictures}
    return Shown(dict(sorted(tables.items())), dict(sorted(pictures.items())))


def sections_of(shown: Shown, chapters: Sequence[Chapter] = CHAPTERS) -> Iterator[tuple[Chapter, Section]]:
    """Yield each chapter and its section, which is without blocks where there is nothing."""
    for chapter in chapters:
        yield chapter, Section(chapter.title, shown.take(chapter))


def caption(name: str) -> str:
    """Return what a figure shows, by its name."""
    if name in _CAPTIONS:
        return _CAPTIONS[name]
    if name.startswith("volumes-"):
        return f"A typical test case: {name.removeprefix('volumes-')}"
    words = re.sub(r"[-_]+", " ", name).strip()
    return words[:1].upper() + words[1:]


def _fitting(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that fit, by pattern and then in their own order."""
    fitting = [name for pattern in patterns for name in names if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(fitting))


_AS_IT_IS = 150_000
"""Bytes up to which a PNG is taken as it is; larger ones, with scans in them, are encoded anew."""
_QUALITY = 88
_EFFORT = 2
"""Of 6: the default, 4, takes twice as long for a fortieth of the bytes."""
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
            image.convert("RGB").save(smaller, format="WEBP", quality=_QUALITY, method=_EFFORT)
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError is Pillow's of a broken PNG
        return Notice("bad", f"{path.name}: the picture can't be read ({error}). Make it again.")
    return Picture(caption, smaller.getvalue(), "image/webp", width, height)
