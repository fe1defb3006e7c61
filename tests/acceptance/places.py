"""What commands need: folders and files by name, each made once, at the smallest sizes that work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from threefold.phantoms.fetal_heart import PRESETS, make_fetal_heart_cohort
from threefold.run import RunFolder

from ..balls import write_balls
from ..hearts import SMALL_HEART
from ..images.conftest import write_dicom
from .forked import run
from .squares import write_squares

_ENCODER = (
    "network.encoder.size=mini",
    "network.encoder.embed_dim=8",
    "network.encoder.depths=[1, 1]",
    "network.encoder.heads=[1, 2]",
    "network.encoder.window=4",
)
SMALL = (
    *_ENCODER,
    "training.batch_size=4",
    "training.selection.metric=loss",
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=10",
)
"""What makes a network of slices and its training small."""
_ON_SQUARES = (*SMALL, "data.split.kind=column")
TRAIN = ("train", "hematoma/demo", *_ON_SQUARES, "training.epochs=2", "--cohort", "cohort", "--out")
"""The run's folder follows."""
_REGISTRATION = (
    "channels=[4,4,4,4]",
    "final_channels=[4]",
    "epochs=1",
    "affine_steps=2",
    "refinement_steps=2",
)
PROPAGATE = ("propagate", "balls", "--out", "propagated", "size=[16,16,16]", *_REGISTRATION)
TRAIN_ON_BALLS = (
    *("train", "aortic-arch/demo-seg", "network.channels=[4,8]", "data.preprocessing.size=[16,16,16]"),
    *("data.split.kind=column", "training.epochs=1", "training.selection.metric=loss"),
)
"""The cohort and the run's folder follow."""
CHAIN = (
    "data.preprocessing.size=[24,24,24]",
    "evaluation.replicates=10",
    "training.epochs=1",
    "training.selection.metric=loss",
    "segmenter.network.channels=[4,8]",
    "classifier.network.segmenter.channels=[4,8]",
    "joint.network.segmenter.channels=[4,8]",
    "propagation.size=[24,24,24]",
    *(f"propagation.{setting}" for setting in _REGISTRATION),
)
STUDY = ("study", "run", "tiny.yaml", "--out", "study", "--workers", "1")
_TINY = {
    "name": "tiny",
    "cohorts": {"heads": {"folder": "cohort"}},
    "overrides": [*_ON_SQUARES, "training.epochs=1"],
    "variants": {"cls": {"recipe": "hematoma/swin-cls"}, "seg": {"recipe": "hematoma/mtl-cls-seg"}},
    "seeds": [0],
    "threads": 1,
    "evidence": True,
    "replicates": 20,
    "claims": [{"claim": "masks help", "variant": "seg", "baseline": "cls"}],
}


class Places:
    """Makes what is needed, keeps it, and puts it into a fresh folder for each attempt.

    Attributes:
        home: where commands run, always the same path, so that what they write down of it is the same.
    """

    def __init__(self, base: Path) -> None:
        """Name a folder that is this object's alone."""
        self.home = base / "home"
        self._kept = base / "kept"
        self._kept.mkdir(parents=True)

    def fresh(self, *names: str) -> None:
        """Empty the home but for these; what was not made yet is made."""
        for name in names:
            if not (self._kept / name).exists():
                place = PLACES[name]
                self.fresh(*place.needs)
                place.make(self.home)
                _copy(self.home / name, self._kept / name)
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        for name in names:
            _copy(self._kept / name, self.home / name)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class Place:
    """Something that commands need.

    Attributes:
        make: makes it in the home.
        needs: names of what is to be there before.
    """

    make: Callable[[Path], None]
    needs: tuple[str, ...] = ()


def _left_by(*arguments: str) -> Callable[[Path], None]:
    def make(home: Path) -> None:
        answer = run(arguments, home)
        assert answer.code == 0, answer.said

    return make


def _stop(home: Path) -> None:
    """Leave of a run what a kill after its last epoch would have left."""
    (home / "run").rename(home / "stopped")
    stopped = RunFolder(home / "stopped")
    for path in (stopped.weights, stopped.predictions, stopped.structures):
        for each in stopped.path.glob(f"{path.stem}.*"):
            each.unlink()
    stopped.settings.unlink()
    shutil.rmtree(stopped.masks)
    stopped.write_status(state="running", epoch=2)


def _write_hearts(home: Path) -> None:
    make_fetal_heart_cohort(home / "hearts", PRESETS["demo"].model_copy(update=SMALL_HEART), 0)


def _write_series(home: Path) -> None:
    """A DICOM series of three slices, and what its cohort is to mean."""
    folder = home / "series"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(1000, 1100, (3, 6, 5))
    for number, plane in enumerate(pixels):
        write_dicom(folder / f"{number}.dcm", plane, (0, 0, 5 * number))
    meaning = {
        "name": "series",
        "modality": "ct",
        "dimensions": 2,
        "intensity": {"unit": "HU", "window": [0, 80]},
    }
    (home / "series" / "cohort.yaml").write_text(yaml.safe_dump(meaning))


def _write_change(home: Path) -> None:
    """The balls under another name, from another site."""
    (home / "balls").rename(home / "changed")
    for name, old, new in (("cases.csv", ",s,", ",t,"), ("cohort.yaml", "name: balls", "name: others")):
        path = home / "changed" / name
        path.write_text(path.read_text().replace(old, new))


PLACES = {
    "cohort": Place(lambda home: write_squares(home / "cohort")),
    "run": Place(_left_by(*TRAIN, "run"), ("cohort",)),
    "other": Place(lambda home: (home / "run").rename(home / "other") and None, ("run",)),
    "stopped": Place(_stop, ("run",)),
    "balls": Place(lambda home: write_balls(home / "balls") and None),
    "hearts": Place(_write_hearts),
    "series": Place(_write_series),
    "listed.json": Place(_left_by("export", "decathlon", "balls", "--out", "listed.json"), ("balls",)),
    "tiny.yaml": Place(lambda home: (home / "tiny.yaml").write_text(yaml.safe_dump(_TINY)) and None),
    "second": Place(_left_by(*TRAIN, "second", "training.seed=1"), ("cohort",)),
    "study": Place(_left_by(*STUDY), ("cohort", "tiny.yaml")),
    "predicted": Place(_left_by("predict", "run", "cohort", "--out", "predicted"), ("run", "cohort")),
    "propagated": Place(_left_by(*PROPAGATE), ("balls",)),
    "changed": Place(_write_change, ("balls",)),
}
