"""Annotations as a PACS has them, made by highdicom as a radiologist's workstation would: TID 1500 reports and SEG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import highdicom as hd
import numpy as np
from highdicom import sr
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

READER = "Winnetou^"
"""Who marked it: stands in the objects, and may stand nowhere else."""
NODULE = codes.SCT.Nodule


def region(image: Any, kind: str, points: Sequence[Sequence[float]]) -> Any:
    """A graphic on an image."""
    source = sr.SourceImageForRegion(
        referenced_sop_class_uid=image.SOPClassUID, referenced_sop_instance_uid=image.SOPInstanceUID
    )
    return sr.ImageRegion(graphic_type=kind, graphic_data=np.array(points, float), source_image=source)


def finding(image: Any, kind: str, points: Sequence[Sequence[float]], what: Any = NODULE) -> Any:
    """TID 1410: one region with its name."""
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=region(image, kind, points),
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=READER),
        finding_type=what,
    )


def report(images: Sequence[Any], findings: Sequence[Any]) -> Any:
    """A Comprehensive SR of a person's findings."""
    person = sr.ObserverContext(
        observer_type=codes.DCM.Person,
        observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name=READER),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_person_context=person),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=list(findings),
        title=codes.DCM.ImagingMeasurementReport,
    )
    return sr.ComprehensiveSR(
        evidence=[*map(whole, images)],
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="somebody",
        series_description=READER,
    )


def on_frame(made: Any, frame: int) -> Any:
    """A report whose regions lie on a frame of their image."""
    for node in made.iterall():
        if node.keyword == "ReferencedSOPSequence":
            node.value[0].ReferencedFrameNumber = frame
    return made


def segmentation(images: Sequence[Any], mask: np.ndarray, kind: str = "BINARY", what: Any = NODULE) -> Any:
    """A SEG with one segment; `mask` is (images, rows, columns)."""
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label=READER,
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=what,
        algorithm_type="MANUAL",
    )
    return hd.seg.Segmentation(
        source_images=[*map(whole, images)],
        pixel_array=mask,
        segmentation_type=kind,
        segment_descriptions=[segment],
        series_instance_uid=generate_uid(),
        series_number=10,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="somebody",
        manufacturer_model_name="workstation",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=False,
    )


def whole(image: Any) -> Any:
    """The image with what highdicom asks of a source."""
    for keyword in ("AccessionNumber", "PatientBirthDate", "StudyTime", "ReferringPhysicianName", "StudyID"):
        image.setdefault(keyword, "")
    image.setdefault("SpecificCharacterSet", "ISO_IR 192")
    return image
