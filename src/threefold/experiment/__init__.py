"""The typed experiment: the settings of a recipe.

An experiment is plain data (frozen, extra keys refused); it imports no torch, so that a mistake in it is
found in a fraction of a second. Networks, tasks and trainings are built from it elsewhere.
"""

from threefold.experiment.data import AugmentationSpec, DataSpec, PreprocessingSpec, SplitSpec
from threefold.experiment.ensemble import EnsembleSpec, MemberSpec
from threefold.experiment.evaluation import EvaluationSpec
from threefold.experiment.experiment import Experiment
from threefold.experiment.networks import (
    AttentionUnetSpec,
    CascadeSpec,
    DenseNetSpec,
    ForeignNetworkSpec,
    InitialWeightsSpec,
    JointSwinSpec,
    MaskShapeSpec,
    NetworkSpec,
    SwinSpec,
    SwinUnetSpec,
)
from threefold.experiment.spec import Fraction, NonNegative, Part, Positive, PositiveInt, Seed, Spec
from threefold.experiment.tasks import (
    KINDS,
    AnyTaskSpec,
    BalancingSpec,
    ClassificationSpec,
    ForeignTaskSpec,
    HeadKind,
    MultilabelSpec,
    RampSpec,
    ReconstructionSpec,
    RegionSpec,
    RegressionSpec,
    SegmentationSpec,
    TaskSpec,
    Weight,
)
from threefold.experiment.training import OptimiserSpec, SelectionSpec, TrainingSpec

__all__ = [
    "KINDS",
    "AnyTaskSpec",
    "AttentionUnetSpec",
    "AugmentationSpec",
    "BalancingSpec",
    "CascadeSpec",
    "ClassificationSpec",
    "DataSpec",
    "DenseNetSpec",
    "EnsembleSpec",
    "EvaluationSpec",
    "Experiment",
    "ForeignNetworkSpec",
    "ForeignTaskSpec",
    "Fraction",
    "HeadKind",
    "InitialWeightsSpec",
    "JointSwinSpec",
    "MaskShapeSpec",
    "MemberSpec",
    "MultilabelSpec",
    "NetworkSpec",
    "NonNegative",
    "OptimiserSpec",
    "Part",
    "Positive",
    "PositiveInt",
    "PreprocessingSpec",
    "RampSpec",
    "ReconstructionSpec",
    "RegionSpec",
    "RegressionSpec",
    "Seed",
    "SegmentationSpec",
    "SelectionSpec",
    "Spec",
    "SplitSpec",
    "SwinSpec",
    "SwinUnetSpec",
    "TaskSpec",
    "TrainingSpec",
    "Weight",
]
