"""From an experiment and the cohort it meets to its network."""

from __future__ import annotations

from torch import nn

from threefold.cohorts.cohort import CohortSpec
from threefold.errors import ExperimentError
from threefold.experiment import (
    AttentionUnetSpec,
    CascadeSpec,
    DenseNetSpec,
    Experiment,
    JointSwinSpec,
    SwinUnetSpec,
)
from threefold.networks.attention_unet import AttentionUnet
from threefold.networks.cascade import Cascade
from threefold.networks.densenet import DenseNet
from threefold.networks.joint import JointSwin
from threefold.networks.swin_unet import SwinUnet


def build_network(experiment: Experiment, cohort: CohortSpec) -> nn.Module:
    """Build the experiment's network, with random weights (from torch's global generator).

    Args:
        experiment: names the network and its tasks.
        cohort: names the classes and structures, and so the number of outputs.

    Raises:
        ExperimentError: if the experiment asks for something that the cohort does not define, or for images
            of other axes than the network takes.
    """
    tasks = experiment.tasks
    windows = experiment.data.preprocessing.windows
    in_channels = 1 if windows is None else len(windows)
    dimensions = _count_axes(experiment)
    classes = None if tasks.classification is None else _count_classes(experiment, cohort)
    labels = None if tasks.segmentation is None else _count_labels(experiment, cohort)
    spec = experiment.network
    if isinstance(spec, SwinUnetSpec):
        return SwinUnet(
            spec,
            in_channels=in_channels,
            classes=classes,
            labels=labels,
            reconstruct=tasks.reconstruction is not None,
        )
    if isinstance(spec, AttentionUnetSpec):
        return AttentionUnet(
            spec, in_channels=in_channels, labels=labels, classes=classes, dimensions=dimensions
        )
    # The other networks classify, and an experiment names no task that its network does not serve.
    classes = _count_classes(experiment, cohort)
    if isinstance(spec, JointSwinSpec):
        return JointSwin(spec, in_channels=in_channels, classes=classes)
    if isinstance(spec, DenseNetSpec):
        return DenseNet(spec, in_channels=in_channels, classes=classes, dimensions=dimensions)
    assert isinstance(spec, CascadeSpec)
    labels = _count_labels(experiment, cohort)
    return Cascade(spec, in_channels=in_channels, labels=labels, classes=classes, dimensions=dimensions)


def _count_axes(experiment: Experiment) -> int:
    """Return the number of the image's spatial axes, if the network takes them."""
    size, kind = experiment.data.preprocessing.size, experiment.network.kind
    swin = isinstance(experiment.network, SwinUnetSpec | JointSwinSpec)
    if len(size) != 2 and (swin or len(size) != 3):
        advice = "two sides, such as [224, 224]" if swin else "two or three sides, such as [64, 64, 64]"
        raise ExperimentError(
            f"{experiment.name}: the {kind} network takes images of {'2' if swin else '2 or 3'} axes, but "
            f"data.preprocessing.size has {len(size)}. Give it {advice}."
        )
    return len(size)


def _count_classes(experiment: Experiment, cohort: CohortSpec) -> int:
    if len(cohort.classes) < 2:
        raise ExperimentError(
            f"{experiment.name} has a classification task, but cohort '{cohort.name}' names "
            f"{len(cohort.classes)} classes. Name two or more in cohort.yaml (classes), or leave the task "
            "out."
        )
    return len(cohort.classes)


def _count_labels(experiment: Experiment, cohort: CohortSpec) -> int:
    """Count the segmentation's labels, background included.

    Without a segmentation task (a cascade whose segmenter was trained before) they are the structures.
    """
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
