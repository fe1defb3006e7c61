"""Propagation: atlases registered to cases, their labels carried over, a new cohort written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from threefold.atlases.spec import PropagationSpec
from threefold.cohorts.cohort import Cohort

Progress = Callable[[int, int], None]


def propagate(
    cohort: Cohort,
    out: Path,
    spec: PropagationSpec,
    *,
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Give each case structures: the labels of its atlas, registered to its image.

    Args:
        cohort: volumes with atlases in its cohort.yaml.
        out: the new cohort's folder. Repeated after a kill, the same call goes on where it was.
        spec: how to register.
        copy: copy images and targets into the new cohort; false: refer to them where they are.
        progress: called with the steps that are done and all.

    Returns:
        The new cohort: the old one, with `structures` (on each image's own grid), and the columns `atlas`
        and `registration` (ok or failed).

    Raises:
        CohortError: no atlases, none for a class, `out` is taken, files that do not fit.
    """
    raise NotImplementedError
