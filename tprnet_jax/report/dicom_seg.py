"""Masks out as DICOM segmentations, which refer to the images that they were found in.

highdicom is imported where it is needed: it comes with the optional installation alone.
"""

import copy
import io
import os
from typing import Any

import numpy as np

from tprnet_jax.data.dicom import telling
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_or_tell

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime")
# Positions in space: highdicom would want them of every frame, and projections have none.
_POSITIONS = (
    "ImagePositionPatient",
    "ImageOrientationSlide",
    "ImageCenterPointCoordinatesSequence",
    "PerFrameFunctionalGroupsSequence",
)
_SERIES = 1000  # Its number, behind those of the examination.
_LONGEST = 64  # Characters of a DICOM name.


def write_segmentation(
    path: str | os.PathLike, header: Any, masks: np.ndarray, model: str, version: str
) -> None:
    """Writes a binary DICOM SEG of one segment, the coronary artery, whole or not at all.

    Its frames are those of the source, the empty ones too, and each refers to its own. It has the
    source's patient, study and frame of reference, but no positions in it.

    Args:
        path: The file; one that is there is replaced.
        header: The source's data set without pixels, see `Angiogram`.
        masks: bool (frames, height, width), of all frames of the source.
        model: Name of the algorithm.
        version: Its version.

    Raises:
        UserError: The header lacks what a segmentation refers to, or holds what none may hold; the
          file cannot be written; or highdicom is missing.
    """
    mend = "give an image with a whole header, or do without DICOM SEG"
    with telling(path, "cannot be made", mend):
        _check(header, path)
        content = _encode(header, masks, model, version)
    write_or_tell(path, content)


def _check(header: Any, path: str | os.PathLike) -> None:
    for keyword in _NEEDED:
        if not header.get(keyword):
            raise UserError(
                f"{path} cannot be made, as the header of the image has no {keyword}; give one "
                "that has, or do without DICOM SEG"
            )


def _encode(header: Any, masks: np.ndarray, model: str, version: str) -> bytes:
    import highdicom

    made = highdicom.seg.Segmentation(
        source_images=[_source(header)],
        pixel_array=masks[0],
        segmentation_type="BINARY",
        segment_descriptions=[_segment(model, version)],
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="tprnet-jax",
        manufacturer_model_name=_short(model),
        software_versions=_short(version),
        device_serial_number="none",
        content_label="CORONARY_ARTERY",
        omit_empty_frames=False,
    )
    # Without a thickness, which projections lack, highdicom could not read it again.
    made.SharedFunctionalGroupsSequence[0].pop("PixelMeasuresSequence", None)
    if header.get("NumberOfFrames"):
        _add_frames(made, masks)
    file = io.BytesIO()
    made.save_as(file)
    return file.getvalue()


def _source(header: Any) -> Any:
    """The first frame of the source, as highdicom takes it."""
    from pydicom import Dataset

    source, shared = Dataset(), Dataset()
    source.update(copy.deepcopy(header))
    for keyword in _POSITIONS:
        source.pop(keyword, None)
    for keyword in _PATIENT + _STUDY:  # What anonymised files have lost may be empty.
        source.setdefault(keyword, None)
    # Ordinary runs lack the functional groups that highdicom expects of all that may be runs.
    shared.PixelMeasuresSequence = [Dataset()]
    source.SharedFunctionalGroupsSequence, source.NumberOfFrames = [shared], 1
    # highdicom refuses some names of character sets that the standard has; all fit into UTF-8.
    source.decode()
    source.SpecificCharacterSet = "ISO_IR 192"
    return source


def _segment(model: str, version: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    return SegmentDescription(
        segment_number=1,
        segment_label="Coronary artery",
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=codes.SCT.CoronaryArtery,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            _short(model), codes.DCM.ArtificialIntelligence, _short(version)
        ),
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _add_frames(made: Any, masks: np.ndarray) -> None:
    """Puts all masks where the first one is: highdicom can have several only at positions."""
    made.DimensionIndexSequence.append(_time(made))
    first, frames = made.PerFrameFunctionalGroupsSequence[0], []
    for number in range(1, len(masks) + 1):
        frame = copy.deepcopy(first)
        content = frame.FrameContentSequence[0]
        content.DimensionIndexValues = [1, number]  # Of the segment, and in time.
        content.TemporalPositionIndex = number
        frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber = number
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence, made.NumberOfFrames = frames, len(masks)
    bits = np.packbits(masks, axis=None, bitorder="little").tobytes()
    made.PixelData = bits + bytes(len(bits) % 2)


def _time(made: Any) -> Any:
    """The dimension that orders the frames of a run."""
    from pydicom import Dataset
    from pydicom.datadict import tag_for_keyword

    index = Dataset()
    index.DimensionOrganizationUID = made.DimensionIndexSequence[0].DimensionOrganizationUID
    index.DimensionIndexPointer = tag_for_keyword("TemporalPositionIndex")
    index.FunctionalGroupPointer = tag_for_keyword("FrameContentSequence")
    index.DimensionDescriptionLabel = "Temporal Position Index"
    return index
