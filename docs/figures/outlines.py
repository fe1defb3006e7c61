"""Tell three lobes from five by the outlines of the masks that the runs of object-background drew.

threefold study run object-background --out studies/object-background
python docs/figures/outlines.py studies/object-background

It asks whether what a network drew holds the diagnosis that its classifier gives. The outline's radius around
the mask's centre, over 128 angles, is a Fourier series: three lobes are its third harmonic, five its fifth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from threefold.images.reading import read_label_map
from threefold.runs.evaluate import read_run_predictions
from threefold.studies.study_folder import StudyFolder
from threefold.studies.study_spec import plan_runs

ANGLES = np.linspace(0, 2 * np.pi, 128, endpoint=False)
STEP = 0.25  # pixels


def five_lobes(path: Path) -> float:
    """Return the fifth less the third harmonic of the largest piece's outline, of its mean radius."""
    mask = np.squeeze(read_label_map(path).array) > 0
    pieces, count = ndimage.label(mask)
    if not count:
        return 0.0
    mask = pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:])
    row, column = ndimage.center_of_mass(mask)
    along = np.arange(0, max(mask.shape), STEP)
    points = [row + np.outer(np.cos(ANGLES), along), column + np.outer(np.sin(ANGLES), along)]
    radius = (ndimage.map_coordinates(mask.astype(np.float64), points, order=1) > 0.5).sum(axis=1)
    size = np.abs(np.fft.rfft(radius))
    return float((size[5] - size[3]) / size[0])


def main(study: StudyFolder) -> None:
    """Print a line a run and site group."""
    print("| run | test cases | n | outline of the truth | outline as drawn | classifier |")
    print("| --- | --- | --- | --- | --- | --- |")
    for plan in plan_runs(study.read()):
        run = study.run(plan.id)
        if not run.masks.is_dir():
            continue
        predictions = read_run_predictions(run)
        truth = study.path / "cohorts" / plan.cohort / "truth"
        five = next(name for name in predictions.classes if name.startswith("five"))
        for group, cases in predictions.part("test").groupby("site_group"):
            is_five = cases["label"] == five
            scores = [
                [five_lobes(next(folder.glob(f"{name}.*"))) for name in cases["case_id"]]
                for folder in (truth, run.masks)
            ]
            found = [roc_auc_score(is_five, each) for each in (*scores, cases[f"probability_{five}"])]
            print("|", plan.id, "|", group, "|", len(cases), "|", *(f"{auc:.3f} |" for auc in found))


if __name__ == "__main__":
    main(StudyFolder(Path(sys.argv[1])))
