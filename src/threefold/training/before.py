"""The stage that some networks need first: what it trains, and where."""

from __future__ import annotations

from threefold.errors import ExperimentError
from threefold.experiment import CascadeSpec, Experiment, JointSwinSpec, NetworkSpec, SwinUnetSpec
from threefold.experiments import read_recipe
from threefold.run import RunFolder


def before_folder(run: RunFolder) -> RunFolder:
    """Return the folder of the run that is trained first."""
    return RunFolder(run.path / "before")


def trainings_of(experiment: Experiment) -> tuple[Experiment, ...]:
    """Return what is trained for an experiment, in order: the one before, where there is one, and itself."""
    if experiment.before is None:
        return (experiment,)
    return (before_experiment(experiment), experiment)


def before_experiment(experiment: Experiment) -> Experiment:
    """Return the experiment that `before` names, as it is trained for this one.

    Data (so that no test case is seen) and evaluation are this experiment's; the tasks and what selects the
    best epoch are the recipe's. Before a joint-swin network the encoder (so that it fits) and the training
    are this experiment's too. Before a cascade the network is its segmenter; of the training, the optimiser
    is the recipe's, because segmenter and classifier learn at different rates.

    Raises:
        ExperimentError: if that recipe has a stage before itself, or its network is no part of this one.
    """
    assert experiment.before is not None
    recipe = read_recipe(experiment.before)
    if recipe.before is not None:
        raise ExperimentError(
            f"before: '{experiment.before}' has a stage before itself; name a recipe that has none."
        )
    if isinstance(experiment.network, CascadeSpec):
        network: NetworkSpec = experiment.network.segmenter
        kept = {"selection", "optimiser"}
    elif isinstance(experiment.network, JointSwinSpec) and isinstance(recipe.network, SwinUnetSpec):
        network = recipe.network.model_copy(update={"encoder": experiment.network.encoder})
        kept = {"selection"}
    else:
        raise ExperimentError(
            f"before: a {experiment.network.kind} network has no part that is trained first."
        )
    if recipe.network.kind != network.kind:
        raise ExperimentError(
            f"before: '{experiment.before}' trains a {recipe.network.kind} network; expected a "
            f"{network.kind}, which is what a {experiment.network.kind} network builds on."
        )
    training = {name: getattr(recipe.training, name) for name in kept}
    patience = {"patience": experiment.training.selection.patience}
    training["selection"] = recipe.training.selection.model_copy(update=patience)
    return recipe.model_copy(
        update={
            "data": experiment.data,
            "network": network,
            "training": experiment.training.model_copy(update=training),
            "evaluation": experiment.evaluation,
        }
    )
