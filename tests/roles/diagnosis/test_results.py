"""An answer goes back to a real PACS as objects of the study it was asked for."""

from __future__ import annotations

import json
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient

from consilia.errors import InputError
from consilia.imaging.ct_file import SliceIdentity, write_ct_file
from consilia.imaging.phantom import SITES
from consilia.protocols.task_spec import parse_toml
from consilia.roles.diagnosis.results import results_of
from consilia.roles.dicomweb import DicomWeb, send
from tests.consortium import spec_toml
from tests.orthanc import Orthanc, require_orthanc
from tests.roles.asking import LESION, Clinic, Seer, wrong_half

FINDINGS = f"""
[[findings]]
code = {LESION}
category = "lesion"
coding = {{ scheme = "RADLEX", value = "RID5", meaning = "lesion" }}
"""
SPEC = parse_toml(spec_toml(4) + FINDINGS)


@pytest.fixture
def slice_file(tmp_path):
    path = tmp_path / "slice.dcm"
    write_ct_file(
        path, np.full((256, 256), 30, np.float32), SITES[0].scanner, SliceIdentity("PH-1", 1, 0.0, 5.0)
    )
    return path


def answered(town, slice_file, seer=None):
    clinic = Clinic(town, seer)
    query_id = clinic.ask()
    opinion = clinic.run(query_id)
    state = clinic.hospital.party.state
    sources = [("the patient", str(slice_file), (0.5, 0.5))]
    state.remember(f"consult/sources/{query_id}", json.dumps(sources))
    return opinion, state


def test_a_real_pacs_takes_them_and_gives_them_back(three, slice_file, tmp_path):
    require_orthanc()
    opinion, state = answered(three, slice_file)
    made = results_of(opinion, SPEC, state)
    (tmp_path / "pacs").mkdir()
    with Orthanc(tmp_path / "pacs") as pacs:
        pacs.store(slice_file)
        send(DicomWeb(pacs.dicomweb_url), made)
        assert (pacs.count("studies"), pacs.count("series")) == (1, 3)  # in the study it was asked for
        web = DICOMwebClient(pacs.dicomweb_url)
        report = made[0]
        back = web.retrieve_instance(report.StudyInstanceUID, report.SeriesInstanceUID, report.SOPInstanceUID)
    back.save_as(tmp_path / "back.dcm", enforce_file_format=True)
    (group,) = highdicom.sr.srread(tmp_path / "back.dcm").content.get_planar_roi_measurement_groups()
    (_, diagnosis) = opinion.diagnoses[0]
    x1, y1, x2, y2 = (2.0 * edge for edge in diagnosis.findings[0].box_xyxy)  # canonical is half the size
    assert group.roi.value.tolist() == [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
    assert (group.finding_type.value, group.finding_type.scheme_designator) == ("RID5", "RADLEX")
    assert str(opinion.query.offer.model_digest) in back.to_json()
    assert back.StudyInstanceUID == pydicom.dcmread(slice_file).StudyInstanceUID


def test_error_is_never_sent(three, slice_file):
    opinion, state = answered(three, slice_file, Seer(wrong_half))
    with pytest.raises(InputError, match="there is none"):
        results_of(opinion, SPEC, state)


def test_a_file_that_is_gone_is_said(three, slice_file):
    opinion, state = answered(three, slice_file)
    slice_file.unlink()
    with pytest.raises(InputError, match="put it back"):
        results_of(opinion, SPEC, state)


def test_a_slice_that_names_no_study_has_no_place_in_a_pacs(three, slice_file):
    opinion, state = answered(three, slice_file)
    header = pydicom.dcmread(slice_file)
    del header.StudyInstanceUID
    header.save_as(slice_file)
    with pytest.raises(InputError, match="with its UIDs"):
        results_of(opinion, SPEC, state)
    ((image, diagnosis),) = opinion.diagnoses
    other = slice_file.with_name("other.dcm")
    write_ct_file(
        other, np.full((256, 256), 30, np.float32), SITES[0].scanner, SliceIdentity("PH-2", 1, 0.0, 5.0)
    )
    sources = [("the patient", str(slice_file), (0.5, 0.5)), ("another", str(other), (0.5, 0.5))]
    state.remember(f"consult/sources/{opinion.query.query_id}", json.dumps(sources))
    both = replace(opinion, diagnoses=((image, diagnosis), (replace(image, name="another"), diagnosis)))
    assert len(results_of(both, SPEC, state)) == 2  # the other one's report and capture
