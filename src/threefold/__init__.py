"""Threefold: classify, segment and reconstruct medical images with one shared representation.

    import threefold as tf

    cohort = tf.read_cohort("my-cohort")
    run = tf.train(tf.recipe("hematoma/demo", {"training.epochs": 5}), cohort, "my-run")
    tf.evaluate(run).table
    run.predict("scan.nii.gz")[0].probabilities

The names of `__all__` are public; each is imported when it is first used, so that importing the package
imports nothing else. docs/reference/api.md lists them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from threefold.api import Results, Run, auto, compare, evaluate, load_run, predict, recipe, train
    from threefold.audits.audit import audit
    from threefold.cohorts.cohort import Cohort, read_cohort
    from threefold.core.batch import Batch, Target
    from threefold.core.outputs import Head, Outputs
    from threefold.errors import ThreefoldError
    from threefold.evaluation.estimate import Difference, Estimate
    from threefold.evaluation.metrics import Metric
    from threefold.experiment import Experiment
    from threefold.images.geometry import Image
    from threefold.images.readers import Reader
    from threefold.inference.output import Prediction
    from threefold.networks.network import Network
    from threefold.phantoms.phantom import Phantom
    from threefold.tasks.task import Task, TaskContext
    from threefold.training.plan import Plan, plan

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Cohort",
    "Difference",
    "Estimate",
    "Experiment",
    "Head",
    "Image",
    "Metric",
    "Network",
    "Outputs",
    "Phantom",
    "Plan",
    "Prediction",
    "Reader",
    "Results",
    "Run",
    "Target",
    "Task",
    "TaskContext",
    "ThreefoldError",
    "audit",
    "auto",
    "compare",
    "evaluate",
    "load_run",
    "plan",
    "predict",
    "read_cohort",
    "recipe",
    "train",
]

_PLACES = {
    "api": ("Results", "Run", "auto", "compare", "evaluate", "load_run", "predict", "recipe", "train"),
    "audits.audit": ("audit",),
    "cohorts.cohort": ("Cohort", "read_cohort"),
    "core.batch": ("Batch", "Target"),
    "core.outputs": ("Head", "Outputs"),
    "errors": ("ThreefoldError",),
    "evaluation.estimate": ("Difference", "Estimate"),
    "evaluation.metrics": ("Metric",),
    "experiment": ("Experiment",),
    "images.geometry": ("Image",),
    "images.readers": ("Reader",),
    "inference.output": ("Prediction",),
    "networks.network": ("Network",),
    "phantoms.phantom": ("Phantom",),
    "tasks.task": ("Task", "TaskContext"),
    "training.plan": ("Plan", "plan"),
}
"""The modules that the public names are in: the same as above, where type checkers look."""


if not TYPE_CHECKING:  # which would else believe every name to be there

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used."""
        for module, names in _PLACES.items():
            if name in names:
                value = getattr(import_module(f"threefold.{module}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'threefold' has no attribute '{name}'")

    def __dir__() -> list[str]:
        """Return the public names."""
        return [*__all__, "__version__"]
