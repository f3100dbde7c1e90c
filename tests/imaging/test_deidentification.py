"""De-identification: nobody is left, what belongs together stays together, and another key links nothing."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.datadict import keyword_for_tag
from pydicom.uid import UID

from consilia.imaging.confidentiality import table
from consilia.imaging.deidentification import Pseudonymiser, deidentify
from consilia.imaging.dicom import read_ct
from consilia.imaging.intake import clean_slices
from consilia.imaging.kept import KEPT, NEW_UIDS, SHIFTED_DATES
from tests.imaging.ct_files import ct, real_ct
from tests.imaging.planted import DAY, NAME, TOKENS, UID_ROOT, planted_ct

PSEUDONYMS = Pseudonymiser(b"k" * 32)


def cleaned(path: Path, pseudonyms: Pseudonymiser = PSEUDONYMS) -> tuple[pydicom.FileDataset, bytes]:
    [item] = list(clean_slices(path, pseudonyms))
    out = path.with_suffix(".clean")
    out.write_bytes(item.data)
    return pydicom.dcmread(out), item.data


def test_nobody_survives_in_the_file_although_planted_in_every_attribute(tmp_path: Path) -> None:
    planted_ct().save_as(tmp_path / "a.dcm")
    raw = (tmp_path / "a.dcm").read_bytes()
    assert all(token in raw for token in TOKENS[:-1])  # the search would find them
    clean, data = cleaned(tmp_path / "a.dcm")
    assert not [token for token in TOKENS if token in data]
    assert np.array_equal(clean.pixel_array, real_ct().pixel_array)


def test_every_row_of_the_table_is_obeyed(tmp_path: Path) -> None:
    planted_ct().save_as(tmp_path / "a.dcm")
    clean, _ = cleaned(tmp_path / "a.dcm")
    for row in table().values():
        if row.tag not in clean:
            continue
        value = clean[row.tag].value
        if row.keyword in NEW_UIDS:
            assert value.startswith("2.25.")
        elif row.keyword in SHIFTED_DATES:
            assert re.fullmatch("[0-9]{8}", value) and value != DAY
        elif row.keyword in ("PatientID", "PatientName"):
            assert str(value).startswith("patient-")
        else:
            # present and empty where the profile says Z, or of a closed set where the option says keep
            assert value in ("", None) or row.patient_characteristics == "K", row.keyword


def test_the_table_is_whole_and_says_what_the_standard_says() -> None:
    rows = {row.keyword: row.basic for row in table().values()}
    assert len(table()) == 652
    assert rows["PatientName"] == "Z" and rows["PatientBirthDate"] == "Z" and rows["PatientAge"] == "X"
    assert rows["SOPInstanceUID"] == "U" and rows["InstitutionName"] == "X/Z/D"
    assert all(row.keyword in ("", keyword_for_tag(row.tag)) for row in table().values())
    kept = {row.keyword for row in table().values() if row.patient_characteristics == "K"}
    assert {"PatientSex", "PatientAge", "PatientSize", "PatientWeight"} <= kept & set(KEPT)


def test_method_and_codes_say_what_was_done(tmp_path: Path) -> None:
    clean, _ = cleaned(ct(tmp_path / "a.dcm"))
    assert clean.PatientIdentityRemoved == "YES"
    assert "PS3.15" in clean.DeidentificationMethod
    codes = [
        (code.CodeValue, code.CodingSchemeDesignator) for code in clean.DeidentificationMethodCodeSequence
    ]
    assert codes == [("113100", "DCM"), ("113101", "DCM"), ("113107", "DCM"), ("113108", "DCM")]
    assert clean.LongitudinalTemporalInformationModified == "MODIFIED"


def test_no_sequence_but_our_own_no_private_attribute_and_no_unknown_one_is_left(tmp_path: Path) -> None:
    planted_ct().save_as(tmp_path / "a.dcm")
    clean, _ = cleaned(tmp_path / "a.dcm")
    assert [element.keyword for element in clean if element.VR == "SQ"] == [
        "DeidentificationMethodCodeSequence"
    ]
    assert not [element for element in clean if element.tag.is_private or not element.keyword]


def test_patient_characteristics_stay_and_great_ages_become_one(tmp_path: Path) -> None:
    path = ct(tmp_path / "a.dcm", PatientAge="101Y", PatientSex="F", PatientSize=1.71, PatientWeight=70)
    clean, _ = cleaned(path)
    assert (clean.PatientAge, clean.PatientSex) == ("090Y", "F")
    assert (clean.PatientSize, clean.PatientWeight) == (1.71, 70)


def test_uids_are_the_same_for_one_key_and_others_for_another(tmp_path: Path) -> None:
    first, second = ct(tmp_path / "a.dcm"), ct(tmp_path / "b.dcm")
    a, b = cleaned(first)[0], cleaned(second)[0]
    other = cleaned(first, Pseudonymiser(b"o" * 32))[0]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert a[keyword].value == b[keyword].value
        assert a[keyword].value != other[keyword].value
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert a.file_meta.MediaStorageSOPInstanceUID == a.SOPInstanceUID
    assert cleaned(first)[1] == cleaned(first)[1]


@given(st.text(min_size=1, max_size=64))
def test_new_uids_are_valid_and_differ(original: str) -> None:
    uid = PSEUDONYMS.uid(original)
    assert UID(uid).is_valid and len(uid) <= 64
    assert uid != PSEUDONYMS.uid(original + "0")


@given(
    st.dates(min_value=__import__("datetime").date(1911, 1, 1)),
    st.integers(0, 4000),
    st.text(min_size=1, max_size=9),
)
def test_intervals_of_a_patient_stay_and_no_date_does(day: object, later: int, patient: str) -> None:

    assert isinstance(day, date)
    if day.year > 9980:
        return
    shifted = [PSEUDONYMS.shift(f"{d:%Y%m%d}", patient) for d in (day, day + timedelta(days=later))]
    first, second = (date.fromisoformat(f"{s[:4]}-{s[4:6]}-{s[6:]}") for s in shifted if s)
    assert second - first == timedelta(days=later)
    assert timedelta(0) < day - first <= timedelta(days=3650)


@pytest.mark.parametrize(
    "day", ["", "2024", "20241301", "00000000", f"{NAME}", "2024-1-1", "20240101-20240102"]
)
def test_what_is_no_date_is_dropped(day: str) -> None:
    assert PSEUDONYMS.shift(day, "p") is None


def test_two_patients_are_shifted_differently() -> None:
    assert len({PSEUDONYMS.shift("20240101", f"p{i}") for i in range(50)}) > 40


def test_what_was_removed_is_counted_without_a_value() -> None:
    removed = deidentify(planted_ct(), PSEUDONYMS).removed
    text = "\n".join(removed)
    assert not [token for token in TOKENS if token.decode() in text]
    assert removed["private attributes"] >= 3
    assert removed["(0008,0080) InstitutionName: X/Z/D"] == 1
    assert removed["(0010,0010) PatientName: Z"] > 100  # in sequences, one and two levels deep
    assert UID_ROOT not in text


def test_comments_inside_compressed_pixels_do_not_survive(tmp_path: Path) -> None:
    header = real_ct()
    header.compress(pydicom.uid.JPEG2000Lossless)
    stream = bytearray(header.PixelData)
    at = stream.find(b"\xff\x52")  # before COD: a comment (ISO 15444-1 A.9.2) that names the patient
    comment = f"{NAME}!!".encode()
    stream[at:at] = b"\xff\x64" + (len(comment) + 4).to_bytes(2, "big") + b"\x00\x01" + comment
    frame = bytes(stream[stream.find(b"\xff\x4f\xff\x51") : stream.rfind(b"\xff\xd9") + 2])
    header.PixelData = pydicom.encaps.encapsulate([frame])
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.save_as(tmp_path / "a.dcm")
    assert NAME.encode() in (tmp_path / "a.dcm").read_bytes()
    clean, data = cleaned(tmp_path / "a.dcm")
    assert NAME.encode() not in data
    assert np.array_equal(clean.pixel_array, real_ct().pixel_array)


def test_overlays_in_the_unused_bits_of_the_pixels_do_not_survive(tmp_path: Path) -> None:
    pixels = np.full((64, 64), 1000, dtype=np.uint16)
    drawn = pixels.copy()
    drawn[10:20, 10:40] |= 0x8000
    path = ct(tmp_path / "a.dcm", pixels=drawn, BitsStored=12, HighBit=11)
    clean, _ = cleaned(path)
    assert (clean.pixel_array == 1000).all()


def test_the_cleaned_slice_is_read_as_the_original_was(tmp_path: Path) -> None:
    original, clean = ct(tmp_path / "a.dcm"), tmp_path / "b.dcm"
    clean.write_bytes(cleaned(original)[1])
    before, after = read_ct(original), read_ct(clean)
    assert np.array_equal(before.hu, after.hu)
    assert before.spacing_mm == after.spacing_mm
    assert before.orientation == after.orientation
    assert before.level_mm == pytest.approx(after.level_mm, abs=1e-4)
