"""Findings for a PACS: a DICOM SR (TID 1500, Measurement Report), and the slice with its boxes drawn on it.

Both are marked as what they are: made by a model, for research, preliminary, verified by nobody. They carry the
patient's identity of the source image, since they go back to where that came from, and nowhere else.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import UnusableImageError
from consilia.imaging.cases import WindowHU, window_for

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MANUFACTURER = "Consilia"
NOTICE = "AI, research use only, not verified"
OWN_SCHEME = "99CONSILIA"
"""Codes that no public terminology has; "99" marks a private scheme (PS3.16, 8)."""

SR_SERIES_NUMBER = 9901
CAPTURE_SERIES_NUMBER = 9902
"""High, so that viewers sort them behind what the scanner made."""

_BOX_COLOUR = (255, 200, 0)
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "SeriesNumber",
    "InstanceNumber",
)
"""What an SR must carry on, empty where the source does not tell (PS3.3, type 2)."""


@dataclass(frozen=True)
class CodedName:
    """A concept of a terminology: `scheme` is its designator in DICOM (PS3.16, 8), such as RADLEX or SCT."""

    value: str
    scheme: str
    meaning: str
    """At most 64 characters (LO)."""


@dataclass(frozen=True)
class ReportedFinding:
    """One finding on the source image, in its own pixels."""

    box_xyxy: tuple[float, float, float, float]
    name: CodedName
    score: float | None = None
    """The model's confidence, 0..1; no probability of disease."""


@dataclass(frozen=True)
class Reporter:
    """Which model says so."""

    model: str
    """A short name, such as faster-rcnn."""
    model_digest: str
    """SHA-256 of its weights, 64 hex digits."""
    remarks: tuple[str, ...] = ()
    """Sentences for whoever reads the report, such as how many audits the model passed."""


def check_reportable(source: Path) -> None:
    """Whether an SR can refer to a file.

    Raises:
        UnusableImageError: it is no DICOM image that can be referred to.
    """
    _header(source)


def structured_report(source: Path, findings: Sequence[ReportedFinding], reporter: Reporter) -> Dataset:
    """A Comprehensive SR of the findings on one DICOM image: a closed polyline and a score each (TID 1500, 1410).

    No finding makes a report too: it says so, instead of leaving the reader in doubt.

    Raises:
        UnusableImageError: the source is no DICOM image that can be referred to.
    """
    import highdicom as hd
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    header = _header(source)
    device = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_device_uid(reporter),
            name=f"Consilia {reporter.model}"[:64],
            manufacturer_name=MANUFACTURER,
            model_name=reporter.model[:64],
            serial_number=reporter.model_digest,
        ),
    )
    groups = [_group(header, finding, number, reporter) for number, finding in enumerate(findings, start=1)]
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=device),
        procedure_reported=_procedure(header),
        imaging_measurements=groups or [_nothing_found(header, reporter)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    _add_comments(content[0], (NOTICE, *reporter.remarks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote header values
        report = hd.sr.ComprehensiveSR(
            evidence=[header],
            content=content[0],
            series_instance_uid=generate_uid(),
            series_number=SR_SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            is_final=False,
            is_verified=False,
            series_description=f"Consilia findings ({NOTICE})",
        )
    return _with_charset(report)


def annotated_capture(
    source: Path, findings: Sequence[ReportedFinding], reporter: Reporter, window: WindowHU | None = None
) -> Dataset:
    """A Secondary Capture of the source slice in grey, its boxes drawn in colour, with the notice on it.

    `window` as the model saw it; without one that of the body part.

    Raises:
        UnusableImageError: the source is no CT slice that can be read.
    """
    import highdicom as hd
    from pydicom.uid import generate_uid

    from consilia.imaging.dicom import read_ct

    header, slice_ = _header(source), read_ct(source)
    grey = (window or window_for(slice_.body_part)).to_uint8(slice_.hu)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        capture = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=header,
            pixel_array=draw_findings(grey, findings),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=_orientation(header),
            series_instance_uid=generate_uid(),
            series_number=CAPTURE_SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=MANUFACTURER,
        )
    capture.SeriesDescription = f"Consilia findings ({NOTICE})"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    if slice_.spacing_mm:
        capture.PixelSpacing = [*map(str, slice_.spacing_mm)]
    capture.BurnedInAnnotation = "YES"
    capture.DerivationDescription = f"{reporter.model} {reporter.model_digest[:12]}: {NOTICE}"
    return _with_charset(capture)


def draw_findings(grey: NDArray[np.uint8], findings: Sequence[ReportedFinding]) -> NDArray[np.uint8]:
    """The slice (H, W) as (H, W, 3) with every box, its name and score, and the notice at the foot."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(grey).convert("RGB")
    draw = ImageDraw.Draw(image)
    for finding in findings:
        x1, y1, x2, y2 = finding.box_xyxy
        draw.rectangle((x1, y1, x2, y2), outline=_BOX_COLOUR)
        score = "" if finding.score is None else f" {finding.score:.2f}"
        draw.text((x1, max(0.0, y1 - 12)), _drawable(finding.name.meaning) + score, fill=_BOX_COLOUR)
    draw.text((2, grey.shape[0] - 12), NOTICE, fill=_BOX_COLOUR)
    return np.asarray(image, dtype=np.uint8)


def _drawable(text: str) -> str:
    return text.encode("latin-1", "replace").decode("latin-1")  # the built-in font has no more


def _group(header: Dataset, finding: ReportedFinding, number: int, reporter: Reporter) -> Any:
    """TID 1410, Planar ROI Measurements: where, what, how sure, by which algorithm."""
    from highdicom import sr
    from pydicom.uid import generate_uid

    x1, y1, x2, y2 = finding.box_xyxy
    outline = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]], float)
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=outline,
        source_image=sr.SourceImageForRegion(
            referenced_sop_class_uid=header.SOPClassUID, referenced_sop_instance_uid=header.SOPInstanceUID
        ),
    )
    score = [] if finding.score is None else [_confidence(finding.score)]
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        referenced_region=region,
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=f"finding-{number}"),
        finding_type=sr.CodedConcept(finding.name.value, finding.name.scheme, finding.name.meaning[:64]),
        measurements=score or None,
        algorithm_id=_algorithm(reporter),
    )


def _nothing_found(header: Dataset, reporter: Reporter) -> Any:
    """TID 1501 for the whole image, with "Finding: no finding": TID 1500 asks for at least one group."""
    from highdicom import sr
    from pydicom.uid import generate_uid

    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier="image"),
        finding_type=sr.CodedConcept("none", OWN_SCHEME, "no finding"),
        source_images=[
            sr.SourceImageForMeasurementGroup(
                referenced_sop_class_uid=header.SOPClassUID, referenced_sop_instance_uid=header.SOPInstanceUID
            )
        ],
        algorithm_id=_algorithm(reporter),
    )


def _algorithm(reporter: Reporter) -> Any:
    from highdicom import sr

    return sr.AlgorithmIdentification(
        name=f"{MANUFACTURER} {reporter.model}"[:64], version=reporter.model_digest
    )


def _confidence(score: float) -> Any:
    from highdicom import sr

    # No public code says "a detector's score", and "probability of cancer" would claim what it is not.
    return sr.Measurement(
        name=sr.CodedConcept("score", OWN_SCHEME, "Detector score"),
        value=round(score, 4),
        unit=sr.CodedConcept("1", "UCUM", "no units"),
    )


def _add_comments(root: Any, sentences: Sequence[str]) -> None:
    """Append text items below the root: viewers show them above the measurements (121106, DCM, Comment)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    for sentence in sentences:
        root.ContentSequence.append(
            sr.TextContentItem(
                name=codes.DCM.Comment,
                value=sentence,
                relationship_type=sr.RelationshipTypeValues.CONTAINS,
            )
        )


def _header(source: Path) -> Dataset:
    """The source's header, with empty values for what an SR must carry and the source lacks."""
    from consilia.imaging.dicom_file import parse, quiet_parser

    with quiet_parser():
        header = parse(source)
    needed = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows")
    missing = [keyword for keyword in needed if not header.get(keyword)]
    if missing:
        raise UnusableImageError(f"expected {', '.join(missing)} in the header, to refer to the image")
    for keyword in _TYPE_2:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def _procedure(header: Dataset) -> Any:
    """What was done, from (0008,1032) or else from the modality: DICOM's own codes need no other licence."""
    from highdicom import sr

    for item in header.get("ProcedureCodeSequence") or ():
        if item.get("CodeValue") and item.get("CodingSchemeDesignator") and item.get("CodeMeaning"):
            return sr.CodedConcept(
                str(item.CodeValue), str(item.CodingSchemeDesignator), str(item.CodeMeaning)[:64]
            )
    modality = str(header.Modality)
    meaning = "Computed Tomography" if modality == "CT" else modality
    return sr.CodedConcept(modality, "DCM", meaning)


def _orientation(header: Dataset) -> tuple[str, str]:
    """The patient's directions along a row and a column (0020,0020): the largest of each direction's cosines."""
    cosines = header.get("ImageOrientationPatient")
    if not cosines or len(cosines) != 6:
        return "L", "P"  # axial, as nearly all CT
    row, column = np.asarray(cosines[:3], float), np.asarray(cosines[3:], float)
    return _direction(row), _direction(column)


def _direction(cosines: NDArray[np.float64]) -> str:
    axis = int(np.abs(cosines).argmax())
    return ("LPH" if cosines[axis] >= 0 else "RAF")[axis]


def _device_uid(reporter: Reporter) -> str:
    """A UID below 2.25 for the model: the same model is the same device (PS3.5 B.2)."""
    return f"2.25.{int(reporter.model_digest[:32], 16)}"


def _with_charset(dataset: Dataset) -> Dataset:
    dataset.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names may be Chinese
    return dataset
