"""One small demo, run once for the tests of its room."""

from __future__ import annotations

from pathlib import Path

import pytest

from threefold.experiment import Experiment
from threefold.experiments import load_experiment
from threefold.phantoms.head_ct import HeadCtSpec, make_head_ct_cohort
from threefold.run import RunFolder
from threefold.training.run import train

SMALL = (
    "training.epochs=1",
    "training.selection.metric=loss",
    "network.encoder.embed_dim=8",
    "data.preprocessing.size=[32, 32]",
    "evaluation.replicates=50",
)


@pytest.fixture(scope="session")
def experiment() -> Experiment:
    return load_experiment("hematoma/demo", SMALL)


@pytest.fixture(scope="session")
def cohort_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies") / "cohort"
    spec = HeadCtSpec(patients_per_site=4, external_patients_per_site=2, slices=(1, 2), sites=6, size=96)
    make_head_ct_cohort(folder, spec, seed=5)
    return folder


@pytest.fixture(scope="session")
def run(experiment: Experiment, cohort_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    from threefold.cohorts.cohort import read_cohort

    return train(experiment, read_cohort(cohort_folder), tmp_path_factory.mktemp("runs") / "run")
