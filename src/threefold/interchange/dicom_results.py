"""A prediction as DICOM: a segmentation and a measurement report, in the study of its images."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold.cohorts.cohort import CohortSpec
from threefold.core.targets import MaskTarget, MultilabelTarget, NumberTarget
from threefold.errors import ImageError, UsageError
from threefold.evaluation.predictions import (
    CALIBRATED_PREFIX,
    PREDICTION_SET,
    PROBABILITY_PREFIX,
    SET_SEPARATOR,
)
from threefold.images.decoding import short
from threefold.images.dicom_slice import LPS_TO_RAS
from threefold.images.geometry import Image
from threefold.interchange.dicom_codes import coded_class, coded_segment
from threefold.interchange.dicom_seg import Algorithm, Segment, SegmentationType, make_segmentation
from threefold.interchange.dicom_source import DicomSource, source_of
from threefold.interchange.dicom_sr import Diagnosis, make_report
from threefold.tasks.questions import Question

if TYPE_CHECKING:
    from pydicom import Dataset

    from threefold.inference.output import Prediction


def require_dicom() -> None:
    """Refuse to make DICOM objects without the library for it.

    Raises:
        UsageError: naming the extra that brings it.
    """
    if find_spec("highdicom") is None:
        raise UsageError(
            "--dicom needs highdicom, which is not installed: pip install -c constraints.txt '.[dicom]'"
        )


@dataclass(frozen=True)
class DicomResults:
    """Makes the DICOM objects of one run's predictions.

    Attributes:
        cohort: that the run was trained on, with its codes.
        questions: what its network is asked.
        algorithm: the run.
        kind: of the segmentations.
    """

    cohort: CohortSpec
    questions: tuple[Question, ...]
    algorithm: Algorithm
    kind: SegmentationType = "binary"

    def objects_of(
        self, image: Image, masks: Mapping[str, NDArray[np.uint8]], predictions: Sequence[Prediction]
    ) -> dict[str, bytes]:
        """Return the files of one image's results, by the ending of their names.

        Args:
            image: a slice, or the volume, that was read from DICOM.
            masks: label map on the image's grid by segmentation task, the only one by an empty name.
            predictions: of the image, or of each of its slices.

        Returns:
            `seg` (where the network segments) and `sr`.

        Raises:
            ImageError: the image is no DICOM, or its files lack what a reference to them needs.
        """
        source = source_of(image)
        segments = self._segments(source, masks, image)
        diagnoses = [one for each in predictions for one in self._diagnoses(source, each)]
        segmentation = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd values that the images had before
                if segments:
                    segmentation = make_segmentation(source, segments, self.algorithm, kind=self.kind)
                report = make_report(source, segments, segmentation, diagnoses, self.algorithm)
                objects = {"seg": segmentation, "sr": report}
                return {name: _bytes_of(one) for name, one in objects.items() if one is not None}
        except MemoryError:
            raise
        except Exception as error:  # whatever highdicom makes of an odd header
            raise ImageError(
                f"{image.source}: no DICOM result can refer to it ({type(error).__name__}: {short(error)}). "
                "Ask for the original export."
            ) from error

    def _segments(
        self, source: DicomSource, masks: Mapping[str, NDArray[np.uint8]], image: Image
    ) -> list[Segment]:
        segments: list[Segment] = []
        for question in self.questions:
            task = question.prefix.removesuffix(".")
            if question.kind != "labels" or task not in masks:
                continue
            labels = source.labels(masks[task], image)
            for value, name in enumerate(question.names or (self._name_of_mask(question),), start=1):
                coded = coded_segment(name, self.cohort.codes)
                label = f"{question.prefix}{name}"
                segments.append(Segment(len(segments) + 1, label, coded, labels, value))
        return segments

    def _name_of_mask(self, question: Question) -> str:
        known = self.cohort.all_targets.get(question.target or "mask")
        return known.name if isinstance(known, MaskTarget) else question.head

    def _diagnoses(self, source: DicomSource, prediction: Prediction) -> list[Diagnosis]:
        slices = () if prediction.volume is None else (_nearest_slice(source, prediction.image),)
        found = []
        for question in self.questions:
            if question.kind not in ("class", "other"):
                continue
            one = self._diagnosis(question, prediction, slices)
            if one is not None:
                found.append(one)
        unlike = prediction.out_of_distribution
        if unlike is not None and unlike.flag is not None:  # said once, of all questions
            found = found or [Diagnosis(slices=slices)]
            found[0] = replace(found[0], unlike_training=unlike.flag)
        return found

    def _diagnosis(
        self, question: Question, prediction: Prediction, slices: tuple[int, ...]
    ) -> Diagnosis | None:
        name, said = question.prefix.removesuffix("."), prediction.answers
        known = None if question.task is None else question.task.context.known
        if isinstance(known, NumberTarget):
            value = said.get(f"{question.prefix}predicted")
            return (
                None if value is None else Diagnosis(name, slices, numbers={name: (value, known.unit or "")})
            )
        classes = known.classes if isinstance(known, MultilabelTarget) else question.classes
        if question.kind == "class" and not question.prefix:
            decision, probabilities = prediction.decision, prediction.probabilities
            calibrated, members = prediction.calibrated, prediction.prediction_set
        else:
            decision = said.get(f"{question.prefix}decision")
            probabilities = _in_columns(said, f"{question.prefix}{PROBABILITY_PREFIX}", classes)
            calibrated = _in_columns(said, f"{question.prefix}{CALIBRATED_PREFIX}", classes)
            members = said.get(f"{question.prefix}{PREDICTION_SET}", "").split(SET_SEPARATOR)
        if not probabilities:
            return None
        codes = {one: coded_class(one, self.cohort.codes) for one in classes}
        return Diagnosis(
            name,
            slices,
            decision=None if decision is None else codes[decision],
            probabilities={codes[one]: value for one, value in probabilities.items()},
            calibrated={codes[one]: value for one, value in calibrated.items()},
            prediction_set=tuple(codes[one] for one in members if one),
        )


def _in_columns(said: Mapping[str, Any], prefix: str, classes: Sequence[str]) -> dict[str, float]:
    """Return the probability of each class among answers by column, without those that are not there."""
    columns = {one: f"{prefix}{one}" for one in classes}
    return {one: said[column] for one, column in columns.items() if said.get(column) is not None}


def _nearest_slice(source: DicomSource, image: Image) -> int:
    """Return the number of the slice that lies closest to a slice of a volume, which may be resampled."""
    normal = source.slices[0].grid.normal
    at = (LPS_TO_RAS @ image.affine[:3, 3]) @ normal  # LPS_TO_RAS is its own inverse
    return int(np.argmin([abs(one.grid.position @ normal - at) for one in source.slices]))


def _bytes_of(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()
