"""A label map as a DICOM Segmentation object that belongs to the series it was found in.

The object refers to the instances of the source series, so that an archive files it with them and a viewer draws it on
them; patient and study come from the source, as DICOM demands, and nothing else does. Made with highdicom, which is
needed for this alone. Reading series is in ``reading``; all other files are written by ``writing``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from UADBenchLib import __version__
from UADBenchLib.errors import InputError
from UADBenchLib.writing import atomic

CATEGORY = ("49755003", "SCT", "Morphologically Altered Structure")
LESION = ("52988006", "SCT", "Lesion")
BRAIN = ("12738006", "SCT", "Brain")

# What a DICOM object must have, empty where it is not known; a series without names or dates often lacks them.
KNOWN_OR_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def write_dicom_seg(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    affine: np.ndarray,
    names: Sequence[str],
    series: Sequence[str | os.PathLike[str]],
    *,
    model: str,
) -> None:
    """Write a label map as a DICOM Segmentation.

    Parameters
    ----------
    path : path-like
        File to write.
    labels : numpy.ndarray
        Shape (I, J, K), integer: 0 outside, 1 to N in the segments.
    affine : numpy.ndarray
        Voxel index to RAS millimetres of the source series, shape (4, 4). Axes may be permuted or reversed with respect
        to the frames of the series, but the grids must be the same.
    names : sequence of str
        Labels of segments 1 to N; what DICOM does not allow in them is changed.
    series : sequence of path-like
        All instances of the source series.
    model : str
        Id of the model, which is named as the algorithm.

    Raises
    ------
    InputError
        SEGMENTS_EMPTY when no voxel is labelled, DICOM_UNREADABLE, DICOM_GRID when the series has another grid,
        NOT_WRITABLE or DISK_FULL.
    """
    import highdicom
    from highdicom.seg import Segmentation, SegmentationTypeValues

    if not np.any(labels):
        raise InputError("SEGMENTS_EMPTY", "there is no finding to write", "lower the threshold")
    sources = _read_series(series)
    volume = _on_series(np.asarray(labels, dtype=np.uint8), affine, sources)
    segmentation = Segmentation(
        source_images=sources,
        pixel_array=volume,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(number, name, model) for number, name in enumerate(names, start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=300,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="UADBench",
        manufacturer_model_name="UADBench",
        software_versions=__version__,
        device_serial_number="none",
        series_description=f"UADBench {model}"[:64],
        content_description="Findings of research software"[:64],
        omit_empty_frames=True,
    )
    # Names are in any script, whatever the series is written in.
    segmentation.SpecificCharacterSet = "ISO_IR 192"
    with atomic(path) as partial:
        segmentation.save_as(partial)


def _read_series(series: Sequence[str | os.PathLike[str]]) -> list[Any]:
    """Read the instances of a series, without their pixels, which may be packed in a way that cannot be opened here."""
    import pydicom

    if not series:
        raise InputError("DICOM_UNREADABLE", "no DICOM file is named", "choose a scan that was loaded from DICOM")
    sources = []
    for file in series:
        try:
            source = pydicom.dcmread(file, stop_before_pixels=True)
        except (OSError, pydicom.errors.InvalidDicomError) as error:
            raise InputError(
                "DICOM_UNREADABLE", f"{Path(file).name} cannot be read", "load the series again from where it lies now"
            ) from error
        for name in KNOWN_OR_EMPTY:
            if name not in source:
                setattr(source, name, None)
        sources.append(source)
    return sources


def _on_series(labels: np.ndarray, affine: np.ndarray, sources: list[Any]) -> Any:
    """Return the labels as a volume with the frames of the series along its first axis."""
    import highdicom

    if not all(source.get("FrameOfReferenceUID") for source in sources):
        raise InputError(
            "DICOM_GRID",
            "the DICOM series names no frame of reference, so that nothing can be laid on it",
            "export NIfTI instead, or take the series as the scanner wrote it",
        )
    try:
        geometry = _geometry(sources)
        for source in sources:
            # A segmentation must have a thickness; where a series has none, its frames fill the space between them.
            if not source.get("SliceThickness"):
                source.SliceThickness = geometry.spacing[0]
        volume = highdicom.Volume(
            labels,
            affine=np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, dtype=np.float64),
            coordinate_system="PATIENT",
            frame_of_reference_uid=geometry.frame_of_reference_uid,
        )
        return volume.match_geometry(geometry, tol=1e-2)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            "DICOM_GRID",
            "the segmentation and the DICOM series do not share their voxels",
            "export on the scan as it was loaded, without resampling or cropping",
        ) from error


def _geometry(sources: list[Any]) -> Any:
    """Return where the voxels of a series lie: of its single frames in order, or of one instance with all frames."""
    import highdicom

    if len(sources) == 1:
        return highdicom.Image.from_dataset(sources[0]).get_volume_geometry()
    spacing, places = highdicom.spatial.get_series_volume_positions(sources)
    if places is None:
        raise ValueError("the frames are not at equal distances")
    first = sources[places.index(0)]
    return highdicom.VolumeGeometry.from_attributes(
        image_position=first.ImagePositionPatient,
        image_orientation=first.ImageOrientationPatient,
        rows=first.Rows,
        columns=first.Columns,
        pixel_spacing=first.PixelSpacing,
        spacing_between_slices=spacing,
        number_of_frames=len(sources),
        coordinate_system="PATIENT",
        frame_of_reference_uid=first.FrameOfReferenceUID,
    )


def _segment(number: int, name: str, model: str) -> Any:
    """Return the description of one segment."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    return SegmentDescription(
        segment_number=number,
        segment_label=name.replace("\\", "/").strip()[:64] or f"segment {number}",
        segmented_property_category=CodedConcept(*CATEGORY),
        segmented_property_type=CodedConcept(*LESION),
        anatomic_regions=[CodedConcept(*BRAIN)],
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=model[:64], version=__version__, family=codes.cid7162.ArtificialIntelligence
        ),
    )
