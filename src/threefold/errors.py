"""Errors a user can act on.

Every message names the case or file, what was expected, what was found and what to do.
The command line prints the message alone and exits with `exit_code`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST_MESSAGE = 6000
_LONGEST_VALUE = 300


def bounded(text: str, longest: int = _LONGEST_VALUE) -> str:
    """Return a text of at most about `longest` characters; what is left out is the middle, and said."""
    if len(text) <= longest:
        return text
    head, tail = longest * 2 // 3, longest // 3
    return f"{text[:head]} [... {len(text) - head - tail} characters left out ...] {text[-tail:]}"


def some(names: Sequence[str], most: int = 5, *, total: int | None = None, between: str = ", ") -> str:
    """Return the first names, and how many more there are: "a, b and 3 more".

    Args:
        names: all, or the first few of `total`.
        most: how many are named.
        total: how many there are; None: as many as `names`.
        between: what stands between two names.
    """
    more = (len(names) if total is None else total) - most
    shown = between.join(names[:most])
    return f"{shown}{' ' if between == ', ' else between}and {more} more" if more > 0 else shown


class ThreefoldError(Exception):
    """Base class of errors caused by the data, the experiment or the machine, not by a bug.

    Messages have a bounded length, because they may quote the content of a file.
    """

    exit_code = 1

    def __str__(self) -> str:
        """Return the message, bounded."""
        # The name of a file may hold bytes that are no UTF-8.
        text = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", super().__str__())
        return bounded(text, _LONGEST_MESSAGE)


class UsageError(ThreefoldError):
    """The command line or the experiment refers to something that does not exist."""

    exit_code = 2


class ExperimentError(UsageError):
    """An experiment (YAML or override) is not valid."""


class CohortError(ThreefoldError):
    """A cohort's table, its cohort.yaml or its split is not usable."""


class ImageError(ThreefoldError):
    """An image or label map can't be read, or its geometry is not what was expected."""


class IrregularSeriesError(ImageError):
    """The slices of a DICOM series are whole, but unevenly spaced or tilted."""


class WriteError(ImageError):
    """An image or label map can't be written: which is the disk's doing, not the case's."""


class WeightsError(ThreefoldError):
    """Weights do not fit the network they were given to."""


class RunError(ThreefoldError):
    """A run folder can't be made, resumed or read."""


class NoFeaturesError(RunError):
    """A network of others gives no features, since no layer of it is named that is pooled."""


class TrainingError(ThreefoldError):
    """Training stopped: a non-finite loss, no usable target, no space for a checkpoint."""


class PacsError(ThreefoldError):
    """A PACS can't be reached, refuses, or has not what was asked for."""


class PredictionsError(ThreefoldError):
    """A table of predictions can't be evaluated."""
