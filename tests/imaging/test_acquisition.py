"""What is read of how an image was made, and what a header that lies or lacks it costs: nothing."""

from __future__ import annotations

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from consilia.imaging.acquisition import acquisition_of, plane_of
from consilia.imaging.cases import Acquisition


def header(**values):
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_a_real_header():
    found = acquisition_of(pydicom.dcmread(get_testdata_file("CT_small.dcm")))
    assert found == Acquisition("CT", "", "GE MEDICAL SYSTEMS", "RHAPSODE", "axial", 5.0, 0.0)


@pytest.mark.parametrize(
    ("cosines", "plane"),
    [
        ((1, 0, 0, 0, 1, 0), "axial"),
        ((1, 0, 0, 0, 0.966, -0.259), "axial"),  # a gantry tilted by 15 degrees
        ((1, 0, 0, 0, 0, -1), "coronal"),
        ((0, 1, 0, 0, 0, -1), "sagittal"),
        ((1, 0, 0, 0, 0.707, -0.707), "oblique"),
        (None, ""),
        ((1, 0, 0), ""),
        (("a",) * 6, ""),
    ],
)
def test_planes(cosines, plane):
    assert plane_of(cosines) == plane


@pytest.mark.parametrize(
    ("values", "years"),
    [
        ({"PatientAge": "045Y"}, 45.0),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientAge": "014D"}, 14 / 365.25),
        ({"PatientBirthDate": "19800615", "StudyDate": "20200615"}, 40.0),
        ({"PatientAge": "old", "PatientBirthDate": "19800615", "StudyDate": "20200615"}, 40.0),
        ({"PatientBirthDate": "19801315", "StudyDate": "20200615"}, None),
        ({"PatientBirthDate": "20200616", "StudyDate": "20200615"}, None),
        ({}, None),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_ages(values, years):
    assert acquisition_of(header(**values)).patient_age_years == pytest.approx(years, abs=0.01)


def test_nothing_known_is_nothing_said():
    assert acquisition_of(header()) == Acquisition()
