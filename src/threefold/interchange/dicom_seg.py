"""DICOM Segmentation: the masks of a prediction on the slices that it was made from (PS3.3 A.51)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from threefold import __version__
from threefold.interchange.dicom_codes import Coded, concept
from threefold.interchange.dicom_source import DicomSource

if TYPE_CHECKING:
    from pydicom import Dataset

SegmentationType = Literal["binary", "labelmap"]
MANUFACTURER = "Threefold"


@dataclass(frozen=True)
class Algorithm:
    """What made a result.

    Attributes:
        name: of the run.
        version: of the program that trained it, and the beginning of its weights' SHA-256.
    """

    name: str
    version: str


@dataclass(frozen=True)
class Segment:
    """One segment.

    Attributes:
        number: from 1.
        label: its name.
        coded: what it shows.
        labels: (slices, rows, columns) of it and of the others of its label map.
        value: of the voxels where it is.
    """

    number: int
    label: str
    coded: Coded
    labels: NDArray[np.uint8]
    value: int

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(slices, rows, columns) where it is; made anew each time, since a label map may have many."""
        inside: NDArray[np.bool_] = self.labels == self.value
        return inside


def make_segmentation(
    source: DicomSource,
    segments: Sequence[Segment],
    algorithm: Algorithm,
    *,
    kind: SegmentationType = "binary",
) -> Dataset:
    """Return a DICOM Segmentation with a frame for each slice and segment, also where there is nothing.

    Viewers misplace the frames of a segmentation that leaves the empty ones out, so none is.

    Args:
        source: what the masks lie on.
        segments: numbered from 1; for a labelmap those of one label map.
        algorithm: what made them.
        kind: one plane of bits a segment, or one label a pixel.
    """
    from highdicom import AlgorithmIdentificationSequence, PixelMeasuresSequence, PlaneOrientationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

    identification = AlgorithmIdentificationSequence(
        name=algorithm.name[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=algorithm.version[:64],
        source=MANUFACTURER,
    )
    descriptions = [
        SegmentDescription(
            segment_number=one.number,
            segment_label=one.label[:64],
            segmented_property_category=concept(one.coded.category),
            segmented_property_type=concept(one.coded.kind),
            algorithm_type="AUTOMATIC",
            algorithm_identification=identification,
            tracking_uid=generate_uid(),
            tracking_id=one.label[:64],
            anatomic_regions=None if one.coded.anatomy is None else [concept(one.coded.anatomy)],
        )
        for one in segments
    ]
    if all(one.labels is segments[0].labels for one in segments):
        pixels = segments[0].labels  # whose values are the numbers of the segments
    else:  # they may overlap
        pixels = np.stack([one.mask for one in segments], axis=-1).astype(np.uint8)
    first, thicknesses = source.slices[0].grid, source.thicknesses()
    return Segmentation(
        source_images=source.datasets,
        pixel_array=pixels,
        segmentation_type=kind.upper(),
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=series_number(source, 1),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=algorithm.name[:64],
        software_versions=__version__,
        device_serial_number=algorithm.version[:64],
        transfer_syntax_uid=RLELossless if kind == "labelmap" else ExplicitVRLittleEndian,
        pixel_measures=PixelMeasuresSequence(
            pixel_spacing=first.spacing,
            slice_thickness=first.thickness,
            spacing_between_slices=float(np.median(thicknesses)),
        ),
        plane_orientation=PlaneOrientationSequence("PATIENT", [*first.right, *first.down]),
        omit_empty_frames=False,
        specific_character_set="ISO_IR 192",
        content_label="SEGMENTATION",
        content_description=f"Predicted by {algorithm.name}"[:64],
        series_description=f"Segmentation by {algorithm.name}"[:64],
    )


def series_number(source: DicomSource, place: int) -> int:
    """Return the number of a series of results: after that of its images, by thousands."""
    stated = source.datasets[0].get("SeriesNumber")
    return 1000 * place + max(int(stated or 0), 1)
