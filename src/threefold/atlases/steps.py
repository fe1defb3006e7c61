"""What decides each step of a propagation: by this a step that was done before is found again.

A step's result depends on the bytes of its files, on cohort.yaml and on the settings, not on where the files
lie, what the case is called or which other cases there are. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threefold.atlases.pairing import Pairing
from threefold.atlases.spec import PropagationSpec
from threefold.cohorts.cohort import AtlasSpec, Case, Cohort, fingerprint
from threefold.errors import ImageError
from threefold.images.cache import ContentHashes

_FORMAT = 2
"""Raise it whenever the same files and settings give another result."""


@dataclass(frozen=True)
class Step:
    """A step and everything that decides what it gives.

    Attributes:
        kind: look, alignment, network or registration.
        of: the case, or the case and its atlas; for a reader alone.
        parts: what decides it, JSON values by name.
    """

    kind: str
    of: str
    parts: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A hash of the parts."""
        return _hash([_FORMAT, self.kind, self.parts])

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Return the names of the parts that were different before."""
        return [name for name, value in self.parts.items() if before.get(name) != value]


class Steps:
    """The steps of a propagation."""

    def __init__(
        self, cohort: Cohort, pairing: Pairing, spec: PropagationSpec, held_out: Collection[str]
    ) -> None:
        """Hash nothing yet.

        Args:
            cohort: its cases and atlases.
            pairing: which atlases go with which case.
            spec: how they are registered.
            held_out: ids of cases whose masks steer nothing.
        """
        self._cohort, self._pairing, self._spec, self._held_out = cohort, pairing, spec, held_out
        self._hashes = ContentHashes()
        meaning = cohort.spec
        self._meaning = {
            "intensity": meaning.intensity.model_dump(mode="json"),
            "mask": None if meaning.mask is None else list(meaning.mask.values),
            "structures": list(meaning.structures),
            "spacing": meaning.spacing,
        }

    def look(self, case: Case) -> Step:
        """Reading a case's files and finding them good."""
        return _step("look", case.case_id, {**self._files(case), "cohort.yaml": self._meaning})

    def alignment(self, case: Case, atlas: AtlasSpec) -> Step:
        """The affine alignment of an atlas and a case."""
        spec = self._spec
        parts = {
            "image": self._hash_of(case.image),
            "atlases": self._hash_of(self._cohort.folder / atlas.image),
            "cohort.yaml": self._meaning["intensity"],
            "settings": [spec.size, spec.spacing, spec.affine, spec.affine_steps, spec.affine_restarts],
        }
        return _step("alignment", f"{case.case_id} {atlas.name}", parts)

    def network(self, training: Sequence[Case]) -> Step:
        """The registration network: trained on these cases, or given, or none."""
        parts = {
            "cases": [
                [self._hash_of(case.image), self._steering(case), self._atlases(case)] for case in training
            ],
            "cohort.yaml": self._meaning,
            "settings": self._settings(),
        }
        return _step("network", "", parts)

    def registration(self, case: Case, network: Step) -> Step:
        """The registration of a case, with its quality and its label map."""
        parts = {
            **self._files(case),
            "split": self._steering(case) is not None,
            "atlases": self._atlases(case),
            "cohort.yaml": self._meaning,
            "settings": self._settings(),
            "network": network.key,
        }
        return _step("registration", case.case_id, parts)

    @property
    def settings(self) -> str:
        """A hash of what a user says of a propagation beside its cohort: settings, atlases, held out."""
        names = sorted({atlas.name for atlases in self._pairing.values() for atlas in atlases})
        return _hash([_FORMAT, self._settings(), names])

    def identity(self) -> str:
        """A hash of everything that decides the new cohort."""
        cases = {
            case.case_id: [self._files(case), case.structures and self._hash_of(case.structures)]
            for case in self._cohort.cases
        }
        pairs = {case: [atlas.name for atlas in atlases] for case, atlases in self._pairing.items()}
        atlases = {atlas.name: self._atlas(atlas) for atlases in self._pairing.values() for atlas in atlases}
        held_out = sorted(self._held_out)
        return _hash([self.settings, fingerprint(self._cohort), cases, pairs, atlases, held_out])

    def may_train(self, case: Case) -> bool:
        """Whether a case may train the network: it will not be tested."""
        return case.case_id not in self._held_out

    def is_steered(self, case: Case) -> bool:
        """Whether a case's mask steers its registration."""
        return self._steering(case) is not None

    def _files(self, case: Case) -> dict[str, str | None]:
        files = {"image": case.image, "mask": case.mask, "reference": case.reference}
        return {name: None if path is None else self._hash_of(path) for name, path in files.items()}

    def _steering(self, case: Case) -> str | None:
        """Return the hash of the mask that steers a case's registration; None: none does."""
        steers = self._spec.mask_weight and case.mask is not None and case.case_id not in self._held_out
        return self._hash_of(case.mask) if steers and case.mask is not None else None

    def _atlases(self, case: Case) -> list[list[str]]:
        return [self._atlas(atlas) for atlas in self._pairing[case.case_id]]

    def _atlas(self, atlas: AtlasSpec) -> list[str]:
        files = (self._cohort.folder / path for path in (atlas.image, atlas.structures))
        return [atlas.name, *map(self._hash_of, files)]

    def _settings(self) -> dict[str, Any]:
        settings = self._spec.model_dump(mode="json")
        if self._spec.weights is not None:
            settings["weights"] = self._hash_of(Path(self._spec.weights))
        return settings

    def _hash_of(self, path: Path) -> str:
        try:
            return self._hashes.of(path)
        except ImageError:
            return "unreadable"


def _step(kind: str, of: str, parts: Mapping[str, Any]) -> Step:
    """Return a step whose parts are as they are read back from JSON."""
    return Step(kind, of, json.loads(json.dumps(parts)))


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
