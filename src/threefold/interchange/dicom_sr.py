"""DICOM Structured Report of a prediction: a Measurement Report (PS3.16 TID 1500), for a person to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from threefold import __version__
from threefold.interchange.dicom_codes import OWN, Triple, concept
from threefold.interchange.dicom_seg import MANUFACTURER, Algorithm, Segment, series_number
from threefold.interchange.dicom_source import DicomSource

if TYPE_CHECKING:
    from pydicom import Dataset

_DIAGNOSIS: Triple = ("439401001", "SCT", "Diagnosis")
_IN_SET: Triple = ("prediction-set", OWN, "Possible diagnosis (member of the prediction set)")
_MAXIMUM: Triple = ("56851009", "SCT", "Maximum")
_MILLILITRE: Triple = ("mL", "UCUM", "mL")
_UNLIKE: Triple = ("out-of-distribution", OWN, "Image differs from the training images")


@dataclass(frozen=True)
class Diagnosis:
    """What was decided of an image, or of one of its slices.

    Attributes:
        name: of the question, where there are several; else empty.
        slices: numbers of the slices that were looked at, from 0; empty: all.
        decision: code of the class decided for.
        probabilities, calibrated: by code of the class; calibrated ones where the run has a calibration.
        prediction_set: codes of the classes that can't be ruled out; empty: not known.
        unlike_training: whether the image differs from what the network was trained on; None: not known.
        numbers: further numbers with their units, by name.
    """

    name: str = ""
    slices: tuple[int, ...] = ()
    decision: Triple | None = None
    probabilities: Mapping[Triple, float] = field(default_factory=dict)
    calibrated: Mapping[Triple, float] = field(default_factory=dict)
    prediction_set: tuple[Triple, ...] = ()
    unlike_training: bool | None = None
    numbers: Mapping[str, tuple[float, str]] = field(default_factory=dict)


def make_report(
    source: DicomSource,
    segments: Sequence[Segment],
    segmentation: Dataset | None,
    diagnoses: Sequence[Diagnosis],
    algorithm: Algorithm,
) -> Dataset:
    """Return a Comprehensive 3D SR: measurements of each segment, and the diagnoses.

    Of a volume's segments the volume (mL) and the greatest diameter (mm, between centres of voxels) are
    stated, of a single slice's the area (mm2) and that diameter; of an empty one the 0 alone.

    Args:
        source: the images.
        segments: of `segmentation`; none without one.
        segmentation: what the measurements are of; None: there are none.
        diagnoses: what was decided.
        algorithm: what made all of it.
    """
    from highdicom.sr import (
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        MeasurementReport,
        ObservationContext,
        ObserverContext,
    )
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[MANUFACTURER, algorithm.name, algorithm.version]),
        name=algorithm.name,
        manufacturer_name=MANUFACTURER,
        model_name=f"threefold {__version__}",
        serial_number=algorithm.version,
    )
    groups = [
        *(_of_segment(source, one, segmentation, algorithm) for one in segments if segmentation is not None),
        *(_of_diagnosis(source, one, algorithm) for one in diagnoses),
    ]
    content = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=_procedure(source),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=None if source.multiframe else source.datasets,  # it describes single slices alone
    )
    return Comprehensive3DSR(
        evidence=[*source.datasets, *([] if segmentation is None else [segmentation])],
        content=content,
        series_instance_uid=generate_uid(),
        series_number=series_number(source, 2),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        specific_character_set="ISO_IR 192",
        series_description=f"Measurements by {algorithm.name}"[:64],
    )


def _procedure(source: DicomSource) -> Any:
    """Return the code of the kind of imaging that was reported on."""
    from pydicom.sr.codedict import codes

    modality = str(source.datasets[0].get("Modality") or "")
    known = {"CT": codes.SCT.ComputedTomography, "MR": ("113091000", "SCT", "Magnetic resonance imaging")}
    found = known.get(modality, ("363679005", "SCT", "Imaging"))
    return concept(found) if isinstance(found, tuple) and not hasattr(found, "scheme_designator") else found


def _of_segment(source: DicomSource, one: Segment, segmentation: Dataset | None, algorithm: Algorithm) -> Any:
    """Return the measurements of a segment (TID 1411)."""
    from highdicom.sr import (
        FindingSite,
        Measurement,
        ReferencedSegment,
        SourceSeriesForSegmentation,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom.sr.codedict import codes

    assert segmentation is not None
    areas = one.mask.sum(axis=(1, 2)) * np.prod(source.slices[0].grid.spacing)  # mm2 of each slice
    if len(source.slices) == 1:
        size = Measurement(codes.SCT.Area, _decimal(areas[0]), codes.UCUM.SquareMillimeter)
    else:
        millilitres = float(areas @ source.thicknesses()) / 1000
        size = Measurement(codes.SCT.Volume, _decimal(millilitres), concept(_MILLILITRE))
    measurements = [size]
    if one.mask.any():
        diameter = _decimal(greatest_diameter(source, one.mask))
        measurements.append(
            Measurement(codes.SCT.Diameter, diameter, codes.UCUM.Millimeter, derivation=concept(_MAXIMUM))
        )
    said: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(
            uid=_tracking_uid(segmentation, one.number), identifier=one.label
        ),
        "finding_category": concept(one.coded.category),
        "finding_type": concept(one.coded.kind),
        "finding_sites": None if one.coded.anatomy is None else [FindingSite(concept(one.coded.anatomy))],
        "algorithm_id": _identified(algorithm),
        "measurements": measurements,
    }
    series = SourceSeriesForSegmentation(str(source.datasets[0].SeriesInstanceUID))
    segment = ReferencedSegment(*_instance(segmentation), one.number, source_series=series)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=segment, **said)


def _of_diagnosis(source: DicomSource, one: Diagnosis, algorithm: Algorithm) -> Any:
    """Return what was decided, with its probabilities (TID 1501)."""
    from highdicom.sr import (
        Measurement,
        MeasurementsAndQualitativeEvaluations,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )
    from pydicom.sr.codedict import codes

    said = [] if one.decision is None else [(_DIAGNOSIS, one.decision)]
    said += [(_IN_SET, member) for member in one.prediction_set]
    if one.unlike_training is not None:
        yes, no = ("373066001", "SCT", "Yes"), ("373067005", "SCT", "No")
        said.append((_UNLIKE, yes if one.unlike_training else no))
    measurements = [
        Measurement(
            concept((f"{kind.lower().replace(' ', '-')}-{value}"[:64], OWN, f"{kind} of {meaning}"[:64])),
            _decimal(probability),
            codes.UCUM.NoUnits,
        )
        for kind, found in (("Probability", one.probabilities), ("Calibrated probability", one.calibrated))
        for (value, _, meaning), probability in found.items()
    ]
    measurements += [
        Measurement(
            concept((name[:64], OWN, name[:64])),
            _decimal(number),
            concept((f"{{{unit}}}", "UCUM", unit)) if unit else codes.UCUM.NoUnits,
        )
        for name, (number, unit) in one.numbers.items()
    ]
    slices = one.slices or range(len(source.slices))
    if source.multiframe:
        frames = [source.slices[index].frame or 0 for index in slices]
        images = [SourceImageForMeasurementGroup(*_instance(source.datasets[0]), [f + 1 for f in frames])]
    else:
        images = [SourceImageForMeasurementGroup(*_instance(source.datasets[index])) for index in slices]
    identifier = one.name or "diagnosis"
    if one.slices:
        identifier += f", slice {one.slices[0] + 1} of {len(source.slices)}"
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identifier=identifier),
        algorithm_id=_identified(algorithm),
        measurements=measurements,
        qualitative_evaluations=[
            QualitativeEvaluation(concept(name), concept(value)) for name, value in said
        ],
        source_images=images,
    )


def greatest_diameter(source: DicomSource, mask: NDArray[np.bool_]) -> float:
    """Return the largest distance between the centres of two voxels of a mask on the slices, mm.

    Args:
        source: where the slices lie.
        mask: (slices, rows, columns), not empty.
    """
    from scipy.spatial import ConvexHull, QhullError
    from scipy.spatial.distance import pdist

    points = []
    for one, plane in zip(source.slices, mask, strict=True):
        row, column = _ends_of_rows(plane)
        grid = one.grid
        points.append(
            grid.position
            + np.outer(row * grid.spacing[0], grid.down)
            + np.outer(column * grid.spacing[1], grid.right)
        )
    ends = np.concatenate(points)
    with suppress(QhullError, ValueError):  # all in one plane or on one line: there are few of them
        ends = ends[ConvexHull(ends).vertices]
    return float(pdist(ends).max(initial=0.0))


def _ends_of_rows(plane: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns of the first and the last voxel of each row: no others are furthest apart."""
    rows = np.flatnonzero(plane.any(axis=1))
    first = plane[rows].argmax(axis=1)
    last = plane.shape[1] - 1 - plane[rows, ::-1].argmax(axis=1)
    return np.concatenate([rows, rows]), np.concatenate([first, last])


def _identified(algorithm: Algorithm) -> Any:
    from highdicom.sr import AlgorithmIdentification
    from pydicom.sr.codedict import codes

    return AlgorithmIdentification(
        algorithm.name, algorithm.version, family=codes.DCM.ArtificialIntelligence, manufacturer=MANUFACTURER
    )


def _tracking_uid(segmentation: Dataset, number: int) -> str:
    return next(str(one.TrackingUID) for one in segmentation.SegmentSequence if one.SegmentNumber == number)


def _instance(dataset: Dataset) -> tuple[str, str]:
    return str(dataset.SOPClassUID), str(dataset.SOPInstanceUID)


def _decimal(value: float) -> float:
    """Return a number that its text of 16 characters says in full."""
    return float(f"{value:.6g}")
