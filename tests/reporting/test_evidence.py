"""Tables and figures of a folder come in the declared order, each once, and what is new comes at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threefold.reporting.evidence import CHAPTERS, caption, read_evidence, sections_of
from threefold.reporting.html import Folded, Notice, Picture
from threefold.reporting.pictures import picture
from threefold.reporting.table import Table, markdown

NAMES = (
    "volumes-disagreement",
    "volumes-two",
    "volumes-worst",
    "volumes-disc",
    "roc",
    "attention-external",
    "x_y",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tables").mkdir()
    (tmp_path / "figures").mkdir()
    for name in NAMES:
        Image.new("RGB", (30, 15), "white").save(tmp_path / "figures" / f"{name}.png")
    tables = {
        "metrics": (
            "Test cases by group, per case",
            "Test cases by site, per patient",
            "Structures, per case",
        ),
        "attention": ("Attention inside the lesion", "Random maps"),
        "cases": ("Best and worst cases by Dice",),
        "truth": ("Masks and the truth",),
        "novelty": ("Something new", "Something new"),
    }
    for name, titles in tables.items():
        text = "\n".join(markdown(Table(title, ("a", "b"), (("1", "2"),))) for title in titles)
        (tmp_path / "tables" / f"{name}.md").write_text(text)
    return tmp_path


def titles(blocks: tuple[object, ...]) -> list[str]:
    found = []
    for block in blocks:
        if isinstance(block, Table):
            found.append(block.title)
        if isinstance(block, Picture):
            found.append(block.caption)
        if isinstance(block, Folded):
            found += [f"({title})" for title in titles(block.blocks)]
    return found


def test_everything_is_shown_once_in_the_declared_order(folder: Path) -> None:
    evidence = read_evidence(folder / "tables", folder / "figures")
    shown = {section.title: titles(section.blocks) for _, section in sections_of(evidence) if section.blocks}
    assert shown == {
        "Results by site": ["Test cases by group, per case", "(Test cases by site, per patient)"],
        "ROC": ["ROC by site group"],
        "Attention": ["Attention external", "Attention inside the lesion", "Random maps"],
        "Segmentation and topology": [
            "The worst test case by Dice",
            "A typical test case: disc",
            "A typical test case: two",
            "Best and worst cases by Dice",
            "Structures, per case",
            "Masks and the truth",
        ],
        "Disagreements": ["A case whose topology and classifier disagree"],
    }
    assert list(shown) == [chapter.title for chapter in CHAPTERS if chapter.title in shown]
    assert titles(evidence.rest()) == ["X y", "Something new", "Something new"]
    assert evidence.rest() == ()


def test_a_damaged_file_is_named_and_the_rest_is_shown(folder: Path) -> None:
    (folder / "figures" / "roc.png").write_bytes(b"no picture")
    (folder / "tables" / "novelty.md").write_bytes(b"\xff\xfe")
    evidence = read_evidence(folder / "tables", folder / "figures")
    (roc,) = next(section.blocks for _, section in sections_of(evidence) if section.title == "ROC")
    assert isinstance(roc, Notice)
    assert "roc.png: the picture can't be read" in roc.text
    assert any(isinstance(block, Notice) and "novelty.md" in block.text for block in evidence.rest())


def test_without_folders_there_is_nothing(tmp_path: Path) -> None:
    evidence = read_evidence(tmp_path / "tables", tmp_path / "figures")
    assert not any(section.blocks for _, section in sections_of(evidence))
    assert evidence.rest() == ()


def test_a_large_picture_is_made_smaller_and_still_is_the_same(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    noise[:] += np.random.default_rng(1).integers(0, 5, noise.shape, np.uint8)
    Image.fromarray(noise).save(tmp_path / "scan.png")
    found = picture(tmp_path / "scan.png", "a scan")
    assert isinstance(found, Picture)
    assert found.media_type == "image/webp"
    assert len(found.content) < (tmp_path / "scan.png").stat().st_size / 2
    assert (found.width, found.height) == (410, 307)  # 640 x 480 pixels at 150 to an inch of 96
    Image.new("RGB", (150, 75)).save(tmp_path / "small.png")
    small = picture(tmp_path / "small.png", "")
    assert isinstance(small, Picture)
    assert (small.content, small.media_type) == ((tmp_path / "small.png").read_bytes(), "image/png")


def test_captions_say_what_unknown_figures_are_called() -> None:
    assert caption("attention_by-site") == "Attention by site"
    assert caption("volumes-DAA") == "A typical test case: DAA"
