"""Propagation: atlases registered to cases, their labels carried over, a new cohort written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from threefold.atlases.affine import align, align_back
from threefold.atlases.failure_score import failure_table
from threefold.atlases.fusion import agreement, vote, weight
from threefold.atlases.outcome import Made, finish, refuse_own_columns
from threefold.atlases.pairing import Pairing, check_files, pair_cases, read_atlas
from threefold.atlases.quality import (
    correlation_of,
    dice_of,
    doubts,
    failures,
    field_quality,
    mean_dice,
    region_dice,
)
from threefold.atlases.refinement import Pair, displacement_of, refine
from threefold.atlases.reuse import Reuse
from threefold.atlases.signals import inverse_error, outside, signals, stretch
from threefold.atlases.spec import PropagationSpec
from threefold.atlases.steps import Step, Steps
from threefold.atlases.training import build_registration, predict_field, train_registration
from threefold.atlases.transforms import field_vectors
from threefold.atlases.volumes import Volume, carry_labels, prepare, prepare_map, resample
from threefold.atlases.workplace import Workplace, is_finished, is_whole, open_workplace, sha256_of_file
from threefold.checksums import seal_tensors
from threefold.cohorts.alike_ids import refuse_alike_ids
from threefold.cohorts.cohort import AtlasSpec, Case, Cohort, read_cohort
from threefold.cohorts.failures import Failures, is_out_of_memory, listed, sparing_others
from threefold.cohorts.targets import read_mask, read_structures
from threefold.errors import CohortError, ImageError, TrainingError
from threefold.images.geometry import Affine, Image
from threefold.images.reading import read_image
from threefold.images.writing import write_nifti, write_vectors
from threefold.networks.registration import VoxelMorph
from threefold.networks.warping import warp
from threefold.run import write_atomically
from threefold.threads import share_cores

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Atlas:
    """An atlas as read, and made ready."""

    spec: AtlasSpec
    labels: Image
    volume: Volume
    map: torch.Tensor
    """(1, 1, *S) float, the labels on the volume's grid."""

    @property
    def region(self) -> torch.Tensor:
        """(1, 1, *S) 1 where a structure is, on the volume's grid."""
        return (self.map > 0).float()


@dataclass(frozen=True)
class _Registered:
    """An atlas, registered to a case.

    Attributes:
        atlas: which.
        displacement: (1, 3, *S), voxels of the registration grid.
        warped: (1, 1, *S) the atlas's image there.
        fit: local correlation after the registration; NaN: the field is not finite.
        row: its columns of quality.csv.
    """

    atlas: AtlasSpec
    displacement: torch.Tensor
    warped: torch.Tensor
    fit: float
    row: dict[str, Any]


def propagate(
    cohort: Cohort,
    out: Path,
    spec: PropagationSpec,
    *,
    atlases: Sequence[str] | None = None,
    held_out: Collection[str] = (),
    copy: bool = True,
    renew: bool = True,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Cohort:
    """Give each case structures: the labels of its atlas, registered to its image.

    Each case is registered with the atlases of its class and with those of every class; of many, with those
    nearest by `spec.match_by` or most alike. Several vote on the labels, each where its image correlates.
    Cases that have structures keep them. Repeated
    after a kill, the same call goes on where it was; where OUT is the finished propagation already, it is
    read. A case that can't be used (a file can't be read, a voxel is not finite, memory ran out) is left out
    and the others go on.

    After a change of the cohort, the steps whose files and settings are the same are not done again. With a
    network (`spec.epochs`) every registration depends on all the cases that train it. Cases for which memory
    ran out are tried again by the same call.

    Args:
        cohort: volumes with atlases in its cohort.yaml.
        out: the new cohort's folder.
        spec: how to register.
        atlases: names of those to use; None: all.
        held_out: ids of cases that will be tested, beside those that the table's split column calls test:
            they train no network, and their masks steer nothing.
        copy: copy images and targets into the new cohort; false: refer to them where they are.
        renew: where OUT was made of the same cohort before it changed, and is as it was made, put the new
            cohort in its place; false: refuse.
        progress: called with the steps that are done and all.
        say: told what of an earlier propagation is reused, and why the rest is not.

    Returns:
        The new cohort: the old one without the cases that can't be used, with `structures` on each image's
        own grid, and the columns `atlas` and `registration`. Registrations that failed
        give no structures; their labels are in not-used. Beside it quality.csv with a row for each case that
        had no structures, provenance.json, registration/weights.safetensors and, where asked for, transforms.

    Raises:
        CohortError: slices, no atlases, none for a class, an atlas that can't be used or with other labels,
            no case can be used, two cases' files would be one, `out` is taken.
        WeightsError, TrainingError: naming the file or the case.
        RunError: another process is propagating into `out`, or the disk refuses.
    """
    share_cores()
    refuse_own_columns(cohort)
    refuse_alike_ids(cohort)
    out, pairing = Path(out), pair_cases(cohort, spec, atlases)
    tested = {case.case_id for case in cohort.cases if case.split == "test"}
    steps = Steps(cohort, pairing, spec, tested | set(held_out))
    identity = steps.identity()
    if not is_finished(out, identity, steps.settings, renew=renew):
        build_registration(spec)  # weights that do not fit are an error now, not later
        refused = check_files(cohort, pairing, spec)
        with open_workplace(out) as place:
            work = _Propagation(cohort, pairing, spec, steps, place, progress, say)
            work.run(refused)
            made = Made(identity, steps.settings, work.done, work.failed)
            finish(cohort, pairing, spec, place, made, copy=copy)
    return read_cohort(out, allow_outside=True)  # the table is this program's own


class _Propagation:
    """The work between the checks and the new cohort: alignments, the network, the cases.

    Attributes:
        done: the steps that the new cohort is made of.
        failed: why a case can't be used, by id.
    """

    def __init__(
        self,
        cohort: Cohort,
        pairing: Pairing,
        spec: PropagationSpec,
        steps: Steps,
        place: Workplace,
        progress: Progress | None,
        say: Callable[[str], None] | None,
    ) -> None:
        self.cohort, self.pairing, self.spec, self.steps, self.place = cohort, pairing, spec, steps, place
        self.done: list[Step] = []
        self.failed: Failures = {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        used = {atlas.name: atlas for atlases in pairing.values() for atlas in atlases}
        self.atlases = {name: self._read_atlas(atlas) for name, atlas in used.items()}
        self._progress, self._say = progress, say
        self._taken, self._total, self._counted = 0, 0, -1
        self._refuse_without_training(self._cases())

    def run(self, refused: Failures) -> None:
        """Do the work.

        Args:
            refused: why, by id, of the cases that are known to be no use.
        """
        reuse = Reuse(self.place.known)
        self.failed |= refused
        for case in self._cases():
            with sparing_others(self.failed, case.case_id):
                self._look(case)
                self._align(case, reuse)
        if not self._cases():
            raise CohortError(
                f"{self.cohort.folder}: no case can be used.\n  " + "\n  ".join(listed(self.failed))
            )
        training = self._training()
        self._refuse_without_training(training)
        network_step = self.steps.network(training)
        if self.spec.epochs:
            reuse.note(network_step)
        for case in self._cases():
            reuse.note(self.steps.registration(case, network_step))
        if self._say is not None:
            for line in reuse.lines():
                self._say(line)
        try:
            network = self._network(network_step, training)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(
                f"registration network: not enough memory for {len(training)} cases ({error}). Lower size "
                f"(now {list(self.spec.size)}) or channels."
            ) from error
        for case in self._cases():
            step = self.steps.registration(case, network_step)
            with sparing_others(self.failed, case.case_id):
                self._register(case, network, step)
                self.done.append(step)
            self._step()

    def _cases(self) -> list[Case]:
        """Return the cases to register that are of use, as far as is known."""
        return [
            case
            for case in self.cohort.cases
            if case.case_id in self.pairing and case.case_id not in self.failed
        ]

    def _training(self) -> list[Case]:
        """Return the cases that train the network."""
        return [case for case in self._cases() if self.steps.may_train(case)] if self.spec.epochs else []

    def _refuse_without_training(self, cases: Sequence[Case]) -> None:
        if self.spec.epochs and not any(map(self.steps.may_train, cases)):
            raise CohortError(
                f"{self.cohort.folder}: every case is of the test part, or can't be used, so that none can "
                "train the registration network. Give weights=FILE of an earlier propagation, or epochs=0."
            )

    def _step(self) -> None:
        self._taken += 1
        if self._progress is None:
            return
        if self._counted != len(self.failed):  # there is less to do without the cases that have failed
            pairs = {case.case_id: len(self.pairing[case.case_id]) for case in self._cases()}
            training = sum(pairs[case.case_id] for case in self._training())
            self._total = sum(pairs.values()) + self.spec.epochs * training + len(pairs)
            self._counted = len(self.failed)
        self._progress(self._taken, max(self._total, self._taken))

    def _read_atlas(self, atlas: AtlasSpec) -> _Atlas:
        image, labels = read_atlas(self.cohort, atlas)
        volume = prepare(image, self.spec.size, self.spec.spacing, self.cohort.spec)
        on_grid = torch.from_numpy(prepare_map(labels, volume).astype(np.float32))
        return _Atlas(atlas, labels, volume, on_grid[None, None])

    def _look(self, case: Case) -> None:
        """Read all files of a case, so that one that is of no use is known before anything rests on it."""
        step = self.steps.look(case)
        if self.place.recall(step) is not None:
            return
        image, fixed = self._fixed(case)
        if fixed.values.min() == fixed.values.max():
            raise ImageError(f"{image.source}: the image holds one value only.")
        if case.mask is not None:
            read_mask(case.mask, None, image, self.cohort.spec)
        if case.reference is not None:
            read_structures(case.reference, None, image, self.cohort.spec)
        self.place.remember(step, {})

    def _align(self, case: Case, reuse: Reuse) -> None:
        fixed = None
        for atlas in self.pairing[case.case_id]:
            step = self.steps.alignment(case, atlas)
            reuse.note(step)
            if self.place.recall(step) is None:
                values: dict[str, Any] = {"matrix": np.eye(4).tolist()}
                if self.spec.affine:
                    fixed = fixed or self._fixed(case)[1]
                    values = self._aligned(fixed, self.atlases[atlas.name].volume)
                self.place.remember(step, values)
            self.done.append(step)
            self._step()

    def _aligned(self, fixed: Volume, moving: Volume) -> dict[str, Any]:
        steps, restarts = self.spec.affine_steps, self.spec.affine_restarts
        forward = align(fixed, moving, steps, restarts=restarts)
        back = align_back(fixed, moving, forward, steps)
        return {
            "matrix": forward.matrix.tolist(),
            "similarity": forward.correlation,
            "start": forward.start,
            "inverse_error": inverse_error(forward.matrix, back, fixed),
        }

    def _network(self, step: Step, training: Sequence[Case]) -> VoxelMorph | None:
        """Return the network: trained now or before, given, or none."""
        kept = self.place.file(step, ".safetensors")
        if self.spec.epochs == 0:
            network = None if self.spec.weights is None else build_registration(self.spec)
        elif is_whole(kept, self.place.recall(step), "weights_sha256"):
            network = build_registration(self.spec.model_copy(update={"weights": str(kept)}))
            for _ in range(self.spec.epochs * sum(len(self.pairing[case.case_id]) for case in training)):
                self._step()
        else:
            pairs = [
                self._pair(case, self._fixed(case), atlas)
                for case in training
                for atlas in self.pairing[case.case_id]
            ]
            network = train_registration(pairs, self.spec, self.place.file(step, ".ckpt"), self._step)
        if network is None:
            return None
        if not is_whole(kept, self.place.recall(step), "weights_sha256"):
            state = {name: values.cpu().contiguous() for name, values in network.state_dict().items()}
            write_atomically(kept, seal_tensors(save(state)))
            self.place.remember(step, {"weights_sha256": sha256_of_file(kept)})
        self.done.append(step)
        return network.to(self.device).eval()

    def _register(self, case: Case, network: VoxelMorph | None, step: Step) -> None:
        """Register a case's atlases, keep the best one's labels and their quality."""
        labels_file = self.place.file(step, ".nii.gz")
        known = self.place.recall(step)
        if known is not None and "labels_sha256" not in known:  # it failed without a label
            return
        if is_whole(labels_file, known, "labels_sha256") and self.place.has_transforms(step):
            return
        image, fixed = self._fixed(case)
        found, steered = [], False
        for atlas in self._most_alike(case):
            pair = self._pair(case, (image, fixed), atlas)
            found.append(self._registered(case, fixed, atlas, pair, network))
            # Of every atlas or of none; without training and refinement there is nothing to steer.
            steered = pair.mask is not None and bool(self.spec.epochs or self.spec.refinement_steps)
        found.sort(key=lambda one: -np.nan_to_num(one.fit, nan=-1.0))
        best = found[0]
        voters = [best, *(one for one in found[1:] if self._may_vote(one, best))]
        carriers = [
            self._carrier(image, fixed, one.atlas, self._alignment(case, one.atlas)) for one in voters
        ]
        maps = [carry(one.displacement) for carry, one in zip(carriers, voters, strict=True)]
        weights = [weight(one.warped, fixed.values) for one in voters] if len(voters) > 1 else []
        labels = vote(maps, weights, fixed.affine, image.affine) if weights else maps[0]
        row: dict[str, Any] = {
            **best.row,
            "atlas": " + ".join(one.atlas.name for one in voters),
            "mask_steered": "yes" if steered else "no",
            **({"agreement": agreement(maps, self.cohort.spec.structures)} if weights else {}),
            **self._truth(case, image, labels, carriers[0], best.displacement),
        }
        failed = failures(row, labels, self.spec.failure)
        reasons = [*failed, *(doubts(row, self.spec.failure) if np.isfinite(best.fit) else [])]
        row |= {
            "registration": "failed" if failed else "check" if reasons else "ok",
            "reason": "; ".join(reasons),
        }
        values: dict[str, Any] = {"row": row}
        if np.isfinite(best.fit) and labels.any():
            write_nifti(labels_file, labels, image.affine, place=image.stored_place)
            values["labels_sha256"] = sha256_of_file(labels_file)
            if self.spec.save_transforms:
                values["transforms"] = [
                    self._keep_transform(case, one, step, number, fixed) for number, one in enumerate(voters)
                ]
        self.place.remember(step, values)

    def _may_vote(self, one: _Registered, best: _Registered) -> bool:
        """Whether an atlas votes beside the best: of its class, and with nothing that speaks against it."""
        return (
            self.spec.fusion == "vote"
            and one.atlas.label == best.atlas.label
            and np.isfinite(one.fit)
            and not doubts(one.row, self.spec.failure)
        )

    def _registered(
        self, case: Case, fixed: Volume, atlas: AtlasSpec, pair: Pair, network: VoxelMorph | None
    ) -> _Registered:
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
            fit, displacement, warped = float("nan"), torch.zeros_like(displacement), pair.moving
        displacement, warped = displacement.cpu(), warped.cpu()
        row = {
            "correlation": fit,
            "correlation_affine": before,
            **field_quality(displacement),
            **self._signals(case, fixed, atlas, displacement, warped),
        }
        return _Registered(atlas, displacement, warped, fit, {**row, "score": failure_table().score(row)})

    def _most_alike(self, case: Case) -> list[AtlasSpec]:
        """Return the case's atlases that are registered: those whose aligned images are most alike."""
        atlases = self.pairing[case.case_id]
        if not self.spec.affine or len(atlases) <= self.spec.most_atlases:
            return list(atlases)
        kept = {atlas.name: self.place.recall(self.steps.alignment(case, atlas)) or {} for atlas in atlases}
        ranked = sorted(atlases, key=lambda atlas: -kept[atlas.name]["similarity"])
        return ranked[: self.spec.most_atlases]

    def _signals(
        self, case: Case, fixed: Volume, spec: AtlasSpec, displacement: torch.Tensor, warped: torch.Tensor
    ) -> dict[str, Any]:
        """Return what an atlas's registration tells of itself, without any truth."""
        atlas, matrix = self.atlases[spec.name], self._alignment(case, spec)
        labels = carry_labels(
            atlas.map[0, 0].numpy().astype(np.uint8),
            atlas.volume.affine,
            displacement,
            fixed.affine,
            matrix,
            fixed.size,
            fixed.affine,
        )
        on_grid = torch.from_numpy(labels.astype(np.float32))[None, None]
        kept = self.place.recall(self.steps.alignment(case, spec)) or {}
        return {
            **signals(fixed, warped, on_grid, displacement, atlas.volume, atlas.map),
            "stretch": stretch(matrix),
            "outside": outside(matrix, fixed, atlas.volume, atlas.map),
            "inverse_error": kept.get("inverse_error"),
            "start": kept.get("start"),
        }

    def _keep_transform(
        self, case: Case, one: _Registered, step: Step, number: int, fixed: Volume
    ) -> dict[str, Any]:
        file = self.place.file(step, f".{number}.nii.gz")
        write_vectors(file, field_vectors(one.displacement, fixed.affine), fixed.affine)
        matrix = self._alignment(case, one.atlas)
        return {"atlas": one.atlas.name, "matrix": matrix.tolist(), "sha256": sha256_of_file(file)}

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
            mask = np.asarray(read_mask(case.mask, None, image, self.cohort.spec).array, np.uint8)
            if mask.any():
                row |= {"mask_dice": region_dice(labels, mask), "mask_dice_affine": region_dice(affine, mask)}
        if case.reference is not None:
            known = read_structures(case.reference, None, image, self.cohort.spec)
            truth = np.asarray(known.array, np.uint8)
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
        self, image: Image, fixed: Volume, atlas: AtlasSpec, alignment: Affine
    ) -> Callable[..., np.ndarray]:
        one = self.atlases[atlas.name]

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
        image = read_image(case.image)
        if image.array.ndim != 3:
            raise ImageError(f"{image.source}: has shape {image.array.shape}; expected a volume.")
        return image, prepare(image, self.spec.size, self.spec.spacing, self.cohort.spec)

    def _pair(self, case: Case, read: tuple[Image, Volume], atlas: AtlasSpec) -> Pair:
        image, fixed = read
        moving, alignment = self.atlases[atlas.name], self._alignment(case, atlas)
        target = alignment @ fixed.affine
        warped = resample(moving.volume.values, moving.volume.affine, fixed.size, target, outside="border")
        region = mask = None
        # The test part's masks stay unseen, so that what is measured there is measured fairly.
        if case.mask is not None and self.steps.is_steered(case):
            inside = prepare_map(read_mask(case.mask, None, image, self.cohort.spec), fixed)
            if inside.any():
                mask = torch.from_numpy(inside.astype(np.float32))[None, None].to(self.device)
                region = resample(moving.region, moving.volume.affine, fixed.size, target).to(self.device)
        return Pair(fixed.values.to(self.device), warped.to(self.device), region, mask)

    def _alignment(self, case: Case, atlas: AtlasSpec) -> Affine:
        kept = self.place.recall(self.steps.alignment(case, atlas))
        assert kept is not None
        return np.asarray(kept["matrix"])
