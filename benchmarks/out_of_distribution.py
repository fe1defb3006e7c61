"""How well images that are unlike the training images are flagged: docs/results/out-of-distribution.md.

python benchmarks/out_of_distribution.py RUN --cohort COHORT [--data FOLDER]

RUN is one of `threefold demo hematoma`. Each kind of mismatch is made from the test cases of the known
hospitals, or comes from another source, and is held against those test cases as they are. The AUROC is of the
feature scores alone; what `threefold predict` says of files as they are is in the second table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort, read_cohort
from threefold.cohorts.splits import read_split
from threefold.errors import ThreefoldError
from threefold.evaluation.classification import auc
from threefold.images.geometry import Image
from threefold.images.preprocessing import prepare_image, resize
from threefold.images.reading import read_image
from threefold.inference.listing import find_sources
from threefold.inference.predictor import Predictor
from threefold.phantoms.object_background import ObjectBackgroundSpec, object_cases, render_picture
from threefold.run import RunFolder

AT_ONCE = 32
REPLICATES = 1000
SCORES = ("mahalanobis", "nearest", "score")
Floats = NDArray[np.float64]
Change = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]


@dataclass(frozen=True)
class Scored:
    """What a set of images scores: (n,) by score, and the patient of each."""

    values: Mapping[str, Floats]
    patients: NDArray[np.str_]


def _noisy(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return hu + rng.normal(0, 50, hu.shape).astype(np.float32)


def _only_noise(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.uniform(0, 100, hu.shape).astype(np.float32)


def _bone_window(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Grey values of a bone window, taken for those of the brain window."""
    return np.clip((hu + 800) / 2800, 0, 1) * 100


def _wide_window(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    return np.clip((hu + 150) / 400, 0, 1) * 100


def _cropped(hu: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    rows, columns = hu.shape
    middle = hu[rows // 4 : rows - rows // 4, columns // 4 : columns - columns // 4]
    return resize(np.ascontiguousarray(middle), hu.shape)


CHANGES: Mapping[str, Change] = {
    "noise of 50 HU added": _noisy,
    "nothing but noise": _only_noise,
    "bone window taken for brain window": _bone_window,
    "window four times as wide": _wide_window,
    "cropped to the middle half": _cropped,
    "upside down": lambda hu, _: np.ascontiguousarray(hu[:, ::-1]),
    "turned by 90 degrees": lambda hu, _: np.ascontiguousarray(np.rot90(hu)),
    "inverted": lambda hu, _: 100 - np.clip(hu, 0, 100),
}


def scored(predictor: Predictor, images: Iterable[tuple[str, Image]]) -> Scored:
    """Return the scores of images in HU, each with its patient."""
    assert predictor.training is not None
    assert predictor.calibration is not None
    thresholds = predictor.calibration.distances
    assert thresholds is not None
    spec, trained = predictor.experiment.data.preprocessing, predictor.cohort
    patients, arrays = [], []
    for patient, image in images:
        array, _ = prepare_image(image, spec, unit=trained.intensity.unit, window=trained.intensity.window)
        patients.append(patient)
        arrays.append(array)
    found = []
    with torch.inference_mode():
        for start in range(0, len(arrays), AT_ONCE):
            outputs = predictor.network(torch.from_numpy(np.stack(arrays[start : start + AT_ONCE])))
            found += [predictor.training.distances(one, thresholds) for one in outputs.features.numpy()]
    values = {name: np.array([getattr(one, name) for one in found]) for name in SCORES}
    return Scored(values, np.array(patients))


def _of_cases(cases: Sequence[Case], change: Change | None = None) -> Iterator[tuple[str, Image]]:
    rng = np.random.default_rng(0)
    for case in cases:
        image = read_image(case.image, slice_index=case.slice_index)
        if change is not None:
            array = np.clip(np.asarray(image.array, np.float32), -1024, 3000)
            image = replace(image, array=change(array, rng))
        yield case.patient_id, image


def _of_pictures(pictures: Iterable[tuple[str, NDArray[Any]]]) -> Iterator[tuple[str, Image]]:
    """Yield grey pictures as if the whole range from darkest to brightest were the brain window."""
    for patient, picture in pictures:
        values = np.asarray(picture, np.float32)
        low, high = np.percentile(values, (1, 99))
        hu = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 100
        yield patient, Image(hu.astype(np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]), Path("picture"))


def _phantom_objects(count: int) -> Iterator[tuple[str, NDArray[Any]]]:
    for number, case in enumerate(object_cases(ObjectBackgroundSpec(), 0)[:count]):
        rendered = render_picture(case)
        yield f"object {number}", rendered.grey


def _brains(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    for path in sorted(folder.glob("*/*.nii.gz")):
        if "parcellation" in path.name or "mask" in path.name:
            continue
        volume = np.asarray(read_image(path).array)
        for index in np.linspace(0.35, 0.65, 5) * volume.shape[2]:
            yield path.parent.name, np.rot90(volume[:, :, int(index)])


def _hemorrhages(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    for path in sorted((folder / "images").iterdir()):
        yield path.stem, np.asarray(read_image(path).array)


def _interval(of_known: Scored, of_unlike: Scored, name: str, clusters: bool) -> str:
    """Return the AUROC and its 95 % interval over resamples of patients."""
    both = of_known.values[name], of_unlike.values[name]
    labels = np.repeat([0, 1], [len(one) for one in both])
    value = auc(labels, np.concatenate(both))
    rng = np.random.default_rng(0)
    groups = [
        [np.flatnonzero(one.patients == p) for p in np.unique(one.patients)] for one in (of_known, of_unlike)
    ]
    if min(map(len, groups)) < 5 or not clusters:
        return f"{value:.3f} [no interval]"
    drawn = []
    for _ in range(REPLICATES):
        picked = [
            values[np.concatenate([places[k] for k in rng.integers(0, len(places), len(places))])]
            for values, places in zip(both, groups, strict=True)
        ]
        drawn.append(auc(np.repeat([0, 1], [len(one) for one in picked]), np.concatenate(picked)))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def through_predict(predictor: Predictor, name: str, path: Path) -> str:
    """Return a line of what `threefold predict` says of files as they are."""
    refused: list[str] = []
    found = list(
        predictor.predict(
            find_sources(path),
            uneven="resample",
            on_error=lambda _, error: refused.append(_reason(error)),
        )
    )
    judged = [one.out_of_distribution for one in found if one.out_of_distribution is not None]
    header = sum(any("out of distribution" not in one for one in each.reasons) for each in judged)
    features = sum(each.distances is not None and each.distances.score > 1 for each in judged)
    why = refused[0] if refused else next((one.reasons[0] for one in judged if one.reasons), "")
    return f"| {name} | {len(refused)} | {len(judged)} | {header} | {features} | {why} |"


def _reason(error: ThreefoldError) -> str:
    return str(error).partition(": ")[2].partition(".")[0]


def _sources(cohort: Cohort, known: Sequence[Case], unseen: Sequence[Case], data: Path) -> Iterator[Any]:
    """Yield each kind of image: its name, whether it is a gross mismatch, and the images."""
    yield "scanners of no training case", False, _of_cases(unseen)
    for name, change in CHANGES.items():
        yield name, name not in ("upside down", "turned by 90 degrees"), _of_cases(known, change)
    yield "pictures of objects (phantom)", True, _of_pictures(_phantom_objects(120))
    if (data / "fetal_brain").is_dir():
        yield "fetal brain MRI (real)", True, _of_pictures(_brains(data / "fetal_brain"))
    if (data / "head_ct_dicom").is_dir():
        volume = read_image(data / "head_ct_dicom" / "series", uneven="resample")
        slices = range(4, volume.array.shape[2] - 4)
        each = ((f"slice {k}", replace(volume, array=volume.array[..., k])) for k in slices)
        yield "head CT without haemorrhage (real)", False, each
    if (data / "ct_ich").is_dir():
        yield "head CT with haemorrhage (real)", False, _of_pictures(_hemorrhages(data / "ct_ich"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--cohort", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    arguments = parser.parse_args()
    cohort, run = read_cohort(arguments.cohort, allow_outside=True), RunFolder(arguments.run)
    predictor = Predictor.from_run(run.path)
    test = read_split(run.split).cases(cohort, "test")
    training = {case.site for case in read_split(run.split).cases(cohort, "train")}
    known = [case for case in test if case.site in training]
    unseen = [case for case in test if case.site not in training]
    alike = scored(predictor, _of_cases(known))
    flagged = np.mean(alike.values["score"] > 1)
    lines = [f"| test cases of the known hospitals | | {len(known)} | | | | {flagged:.2f} |"]
    for name, gross, images in _sources(cohort, known, unseen, arguments.data):
        found = scored(predictor, images)
        n, clusters = len(found.patients), "slice" not in str(found.patients[0])
        cells = (_interval(alike, found, score, clusters) for score in SCORES)
        share = f"{np.mean(found.values['score'] > 1):.2f}"
        lines.append(f"| {name} | {'yes' if gross else ''} | {n} | {' | '.join(cells)} | {share} |")
        print(lines[-1], flush=True)
    print(
        "\n| images | gross | n | Mahalanobis | nearest neighbours | both | share flagged |\n"
        "| --- | --- | --- | --- | --- | --- | --- |"
    )
    print("\n".join(lines))
    print(
        "\n| files as they are, through `threefold predict` | refused | predicted | flagged by header or "
        "intensities | flagged by features | first reason |\n| --- | --- | --- | --- | --- | --- |"
    )
    for name, folder in (
        ("ct_ich, 8-bit pictures", "ct_ich/images"),
        ("head_ct_dicom, HU", "head_ct_dicom/series"),
        ("fetal_brain, MRI", "fetal_brain"),
    ):
        if (arguments.data / folder).is_dir():
            print(through_predict(predictor, name, arguments.data / folder), flush=True)


if __name__ == "__main__":
    main()
