"""Propagation: atlases registered to cases, their labels carried over, a new cohort written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from threefold.atlases.affine import align
from threefold.atlases.outcome import finish
from threefold.atlases.pairing import Pairing, check_files, pair_cases, read_atlas
from threefold.atlases.quality import (
    correlation_of,
    dice_of,
    failures,
    field_quality,
    mean_dice,
    region_dice,
)
from threefold.atlases.refinement import Pair, displacement_of, refine
from threefold.atlases.spec import PropagationSpec
from threefold.atlases.training import build_registration, predict_field, train_registration
from threefold.atlases.volumes import Volume, carry_labels, prepare, prepare_map, resample
from threefold.atlases.workplace import Workplace, is_finished, open_workplace
from threefold.cohorts.cohort import AtlasSpec, Case, Cohort, CohortSpec, fingerprint, read_cohort
from threefold.cohorts.targets import read_mask, read_structures
from threefold.errors import CohortError, ImageError
from threefold.images.geometry import Affine, Image
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti
from threefold.networks.registration import VoxelMorph
from threefold.networks.warping import warp
from threefold.run import write_atomically

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Atlas:
    """An atlas as read, and made ready."""

    spec: AtlasSpec
    labels: Image
    volume: Volume
    region: torch.Tensor
    """(1, 1, *S) 1 where a structure is, on the volume's grid."""


def propagate(
    cohort: Cohort,
    out: Path,
    spec: PropagationSpec,
    *,
    atlases: Sequence[str] | None = None,
    held_out: Collection[str] = (),
    copy: bool = True,
    progress: Progress | None = None,
) -> Cohort:
    """Give each case structures: the labels of its atlas, registered to its image.

    Each case is registered with the atlases of its class and with those of every class; with several, the
    labels of the one whose image correlates best are taken. Cases that have structures keep them. Repeated
    after a kill, the same call goes on where it was; where OUT is the finished propagation already, it is
    read.

    Args:
        cohort: volumes with atlases in its cohort.yaml.
        out: the new cohort's folder.
        spec: how to register.
        atlases: names of those to use; None: all.
        held_out: ids of cases that will be tested, beside those that the table's split column calls test:
            they train no network, and their masks steer nothing.
        copy: copy images and targets into the new cohort; false: refer to them where they are.
        progress: called with the steps that are done and all.

    Returns:
        The new cohort: the old one, with `structures` on each image's own grid, and the columns `atlas` and
        `registration`. Beside it quality.csv, provenance.json and registration/weights.safetensors.

    Raises:
        CohortError: slices, no atlases, none for a class, an atlas with other labels, no overlap, a missing
            file, `out` is taken.
        ImageError, WeightsError, TrainingError: naming the case or the file.
    """
    out, pairing = Path(out), pair_cases(cohort, atlases)
    identity = _identity(cohort, pairing, spec, held_out)
    if not is_finished(out, identity):
        build_registration(spec)  # weights that do not fit are an error now, not later
        check_files(cohort, pairing, spec)
        place = open_workplace(out, identity)
        _Propagation(cohort, pairing, spec, place, frozenset(held_out), progress).run()
        finish(cohort, pairing, spec, place, copy=copy)
    return read_cohort(out, allow_outside=True)  # the table is this program's own


class _Propagation:
    """The work between the checks and the new cohort: alignments, the network, the cases."""

    def __init__(
        self,
        cohort: Cohort,
        pairing: Pairing,
        spec: PropagationSpec,
        place: Workplace,
        held_out: frozenset[str],
        progress: Progress | None,
    ) -> None:
        tested = {case.case_id for case in cohort.cases if case.split == "test"}
        self.held_out = held_out | tested
        self.cohort, self.pairing, self.spec, self.place = cohort, pairing, spec, place
        self.cases = [case for case in cohort.cases if case.case_id in pairing]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        used = {atlas.name: atlas for atlases in pairing.values() for atlas in atlases}
        self.atlases = {name: self._read_atlas(atlas) for name, atlas in used.items()}
        pairs = sum(len(pairing[case.case_id]) for case in self.cases)
        training = sum(len(pairing[case.case_id]) for case in self.cases if case.case_id not in self.held_out)
        if spec.epochs and not training:
            raise CohortError(
                f"{cohort.folder}: every case is of the test part, so that none can train the registration "
                "network. Give weights=FILE of an earlier propagation, or epochs=0."
            )
        self._progress, self._done = progress, 0
        self._total = pairs + (spec.epochs * training) + len(self.cases)

    def run(self) -> None:
        for case in self.cases:
            self._align(case)
        network = self._network()
        for case in self.cases:
            if self.place.recall(f"case {case.case_id}") is None:
                self._register(case, network)
            self._step()

    def _step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _read_atlas(self, atlas: AtlasSpec) -> _Atlas:
        image, labels = read_atlas(self.cohort, atlas)
        volume = prepare(image, self.spec.size, self.spec.spacing, self.cohort.spec)
        region = torch.from_numpy((prepare_map(labels, volume) > 0).astype(np.float32))
        return _Atlas(atlas, labels, volume, region[None, None])

    def _align(self, case: Case) -> None:
        fixed = None
        for atlas in self.pairing[case.case_id]:
            name = f"alignment {case.case_id} {atlas.name}"
            if self.place.recall(name) is None:
                matrix = np.eye(4)
                if self.spec.affine:
                    fixed = fixed or self._fixed(case)[1]
                    matrix = align(fixed, self.atlases[atlas.name].volume, self.spec.affine_steps)
                self.place.remember(name, {"matrix": matrix.tolist()})
            self._step()

    def _network(self) -> VoxelMorph | None:
        """Return the network: trained now, given, or none."""
        if self.spec.epochs == 0:
            network = None if self.spec.weights is None else build_registration(self.spec)
        else:
            pairs = [
                self._pair(case, self._fixed(case), atlas)
                for case in self.cases
                if case.case_id not in self.held_out
                for atlas in self.pairing[case.case_id]
            ]
            network = train_registration(pairs, self.spec, self.place.checkpoint, self._step)
        if network is None:
            return None
        state = {name: values.cpu().contiguous() for name, values in network.state_dict().items()}
        write_atomically(self.place.weights, save(state))
        return network.to(self.device).eval()

    def _register(self, case: Case, network: VoxelMorph | None) -> None:
        """Register a case's atlases, keep the best one's labels and their quality."""
        image, fixed = self._fixed(case)
        found, steered = [], False
        for atlas in self.pairing[case.case_id]:
            pair = self._pair(case, (image, fixed), atlas)
            start = None if network is None else predict_field(network, pair, self.spec)
            if start is not None and not self.spec.refinement_steps:
                displacement = displacement_of(start, self.spec)
            else:
                displacement = refine(pair, start, self.spec)
            before = correlation_of(pair.moving, pair.fixed, self.spec.window)
            if torch.isfinite(displacement).all():
                warped = warp(pair.moving, displacement, outside="border")
                fit = correlation_of(warped, pair.fixed, self.spec.window)
            else:  # a failure; the other limits are then judged without movement
                fit, displacement = float("nan"), torch.zeros_like(displacement)
            found.append((fit, before, atlas, displacement.cpu()))
            # Of every atlas or of none; without training and refinement there is nothing to steer.
            steered = pair.mask is not None and bool(self.spec.epochs or self.spec.refinement_steps)
        fit, before, atlas, displacement = max(found, key=lambda one: np.nan_to_num(one[0], nan=-1.0))
        carry = self._carrier(case, image, fixed, atlas)
        labels = carry(displacement)
        row: dict[str, Any] = {
            "atlas": atlas.name,
            "correlation": fit,
            "correlation_affine": before,
            "mask_steered": "yes" if steered else "no",
            **field_quality(displacement),
            **self._truth(case, image, labels, carry, displacement),
        }
        reasons = failures(row, labels, self.spec.failure)
        if fixed.values.min() == fixed.values.max():
            reasons = ["the image holds one value only"]
        row |= {"registration": "failed" if reasons else "ok", "reason": "; ".join(reasons)}
        if not reasons:
            write_nifti(self.place.structures / f"{case.case_id}.nii.gz", labels, image.affine)
        self.place.remember(f"case {case.case_id}", row)

    def _truth(
        self,
        case: Case,
        image: Image,
        labels: np.ndarray,
        carry: Callable[..., np.ndarray],
        displacement: torch.Tensor,
    ) -> dict[str, Any]:
        """Hold propagated labels, and those of the affine alignment alone, against mask and reference."""
        names = self.cohort.spec.structures
        affine = carry(torch.zeros_like(displacement))
        row: dict[str, Any] = {}
        if case.mask is not None:
            mask = np.asarray(self._target(case, read_mask, case.mask, image).array, np.uint8)
            if mask.any():
                row |= {"mask_dice": region_dice(labels, mask), "mask_dice_affine": region_dice(affine, mask)}
        if case.reference is not None:
            truth = np.asarray(self._target(case, read_structures, case.reference, image).array, np.uint8)
            unmoved = carry(torch.zeros_like(displacement), np.eye(4))
            dice = dice_of(labels, truth, names)
            row |= {
                "dice": mean_dice(dice),
                "dice_affine": mean_dice(dice_of(affine, truth, names)),
                "dice_unregistered": mean_dice(dice_of(unmoved, truth, names)),
                **{f"dice {name}": value for name, value in dice.items()},
            }
        return row

    def _carrier(
        self, case: Case, image: Image, fixed: Volume, atlas: AtlasSpec
    ) -> Callable[..., np.ndarray]:
        one = self.atlases[atlas.name]
        alignment = self._alignment(case, atlas)

        def carry(displacement: torch.Tensor, matrix: Affine = alignment) -> np.ndarray:
            return carry_labels(
                np.asarray(one.labels.array, np.uint8),
                one.labels.affine,
                displacement,
                fixed.affine,
                matrix,
                image.array.shape,
                image.affine,
            )

        return carry

    def _fixed(self, case: Case) -> tuple[Image, Volume]:
        try:
            image = read_image(case.image)
            if image.array.ndim != 3:
                raise ImageError(f"{image.source}: has shape {image.array.shape}; expected a volume.")
            return image, prepare(image, self.spec.size, self.spec.spacing, self.cohort.spec)
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error

    def _target(
        self,
        case: Case,
        read: Callable[[Path, int | None, Image, CohortSpec], Image],
        path: Path,
        image: Image,
    ) -> Image:
        try:
            return read(path, None, image, self.cohort.spec)
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error

    def _pair(self, case: Case, read: tuple[Image, Volume], atlas: AtlasSpec) -> Pair:
        image, fixed = read
        moving, alignment = self.atlases[atlas.name], self._alignment(case, atlas)
        target = alignment @ fixed.affine
        warped = resample(moving.volume.values, moving.volume.affine, fixed.size, target, outside="border")
        region = mask = None
        # The test part's masks stay unseen, so that what is measured there is measured fairly.
        if self.spec.mask_weight and case.mask is not None and case.case_id not in self.held_out:
            inside = prepare_map(self._target(case, read_mask, case.mask, image), fixed)
            if inside.any():
                mask = torch.from_numpy(inside.astype(np.float32))[None, None].to(self.device)
                region = resample(moving.region, moving.volume.affine, fixed.size, target).to(self.device)
        return Pair(fixed.values.to(self.device), warped.to(self.device), region, mask)

    def _alignment(self, case: Case, atlas: AtlasSpec) -> Affine:
        kept = self.place.recall(f"alignment {case.case_id} {atlas.name}")
        assert kept is not None
        return np.asarray(kept["matrix"])


def _identity(cohort: Cohort, pairing: Pairing, spec: PropagationSpec, held_out: Collection[str]) -> str:
    """Hash what decides the result, as far as texts say it."""
    content: dict[str, Any] = {
        "cohort": fingerprint(cohort),
        "pairs": {case: [atlas.name for atlas in atlases] for case, atlases in pairing.items()},
        "spec": spec.model_dump(mode="json"),
    }
    if held_out:
        content["held_out"] = sorted(held_out)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
