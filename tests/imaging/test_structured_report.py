"""Findings become a DICOM SR and a Secondary Capture that other programs read back."""

from __future__ import annotations

import io
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from consilia.errors import UnusableImageError
from consilia.imaging.ct_file import SliceIdentity, write_ct_file
from consilia.imaging.phantom import SITES
from consilia.imaging.structured_report import (
    NOTICE,
    CodedName,
    ReportedFinding,
    Reporter,
    annotated_capture,
    structured_report,
)

BLEED = ReportedFinding(
    (20.0, 30.0, 45.0, 50.0), CodedName("1", "99CONSILIA", "intracranial haemorrhage"), 0.91
)
MASS = ReportedFinding((70.5, 64.0, 88.0, 82.25), CodedName("2", "99CONSILIA", "intracranial mass"))
REPORTER = Reporter("faster-rcnn", "ab" * 32, ("The model passed 19 of 20 audits.",))


@pytest.fixture
def phantom(tmp_path):
    path = tmp_path / "slice.dcm"
    hu = np.full((256, 256), 30.0, np.float32)
    write_ct_file(path, hu, SITES[0].scanner, SliceIdentity("PH-1", 3, 40.0, 20.0))
    return path


def reopened(dataset):
    """What another program gets: the bytes of the file, parsed afresh."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def comments(report):
    """The sentences under (121106, DCM, Comment) at the root."""
    items = (item for item in report.ContentSequence if item.ValueType == "TEXT")
    return [item.TextValue for item in items if item.ConceptNameCodeSequence[0].CodeValue == "121106"]


@pytest.fixture(params=["phantom", "real"])
def source(request, phantom):
    # CT_small is a real slice with 179 private tags, without several attributes that an SR must carry
    return phantom if request.param == "phantom" else Path(get_testdata_file("CT_small.dcm", read=False))


def test_the_report_reads_back_with_its_boxes(source):
    origin = pydicom.dcmread(source)
    report = highdicom.sr.srread(reopened(structured_report(source, [BLEED, MASS], REPORTER)))
    groups = report.content.get_planar_roi_measurement_groups()
    outlines = [group.roi.value.tolist() for group in groups]
    # a closed polyline: five points, the last the first
    assert outlines == [
        [[20, 30], [45, 30], [45, 50], [20, 50], [20, 30]],
        [[70.5, 64], [88, 64], [88, 82.25], [70.5, 82.25], [70.5, 64]],
    ]
    assert [group.finding_type.meaning for group in groups] == [
        "intracranial haemorrhage",
        "intracranial mass",
    ]
    assert [[float(m.value) for m in group.get_measurements()] for group in groups] == [[0.91], []]
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0]
    assert evidence.StudyInstanceUID == report.StudyInstanceUID == origin.StudyInstanceUID
    referenced = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert referenced.ReferencedSOPInstanceUID == origin.SOPInstanceUID
    assert report.PatientID == origin.PatientID
    assert report.SeriesInstanceUID != origin.SeriesInstanceUID


def test_the_report_says_that_nobody_has_verified_it(phantom):
    report = pydicom.dcmread(reopened(structured_report(phantom, [BLEED], REPORTER)))
    assert (report.PreliminaryFlag, report.VerificationFlag) == ("PRELIMINARY", "UNVERIFIED")
    assert NOTICE in report.SeriesDescription
    assert comments(report) == [NOTICE, "The model passed 19 of 20 audits."]
    assert REPORTER.model_digest in report.to_json()


def test_no_finding_is_said_in_words(phantom):
    report = highdicom.sr.srread(reopened(structured_report(phantom, [], REPORTER)))
    assert not report.content.get_planar_roi_measurement_groups()
    group = report.content.get_image_measurement_groups()[0]
    assert group.finding_type.meaning == "no finding"


def test_the_capture_shows_the_boxes(source):
    capture = pydicom.dcmread(reopened(annotated_capture(source, [BLEED], REPORTER)))
    origin = pydicom.dcmread(source)
    assert capture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage
    assert (capture.Rows, capture.Columns, capture.StudyInstanceUID) == (
        origin.Rows,
        origin.Columns,
        origin.StudyInstanceUID,
    )
    pixels = capture.pixel_array.astype(int)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 0
    x1, y1, x2, y2 = (int(edge) for edge in BLEED.box_xyxy)
    assert coloured[y1, x1 : x2 + 1].all() and coloured[y2, x1 : x2 + 1].all()
    assert coloured[y1 : y2 + 1, x1].all() and coloured[y1 : y2 + 1, x2].all()
    assert not coloured[y1 + 1 : y2, x1 + 1 : x2].any()  # what is under the box stays to be seen
    assert NOTICE in capture.SeriesDescription and capture.BurnedInAnnotation == "YES"


def test_a_name_in_chinese_survives(phantom):
    bleed = ReportedFinding((1, 2, 3, 4), CodedName("1", "99CONSILIA", "颅内出血"), 0.5)
    report = highdicom.sr.srread(reopened(structured_report(phantom, [bleed], REPORTER)))
    assert report.content.get_planar_roi_measurement_groups()[0].finding_type.meaning == "颅内出血"
    annotated_capture(phantom, [bleed], REPORTER)  # the built-in font has no such letters, and must not fail


def test_a_patient_s_name_keeps_its_letters(phantom):
    header = pydicom.dcmread(phantom)
    header.SpecificCharacterSet = "GB18030"
    header.PatientName = "Wang^XiaoDong=王^小东"
    header.save_as(phantom)
    for made in (structured_report(phantom, [BLEED], REPORTER), annotated_capture(phantom, [], REPORTER)):
        back = pydicom.dcmread(reopened(made))
        assert str(back.PatientName) == "Wang^XiaoDong=王^小东"


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG", b"\0" * 128 + b"DICM"], ids=["empty", "png", "no header"]
)
def test_what_is_no_dicom_image_is_refused(tmp_path, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UnusableImageError, match="expected"):
        structured_report(file, [BLEED], REPORTER)
