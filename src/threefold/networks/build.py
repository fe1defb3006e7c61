"""From an experiment and the cohort it meets to its network."""

from __future__ import annotations

from torch import nn

from threefold.cohorts.cohort import CohortSpec
from threefold.errors import ExperimentError
from threefold.experiment import Experiment, JointSwinSpec, SwinUnetSpec
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet


def build_network(experiment: Experiment, cohort: CohortSpec) -> nn.Module:
    """Build the experiment's network, with random weights (from torch's global generator).

    Args:
        experiment: names the network and its tasks.
        cohort: names the classes and structures, and so the number of outputs.

    Raises:
        ExperimentError: if the experiment asks for something that the cohort does not define.
    """
    tasks = experiment.tasks
    windows = experiment.data.preprocessing.windows
    in_channels = 1 if windows is None else len(windows)
    dimensions = len(experiment.data.preprocessing.size)
    if dimensions != 2:
        raise ExperimentError(
            f"{experiment.name}: the {experiment.network.kind} network takes images of 2 axes, but "
            f"data.preprocessing.size has {dimensions}. Give it two sides, such as [224, 224]."
        )
    classes = None if tasks.classification is None else _count_classes(experiment, cohort)
    if isinstance(experiment.network, JointSwinSpec):
        return JointSwin(
            experiment.network, in_channels=in_channels, classes=_count_classes(experiment, cohort)
        )
    assert isinstance(experiment.network, SwinUnetSpec)
    return SwinUnet(
        experiment.network,
        in_channels=in_channels,
        classes=classes,
        labels=None if tasks.segmentation is None else _count_labels(experiment, cohort),
        reconstruct=tasks.reconstruction is not None,
    )


def _count_classes(experiment: Experiment, cohort: CohortSpec) -> int:
    if len(cohort.classes) < 2:
        raise ExperimentError(
            f"{experiment.name} has a classification task, but cohort '{cohort.name}' names "
            f"{len(cohort.classes)} classes. Name two or more in cohort.yaml (classes), or leave the task "
            "out."
        )
    return len(cohort.classes)


def _count_labels(experiment: Experiment, cohort: CohortSpec) -> int:
    segmentation = experiment.tasks.segmentation
    if segmentation is not None and segmentation.target == "mask":
        if cohort.mask is None:
            raise ExperimentError(
                f"{experiment.name} segments the mask, but cohort '{cohort.name}' has none. Describe it in "
                "cohort.yaml (mask), or leave the task out."
            )
        return 2
    if not cohort.structures:
        raise ExperimentError(
            f"{experiment.name} segments structures, but cohort '{cohort.name}' names none. Name them in "
            "cohort.yaml (structures), or set tasks.segmentation.target to mask."
        )
    return len(cohort.structures) + 1
