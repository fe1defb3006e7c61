"""A cohort's own structures as if a network had predicted them: what propagation alone is worth."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import pandas as pd

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.failures import Failures, none_left, sparing_others
from threefold.cohorts.splits import Split
from threefold.cohorts.targets import read_structures
from threefold.errors import CohortError, ImageError
from threefold.images.preprocessing import place
from threefold.images.reading import read_image
from threefold.inference.cases import CaseTables, case_identity, mask_columns
from threefold.inference.structures import Truth, measure_structures, topology_columns

Progress = Callable[[int, int], None]


def label_tables(
    cohort: Cohort,
    split: Split | None,
    *,
    failed: Failures | None = None,
    progress: Progress | None = None,
) -> CaseTables:
    """Return the tables of the test cases' structures, held against their reference.

    Args:
        cohort: with propagated structures.
        split: which cases are test cases; None: all.
        failed: gets each case that can't be read, and why; the others are done. None: the first one raises.
        progress: told after each case.

    Raises:
        CohortError: no test case has a reference, or none has structures, or the split does not know a case.
        ImageError: naming the case that can't be read, where `failed` is None; else, no case can be read.
    """
    tested = cohort.cases if split is None else split.cases(cohort, "test")
    cases = [case for case in tested if case.reference is not None]
    if not cases:
        raise CohortError(
            f"{cohort.folder}: no test case has a reference, so that propagated structures can't be judged. "
            "Name label maps known to be right in the reference column."
        )
    if not any(case.structures is not None for case in tested):
        raise CohortError(
            f"{cohort.folder}: no test case has structures. Propagate the atlases' labels first: "
            "`threefold propagate COHORT --out PROPAGATED`."
        )
    rows, structures = [], []
    with ThreadPoolExecutor(max_workers=2) as pool:
        measured = pool.map(partial(_measured, cohort=cohort, failed=failed), cases)
        for number, found in enumerate(measured, start=1):
            for row, lines in found:
                rows.append(row)
                structures += lines
            if progress is not None:
                progress(number, len(cases))
    if failed and not rows:
        raise none_left(str(cohort.folder), failed)
    return CaseTables(pd.DataFrame(rows), pd.DataFrame(structures))


def _measured(
    case: Case, cohort: Cohort, failed: Failures | None
) -> list[tuple[dict[str, object], list[dict[str, object]]]]:
    """Return a case's rows, in a list; an empty one where it can't be read, which `failed` gets."""
    found = []
    with nullcontext() if failed is None else sparing_others(failed, case.case_id):
        found.append(_measure(case, cohort))
    return found


def _measure(case: Case, cohort: Cohort) -> tuple[dict[str, object], list[dict[str, object]]]:
    spec = cohort.spec
    try:
        image = read_image(case.image, slice_index=case.slice_index, spacing=spec.spacing)
        assert case.reference is not None
        known = read_structures(case.reference, case.slice_index, image, spec).array.astype(np.uint8)
        labels = np.zeros_like(known)  # a registration that failed gives nothing
        if case.structures is not None:
            labels = read_structures(case.structures, case.slice_index, image, spec).array.astype(np.uint8)
    except ImageError as error:
        raise ImageError(f"case {case.case_id}: {error}") from error
    truth = Truth(known, None, "reference")
    row = case_identity(case, spec, "test") | mask_columns(labels, truth.foreground)
    placement = place(image, image.array.shape)
    row |= topology_columns(
        labels,
        known,
        names=spec.structures,
        classes=spec.classes,
        placement=placement,
        image=image,
        probabilities={},
    )
    lines = measure_structures(case.case_id, labels, truth, spec.structures, placement=placement, image=image)
    return row, lines
