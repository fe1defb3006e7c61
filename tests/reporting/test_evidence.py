"""Tables and figures of a folder come in the declared order, each once, and what is new comes at the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from threefold.reporting.chapters import CHAPTERS, Shown, caption, picture, sections_of, shown_of
from threefold.reporting.html import Folded, Notice, Picture
from threefold.reporting.results import Part, read_results, write_part
from threefold.reporting.table import Table

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
    (tmp_path / "figures").mkdir()
    for name in NAMES:
        Image.new("RGB", (30, 15), "white").save(tmp_path / "figures" / f"{name}.png")
    tables = {
        "groups.case": "Test cases by group, per case",
        "sites.patient": "Test cases by site, per patient",
        "structures": "Structures, per case",
        "attention": "Attention inside the lesion",
        "cases.dice": "Best and worst cases by Dice",
        "truth": "Masks against the ground truth",
        "novelty": "Something new",
    }
    made = tuple(Table(title, ("a", "b"), (("1", "2"),), name=name) for name, title in tables.items())
    write_part(tmp_path, "evaluate", Part({}, (), made[:3], NAMES[:4]))
    write_part(tmp_path, "explain", Part({}, (), made[3:], NAMES[4:]))
    return tmp_path


def shown_in(folder: Path) -> Shown:
    return shown_of(read_results(folder), folder / "figures")


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
    found = shown_in(folder)
    shown = {section.title: titles(section.blocks) for _, section in sections_of(found) if section.blocks}
    assert shown == {
        "Results by site": ["Test cases by group, per case", "(Test cases by site, per patient)"],
        "ROC": ["ROC by site group"],
        "Attention": ["Attention external", "Attention inside the lesion"],
        "Segmentation and topology": [
            "The worst test case by Dice",
            "A typical test case: disc",
            "A typical test case: two",
            "Best and worst cases by Dice",
            "Structures, per case",
            "Masks against the ground truth",
        ],
        "Disagreements": ["A case whose topology and classifier disagree"],
    }
    assert list(shown) == [chapter.title for chapter in CHAPTERS if chapter.title in shown]
    assert titles(found.rest()) == ["X y", "Something new"]
    assert found.rest() == ()


def test_a_damaged_file_is_named_and_the_rest_is_shown(folder: Path) -> None:
    (folder / "figures" / "roc.png").write_bytes(b"no picture")
    found = shown_in(folder)
    sections = {section.title: section.blocks for _, section in sections_of(found)}
    (roc,) = sections["ROC"]
    assert isinstance(roc, Notice)
    assert "roc.png: the picture can't be read" in roc.text
    assert titles(found.rest()) == ["X y", "Something new"]


def test_without_folders_there_is_nothing(tmp_path: Path) -> None:
    found = shown_in(tmp_path)
    assert not any(section.blocks for _, section in sections_of(found))
    assert found.rest() == ()


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
