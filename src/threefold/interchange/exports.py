"""A run's network in another format: its files, what they take and give, and how closely they agree.

OUT/
  model.onnx, or model.xml and model.bin   the network: images to raw outputs
  export.json                              what goes in and comes out, the steps before and after, checksums
  parity.json                              each image that it was compared with PyTorch on
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from threefold import __version__
from threefold.checksums import seal_object, verify_object
from threefold.cohorts.cohort import Case
from threefold.core.targets import NumberTarget
from threefold.errors import RunError
from threefold.images.geometry import Image
from threefold.images.preprocessing import WINDOWS, prepare_image
from threefold.inference.engine import Prepared
from threefold.inference.listing import Source
from threefold.inference.predictor import Predictor
from threefold.inference.sources import prepare
from threefold.interchange.engines import (
    FEATURES,
    FILES,
    IMAGE,
    Engine,
    EngineNetwork,
    Format,
    format_of,
    write_network,
)
from threefold.interchange.parity import Agreement, require_parity
from threefold.models.store import engines_of
from threefold.run import RunFolder, whole_folder, write_new
from threefold.tasks.build import channels_of
from threefold.tasks.classification import ClassificationTask
from threefold.tasks.multilabel import MultilabelTask
from threefold.tasks.questions import Question
from threefold.validation import read_json

DESCRIPTION, PARITY = "export.json", "parity.json"
_RANDOM = 2
_AGAIN = "Export the run again: `threefold export RUN FORMAT --out OUT`."


def export_run(
    predictor: Predictor, out: Path, engine: Engine, cases: Sequence[Case] = ()
) -> tuple[Agreement, ...]:
    """Write a run's network for another engine, compared with PyTorch before it gets its name.

    Args:
        predictor: of a run, on the CPU.
        out: a new or empty folder.
        engine: it is compared in.
        cases: of the cohort trained on, to compare it on beside random images.

    Returns:
        How closely it agrees on each image.

    Raises:
        UsageError: a library is missing.
        RunError: the network can't be written, answers otherwise than in PyTorch, or the folder can't be
            made.
    """
    format_ = format_of(engine)
    size = predictor.experiment.data.preprocessing.size
    images = [*_random_images(predictor), *_real_images(predictor, cases)]
    with whole_folder(out, RunError) as beside:
        names = write_network(
            predictor.network,
            beside,
            format_,
            channels=channels_of(predictor.experiment, predictor.cohort),
            size=size,
        )
        network = EngineNetwork(beside, engine, names, predictor.network)
        found = require_parity(predictor, network, images, bf16=engine == "openvino-bf16", name=engine)
        described = describe(predictor, format_, names)
        described["sha256 of files"] = {name: _digest(beside / name) for name in FILES[format_]}
        write_new(beside / DESCRIPTION, _text(described))
        parity = {"engine": engine, "compared": [one.record() for one in found]}
        write_new(beside / PARITY, _text(parity))
    return found


def open_export(predictor: Predictor, folder: Path, engine: Engine) -> EngineNetwork:
    """Return the network of a folder that `export_run` made of the same weights.

    Raises:
        RunError: it is damaged, or of other weights or another format.
    """
    path = folder / DESCRIPTION
    described = verify_object(read_json(path, RunError, _AGAIN), path, RunError, _AGAIN)
    for what, expected in (("version", predictor.version), ("format", format_of(engine))):
        if described.get(what) != expected:
            raise RunError(f"{path}: expected {what} {expected}, found {described.get(what)}. {_AGAIN}")
    for name, digest in described["sha256 of files"].items():
        if _digest(folder / name) != digest:
            raise RunError(
                f"{folder / name}: is not the file that was written: its checksum differs. {_AGAIN}"
            )
    names = [one["name"] for one in described["outputs"]]
    return EngineNetwork(folder, engine, names, predictor.network)


def with_engine(
    predictor: Predictor, run: RunFolder, engine: Engine, cases: Sequence[Case] = ()
) -> Predictor:
    """Return a run's predictor computed by an engine; the export is made once and kept (`engines_of`).

    Args:
        predictor: of the run, on the CPU.
        run: its folder.
        engine: what computes.
        cases: as for `export_run`.

    Raises:
        UsageError, RunError: as `export_run` and `open_export`.
    """
    folder = engines_of(run) / f"{engine}-{predictor.version.rpartition('+')[2]}"
    if not folder.exists():
        export_run(predictor, folder, engine, cases)
    return replace(predictor, network=open_export(predictor, folder, engine), engine=engine)


def describe(predictor: Predictor, format_: Format, names: Sequence[str]) -> dict[str, Any]:
    """Return what a network takes and gives, and the steps before and after it, as plain data."""
    cohort, spec = predictor.cohort, predictor.experiment.data.preprocessing
    windows = [WINDOWS[one] if isinstance(one, str) else one for one in spec.windows or ()]
    batch: int | str = "batch" if len(spec.size) == 2 else 1
    questions = {one.head: one for one in predictor.questions}
    return {
        "program": f"threefold {__version__}",
        "run": predictor.run,
        "version": predictor.version,
        "format": format_,
        "files": [*FILES[format_]],
        "input": {
            "name": IMAGE,
            "type": "float32",
            "shape": [batch, channels_of(predictor.experiment, cohort), *spec.size],
            "axes": ["row, to posterior", "column, to left"]
            if len(spec.size) == 2
            else ["to right", "to anterior", "to superior"],
        },
        "preprocessing": {
            "modality": cohort.modality,
            "unit": cohort.intensity.unit,
            "images": [*cohort.channels] or ["image"],
            "steps": [
                "turn to the axes of the input (closest axes of an oblique image)",
                "for each image and window: clip((value - low) / (high - low), 0, 1)",
                "scale linearly, averaging where it shrinks, "
                + ("to the spacing" if spec.spacing is not None else "as large as fits, aspect in mm kept"),
                "centre; pad with 0, or take windows of the input's size and blend their outputs",
            ],
            "windows": windows or [cohort.intensity.window or "percentiles 1 and 99 of the image"],
            "spacing_mm": spec.spacing,
        },
        "outputs": [
            _output(name, questions.get(name), predictor) if name != FEATURES else _features()
            for name in names
        ],
    }


def _features() -> dict[str, Any]:
    return {"name": FEATURES, "kind": "features", "activation": "none"}


def _output(name: str, question: Question | None, predictor: Predictor) -> dict[str, Any]:
    """Return what one output of the graph means."""
    found: dict[str, Any] = {"name": name}
    if question is None:
        return found | {"kind": "unused", "activation": "none"}
    if question.kind == "labels":
        return found | {
            "kind": "labels",
            "activation": "softmax",
            "labels": ["background", *(question.names or ("foreground",))],
            "decision": "bring to the image's grid (linear), then the most probable label",
        }
    if question.kind == "image":
        return found | {"kind": "image", "activation": "none"}
    known = None if question.task is None else question.task.context.known
    if isinstance(question.task, ClassificationTask):
        threshold = predictor.threshold_of(question)
        positive = question.positive_class
        decided = {} if positive is None else {"positive": question.classes[positive], "threshold": threshold}
        return found | {
            "kind": "class",
            "activation": "softmax",
            "classes": [*question.classes],
            **decided,
            "decision": "the most probable class" if positive is None else "positive from the threshold on",
        }
    if isinstance(question.task, MultilabelTask):
        return found | {
            "kind": "findings",
            "activation": "sigmoid",
            "findings": [*question.task.known.classes],
        }
    if isinstance(known, NumberTarget):
        return found | {"kind": "number", "activation": "none", "unit": known.unit}
    return found | {"kind": "other", "activation": "as its task computes"}


def _random_images(predictor: Predictor) -> list[Prepared]:
    """Return images of noise on the network's grid."""
    rng = np.random.default_rng(0)
    asked = predictor.asked
    size, channels = asked.spec.size, channels_of(predictor.experiment, predictor.cohort)
    grey = Image(np.arange(np.prod(size), dtype=np.float32).reshape(size), np.eye(4), Path("random"))
    _, placement = prepare_image(
        grey, asked.spec.model_copy(update={"windows": None}), unit="arbitrary", window=None
    )
    return [
        Prepared(f"random {number}", rng.random((channels, *size), np.float32), placement, grey)
        for number in range(1, _RANDOM + 1)
    ]


def _real_images(predictor: Predictor, cases: Sequence[Case]) -> list[Prepared]:
    """Return cases on the network's grid."""
    found: list[Prepared] = []
    asked = replace(predictor.asked, judged=False)
    for case in cases:
        found += prepare(Source.of(case, predictor.cohort), asked, uneven="refuse")
    return found


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise RunError(f"{path}: can't be read ({error.strerror or error}). {_AGAIN}") from error


def _text(content: dict[str, Any]) -> str:
    return json.dumps(seal_object(content), indent=2, ensure_ascii=False) + "\n"
