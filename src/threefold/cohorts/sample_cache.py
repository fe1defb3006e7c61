"""Prepared cases, kept in memory, on disk, or not at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from threefold.cohorts.cohort import Case, CohortSpec
from threefold.cohorts.samples import read_sample
from threefold.core.batch import Sample
from threefold.core.targets import DENSE
from threefold.errors import ImageError, RunError
from threefold.experiment import PreprocessingSpec
from threefold.images.cache import (
    ContentHashes,
    available_memory_bytes,
    entry_key,
    estimate_bytes,
    read_entry,
    write_entry,
)

CacheKind = Literal["memory", "disk", "none"]

MEMORY_SHARE = 0.5
"""Share of the available memory that prepared cases may take."""
_FORMAT = 3
"""Raise it whenever reading or preprocessing changes what a sample holds."""

_log = logging.getLogger(__name__)


class SampleCache:
    """Gives the sample of a case: prepared now, or kept from before.

    An entry on disk is found by the content of the case's files (see `ContentHashes`), the preprocessing
    and what cohort.yaml says of the voxels; so a changed file or setting is never served stale, and runs
    and cohorts may share one folder. A damaged entry is made again. A disk that is full stops the caching,
    not the run.

    Attributes:
        kind: what is really done; `disk` or `none` where memory was asked for and does not suffice.
    """

    def __init__(
        self,
        spec: CohortSpec,
        preprocessing: PreprocessingSpec,
        kind: CacheKind,
        folder: Path | None = None,
        *,
        n_cases: int = 0,
    ) -> None:
        """Choose where samples are kept.

        Args:
            spec: what the cohort's files mean.
            preprocessing: size and windows.
            kind: memory falls back to disk (none without a folder) where the estimate for `n_cases` is
                more than MEMORY_SHARE of the available memory; a line in the log says so.
            folder: of the entries on disk.
            n_cases: how many samples will be kept in memory, over all processes that keep their own.
        """
        if kind == "disk" and folder is None:
            raise ValueError("a cache on disk needs a folder")
        self.kind: CacheKind = kind
        self._spec, self._preprocessing, self._folder = spec, preprocessing, folder
        self._kept: dict[str, Sample] = {}
        self._hashes = ContentHashes(None if folder is None else folder / "hashes")
        if kind == "memory":
            self._fit_into_memory(n_cases)

    def get(self, case: Case) -> Sample:
        """Return the prepared case.

        Raises:
            ImageError: if it has to be read and can't be, naming the case.
        """
        if self.kind == "memory":
            if case.case_id not in self._kept:
                self._kept[case.case_id] = self._read(case)
            return self._kept[case.case_id]
        return self._from_disk(case) if self.kind == "disk" else self._read(case)

    def _read(self, case: Case) -> Sample:
        return read_sample(case, self._spec, self._preprocessing)

    def _fit_into_memory(self, n_cases: int) -> None:
        targets = sum(target.kind in DENSE for target in self._spec.all_targets.values())
        channels = len(self._preprocessing.windows or (None,)) * len(self._spec.image_columns)
        needed = estimate_bytes(n_cases, channels, self._preprocessing.size, targets)
        available = available_memory_bytes()
        if needed <= MEMORY_SHARE * available:
            return
        self.kind = "none" if self._folder is None else "disk"
        _log.warning(
            "cache: %d prepared cases need %.1f GB, more than %.0f %% of the %.1f GB of memory that are "
            "free: %s.",
            n_cases,
            needed / 1e9,
            100 * MEMORY_SHARE,
            available / 1e9,
            "they are read anew each time" if self._folder is None else f"they are kept in {self._folder}",
        )

    def _from_disk(self, case: Case) -> Sample:
        assert self._folder is not None
        try:
            key = entry_key(self._meaning(case))
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error
        path = self._folder / key[:2] / key
        arrays = read_entry(path)
        if arrays is not None:
            image = arrays.pop("image")
            return Sample(case.case_id, image, {**case.targets, **arrays})
        sample = self._read(case)
        try:
            write_entry(
                path, {"image": sample.image, **{name: sample.targets[name] for name in case.label_maps}}
            )
        except (RunError, OSError) as error:
            self.kind = "none"
            _log.warning("cache: %s: can't be written; going on without. (%s)", self._folder, error)
        return sample

    def _meaning(self, case: Case) -> dict[str, Any]:
        """Everything that decides what a case's arrays are; its id and its class, say, do not."""
        spec = self._spec
        channels = {name: self._hashes.of(path) for name, path in case.channels.items()}
        return {
            "format": _FORMAT,
            "image": self._hashes.of(case.image),
            "label_maps": {name: self._hashes.of(path) for name, path in case.label_maps.items()},
            "slice": case.slice_index,
            "dimensions": spec.dimensions,
            "targets": {name: spec.all_targets[name].model_dump(mode="json") for name in case.label_maps},
            "intensity": spec.intensity.model_dump(mode="json"),
            "spacing": spec.spacing,
            "preprocessing": self._preprocessing.model_dump(mode="json"),
            **({"channels": [(name, channels.get(name)) for name in spec.channels]} if channels else {}),
        }
