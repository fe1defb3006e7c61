"""Errors a user can act on.

Every message names the case or file, what was expected, what was found and what to do.
The command line prints the message alone and exits with `exit_code`.
"""

from __future__ import annotations


class ThreefoldError(Exception):
    """Base of all errors that are the data's, the experiment's or the machine's, not the program's."""

    exit_code = 1


class UsageError(ThreefoldError):
    """The command line or the experiment asks for something that does not exist."""

    exit_code = 2


class ExperimentError(UsageError):
    """An experiment (YAML or override) is not valid."""


class CohortError(ThreefoldError):
    """A cohort's table, its cohort.yaml or its split is not usable."""


class ImageError(ThreefoldError):
    """An image or label map can't be read, or its geometry is not what was expected."""


class WeightsError(ThreefoldError):
    """Weights do not fit the network they were given to."""


class RunError(ThreefoldError):
    """A run folder can't be made, resumed or read."""


class TrainingError(ThreefoldError):
    """Training stopped: a non-finite loss, no usable target, no space for a checkpoint."""


class PredictionsError(ThreefoldError):
    """A table of predictions can't be evaluated."""
