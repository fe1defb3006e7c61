"""What a run's network goes by, case by case: attention, and the same case with one thing switched."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import Case, Cohort
from threefold.cohorts.failures import Failures, none_left, sparing_others
from threefold.cohorts.targets import read_mask, read_structures
from threefold.errors import ImageError, RunError
from threefold.evaluation.evidence import attention_columns, changes, flips
from threefold.evaluation.overlap import dice
from threefold.file_names import case_stem
from threefold.images.preprocessing import prepare_image, prepare_labels
from threefold.inference.attention import Attention, cam_layer_of, class_probabilities, grad_cam
from threefold.inference.engine import Prepared
from threefold.inference.listing import Source
from threefold.inference.predictor import Predictor
from threefold.inference.sources import prepare
from threefold.phantoms.counterfactuals import PhantomCase, lesion_files, phantom_cases
from threefold.tasks.questions import Question

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[int, int], None]
"""Called with the number of cases that are done and the number of all."""

Row = dict[str, str | float]


@dataclass(frozen=True)
class Known:
    """What there is of a case: its image as the network sees it, its lesion, and how well that was found.

    Attributes:
        case, one: the case and its image.
        lesion, truth_dice: as `Explainer.lesion` and `Explainer.truth_dice` give them; None of an image that
            is larger than the network's grid.
    """

    case: Case
    one: Prepared
    lesion: NDArray[np.bool_] | None
    truth_dice: float | None


@dataclass(frozen=True)
class Explainer:
    """A run's network beside the cohort that it was trained on.

    Attributes:
        predictor: the network, its threshold and preprocessing.
        cohort: the cohort.
        question: the decision that is explained.
        lesions: file of the true lesion by case id, of cohorts that keep one apart from their masks.
        masks: folder of the masks that the run left of its test cases.
        phantoms: the cases that can be rendered again, by case id; empty where the cohort is no phantom.
    """

    predictor: Predictor
    cohort: Cohort
    question: Question
    lesions: Mapping[str, Path]
    masks: Path
    phantoms: Mapping[str, PhantomCase]

    @classmethod
    def of(cls, predictor: Predictor, cohort: Cohort, masks: Path, task: str | None = None) -> Explainer:
        """Put a run's network, and the masks that it left, beside a cohort.

        Raises:
            RunError: the network classifies nothing.
            CohortError: the cohort's parameters or truth are damaged.
        """
        question = _question(predictor, task)
        return cls(
            predictor, cohort, question, lesion_files(cohort.folder), masks, phantom_cases(cohort.folder)
        )

    @property
    def things(self) -> dict[str, str]:
        """What each switch of the phantom switches, in words; empty where the cohort is no phantom."""
        one = next(iter(self.phantoms.values()), None)
        return {} if one is None else {name: switch.what for name, switch in one.of.switches.items()}

    def prepare(self, case: Case) -> Prepared:
        """Bring a case's image to the network's grid, as prediction does.

        Raises:
            ImageError: naming the case.
        """
        source = Source.of(case, self.cohort.spec)
        try:
            (one,) = prepare(source, replace(self.predictor.asked, judged=False), uneven="refuse")
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error
        return one

    @property
    def blind(self) -> str:
        """Why the network can't be asked where it looks; empty where it can."""
        try:
            cam_layer_of(self.predictor.network)
        except RunError as error:
            return str(error)
        return ""

    def look(self, images: Sequence[NDArray[np.float32]]) -> list[Attention]:
        """Return the attention to (C, *S) images, each to the class that the run decides for."""
        return grad_cam(
            self.predictor.network,
            images,
            self.question.head,
            decide=self._decide,
            device=self.predictor.device,
        )

    def lesion(self, case: Case, one: Prepared) -> NDArray[np.bool_] | None:
        """Return a case's true lesion on the network's grid, (*S); None where it is not known.

        It is the truth that the cohort keeps apart, else the case's mask, else the foreground of its
        reference or of its structures.

        Raises:
            ImageError: naming the case.
        """
        mask = self.lesions.get(case.case_id, case.mask)
        structures = case.reference or case.structures
        try:
            if mask is not None:
                target = read_mask(mask, case.slice_index, one.image, self.cohort.spec)
            elif structures is not None:
                target = read_structures(structures, case.slice_index, one.image, self.cohort.spec)
            else:
                return None
            inside: NDArray[np.bool_] = prepare_labels(target, one.placement) > 0
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error
        return inside

    def truth_dice(self, case: Case, one: Prepared) -> float | None:
        """Return the Dice of the mask that the run left of a case with the truth that the cohort keeps apart.

        So masks can be judged at sites whose masks the cohort does not show.

        Returns:
            None where one of them is not there; NaN where the truth is empty.

        Raises:
            ImageError: naming the case.
        """
        truth = self.lesions.get(case.case_id)
        places = [self.masks / f"{case_stem(case.case_id)}{end}" for end in (".nii.gz", ".png")]
        found = [path for path in places if path.is_file()]
        if truth is None or not found:
            return None
        try:
            true, predicted = (
                read_mask(path, None, one.image, self.cohort.spec).array.astype(np.bool_)
                for path in (truth, found[0])
            )
        except ImageError as error:
            raise ImageError(f"case {case.case_id}: {error}") from error
        return float(dice([true.sum()], [predicted.sum()], [(true & predicted).sum()])[0])

    def switched(self, case: Case, one: Prepared, name: str) -> NDArray[np.float32]:
        """Return a phantom's case with one thing switched, prepared as the run's images are: (C, *S)."""
        trained = self.predictor.cohort
        array, _ = prepare_image(
            replace(one.image, array=self.phantoms[case.case_id].render_switched(name)),
            self.predictor.experiment.data.preprocessing,
            unit=trained.intensity.unit,
            window=trained.intensity.window,
            whole=True,
        )
        return array

    def known(self, case: Case) -> Known:
        """Read what there is of a case.

        Raises:
            ImageError: naming the case that can't be read.
        """
        one = self.prepare(case)
        if one.window is not None:
            return Known(case, one, None, None)
        return Known(case, one, self.lesion(case, one), self.truth_dice(case, one))

    def rows(self, chosen: Sequence[Known]) -> list[Row]:
        """Return the evidence of a batch of cases, a row each; NaN where it does not apply.

        Raises:
            CohortError: a phantom's image is not what its parameters render.
        """
        cases, batch = [each.case for each in chosen], [each.one for each in chosen]
        images = [one.array for one in batch]
        attention: Sequence[Attention | None] = [None] * len(batch) if self.blind else self.look(images)
        rows = []
        for each, found in zip(chosen, attention, strict=True):
            case, lesion = each.case, each.lesion
            row: Row = {"case_id": case.case_id}
            if each.truth_dice is not None:
                row["truth_dice"] = each.truth_dice
            if lesion is not None and found is not None:
                seed = zlib.crc32(case.case_id.encode())  # whatever the order and the number of cases
                row |= attention_columns(found.map, found.grid, lesion, seed=seed)
            rows.append(row)
        positive = self.question.positive_class
        if positive is not None and all(case.case_id in self.phantoms for case in cases):
            for case, one in zip(cases, batch, strict=True):
                self.phantoms[case.case_id].verify(one.image.array)
            told = [found.probabilities for found in attention if found is not None]
            as_it_is = np.array(told or self._probabilities(images))[:, positive]
            for name in self.phantoms[cases[0].case_id].switches:
                for row, columns in zip(
                    rows, self._turned(name, cases, batch, as_it_is, positive), strict=True
                ):
                    row |= columns
        return rows

    def _turned(
        self,
        name: str,
        cases: Sequence[Case],
        batch: Sequence[Prepared],
        as_it_is: NDArray[np.float64],
        positive: int,
    ) -> Iterator[Row]:
        images = [self.switched(case, one, name) for case, one in zip(cases, batch, strict=True)]
        other = self._probabilities(images)[:, positive]
        has_it = np.array([self.phantoms[case.case_id].has(name) for case in cases])
        with_it, without = np.where(has_it, as_it_is, other), np.where(has_it, other, as_it_is)
        known = self.predictor.threshold_of(self.question)
        threshold = 0.5 if known is None else known
        columns = (flips(with_it, without, threshold), changes(with_it, without))
        for flip, change in zip(*columns, strict=True):
            yield {f"{name}_flip": float(flip), f"{name}_change": float(change)}

    def _probabilities(self, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        network, device = self.predictor.network, self.predictor.device
        return class_probabilities(network, images, self.question.head, device=device)

    def _decide(self, probabilities: NDArray[np.float64]) -> int:
        classes = self.question.classes
        named = dict(zip(classes, probabilities.tolist(), strict=True))
        return classes.index(self.predictor.decide(named, self.question))


def _question(predictor: Predictor, task: str | None) -> Question:
    """Return the class question to explain: the one asked for, or the first.

    Raises:
        RunError: there is none.
    """
    asked = [one for one in predictor.questions if one.kind == "class"]
    named = [one for one in asked if task in (None, one.head, one.target)]
    if not named:
        known = f" It has {', '.join(one.head for one in asked)}." if asked else ""
        what = "classification task" if task is None else f"classification task '{task}'"
        raise RunError(
            f"{predictor.run}: has no {what}, and so no decision to explain.{known} Name a run that "
            "classifies."
        )
    return named[0]


@dataclass(frozen=True)
class Explained:
    """What is known of cases.

    Attributes:
        evidence: by case id; NaN where it does not apply.
        larger: how many of the cases have none at all: their images are larger than the network's grid, and
            are predicted in parts.
        failed: why cases could not be used, by id; they are not in `evidence`.
    """

    evidence: pd.DataFrame
    larger: int
    failed: Failures


def explain_cases(
    explainer: Explainer, cases: Sequence[Case], *, batch_size: int = 16, progress: Progress | None = None
) -> Explained:
    """Return the evidence of cases; one that can't be read is left out, and the others go on.

    Args:
        explainer: network and cohort.
        cases: of the cohort.
        batch_size: slices a pass; volumes go one at a time.
        progress: told after each batch.

    Raises:
        CohortError, RunError: naming the case.
        ImageError: no case can be read.
    """
    import pandas as pd

    rows: list[Row] = []
    failed: Failures = {}
    larger = 0
    size = batch_size if explainer.cohort.spec.dimensions == 2 else 1
    for start in range(0, len(cases), size):
        chosen = cases[start : start + size]
        known: list[Known] = []
        for case in chosen:
            with sparing_others(failed, case.case_id):
                known.append(explainer.known(case))
        fitting = [each for each in known if each.one.window is None]
        larger += len(known) - len(fitting)
        found: dict[str, Row] = {}
        if fitting:
            found = {str(row["case_id"]): row for row in explainer.rows(fitting)}
        rows += [found.get(each.case.case_id, {"case_id": each.case.case_id}) for each in known]
        if progress is not None:
            progress(min(start + size, len(cases)), len(cases))
    if failed and not rows:
        raise none_left(str(explainer.cohort.folder), failed)
    columns = ["case_id", *dict.fromkeys(name for row in rows for name in row if name != "case_id")]
    return Explained(pd.DataFrame(rows, columns=columns).set_index("case_id"), larger, failed)
