"""DICOM as it is: whatever a scanner, a PACS or an attacker makes of it is imported rightly or refused by name."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from consilia.errors import UnusableImageError
from consilia.imaging import decoding
from consilia.imaging.channels import with_neighbours
from consilia.imaging.deidentification import Pseudonymiser
from consilia.imaging.dicom import read_ct
from consilia.imaging.holdings import Holdings
from consilia.imaging.importing import Importer, Outcome
from consilia.imaging.intake import CleanSlice, clean_slices
from consilia.imaging.readers import read_dicom
from tests.imaging.bombs import BOMBS
from tests.imaging.ct_files import ct, enhanced_ct, real_ct
from tests.imaging.hostile_files import DCMTK, PYDICOM, corpus, encoded, small_ct
from tests.imaging.planted import NAME

ROOT = Path(__file__).parents[2]
PSEUDONYMS = Pseudonymiser(b"k" * 32)
FUZZ_SECONDS = float(os.environ.get("CONSILIA_FUZZ_SECONDS", "0"))
FUZZ_SEED = int(os.environ.get("CONSILIA_FUZZ_SEED", "1"))


def imported(path: Path) -> list[CleanSlice]:
    return list(clean_slices(path, PSEUDONYMS))


def imported_hu(path: Path) -> NDArray[np.float32]:
    """What training sees of the only slice of a file after its import."""
    [item] = imported(path)
    copy = path.with_suffix(".clean")
    copy.write_bytes(item.data)
    return read_ct(copy).hu


def refusal(path: Path) -> str:
    """Why neither the reader nor the import takes a file; they say the same."""
    with pytest.raises(UnusableImageError) as by_import:
        imported(path)
    with pytest.raises(UnusableImageError) as by_reader:
        read_ct(path)
    assert str(by_reader.value) == str(by_import.value)
    assert NAME not in str(by_import.value) and path.name not in str(by_import.value)
    return str(by_import.value)


# Compressed, big-endian


def require_dcmtk(encoding: str) -> None:
    if encoding in DCMTK and not shutil.which(DCMTK[encoding][0]):
        if os.environ.get("CI"):
            pytest.fail("CI must read what another implementation wrote: apt install dcmtk")
        pytest.skip("NOT READ WHAT ANOTHER IMPLEMENTATION WROTE: dcmtk missing: apt install dcmtk")


LOSSY_HU = {"jpeg-ls-near": 2.0, "jpeg-8-bit": 60.0}
"""How far a pixel may be from what it was; 8 bits cannot hold more than 256 of about 2000 values."""


@pytest.mark.parametrize("encoding", [name for name in (*PYDICOM, *DCMTK) if name != "jpeg-12-bit"])
def test_every_transfer_syntax_gives_the_same_hounsfield_units(tmp_path: Path, encoding: str) -> None:
    require_dcmtk(encoding)
    plain = small_ct(tmp_path / "plain.dcm", size=64)
    other = encoded(plain, encoding)
    syntax = pydicom.dcmread(other).file_meta.TransferSyntaxUID
    assert syntax != pydicom.dcmread(plain).file_meta.TransferSyntaxUID
    before, after = read_ct(plain).hu, read_ct(other).hu
    assert np.abs(after - before).max() <= LOSSY_HU.get(encoding, 0.0)
    assert np.array_equal(imported_hu(other), after)


def test_signed_pixels_come_through_every_compression(tmp_path: Path) -> None:
    pixels = (real_ct().pixel_array[:32, :32].astype(np.int16) - 1024).tobytes()
    plain = ct(
        tmp_path / "p.dcm", Rows=32, Columns=32, PixelData=pixels, RescaleIntercept=0, PixelPaddingValue=None
    )
    for encoding in PYDICOM:
        assert np.array_equal(imported_hu(encoded(plain, encoding)), read_ct(plain).hu), encoding
    assert read_ct(plain).hu.min() < 0


HTJ2K = (
    "/0//UQApQAAAAAAQAAAAEAAAAAAAAAAAAAAAEAAAABAAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQ"
    "kJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIAAAf+TwAAma/wFB3QAAMAAE0AAEwBI/AKHdADa/gIHdADAABPAABOAIkT8"
    "AgJ0AGzZ/gBjVADAABUwAAVQDAwMDKpxgnUAsjKZ7MAhAey2AMAAK6AAFoi2bdu2bdvnynp6cIJ4AE7HcRzHcf79hCB79hCB7LoA/9k="
)
"""16 x 16 pixels, 40 x row + 60 x column, by OpenJPH: nothing that the project uses can write it."""


@pytest.mark.parametrize("number", [201, 202, 203])
def test_jpeg_2000_of_high_throughput_is_read(tmp_path: Path, number: int) -> None:
    rows, columns = np.mgrid[:16, :16]
    path = ct(tmp_path / "a.dcm", pixels=(40 * rows + 60 * columns).astype(np.uint16))
    expected, header = read_ct(path).hu, pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.1.2.4.{number}")
    header.PixelData = encapsulate([base64.b64decode(HTJ2K)])
    header["PixelData"].VR = "OB"
    header.save_as(path)
    assert np.array_equal(imported_hu(path), expected)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "another"),
        ("1.2.840.10008.1.2.4.100", "MPEG2"),
        ("1.2.276.0.4711.815", "another"),
    ],
)
def test_a_transfer_syntax_that_is_not_decoded_is_refused_by_name(
    tmp_path: Path, syntax: str, name: str
) -> None:
    path = encoded(small_ct(tmp_path / "plain.dcm"), "rle")
    content, number = path.read_bytes(), syntax.encode() + b"\0" * (len(syntax) % 2)
    at = content.index(b"\x02\x00\x10\x00UI")
    end = at + 8 + int.from_bytes(content[at + 6 : at + 8], "little")
    path.write_bytes(content[: at + 6] + len(number).to_bytes(2, "little") + number + content[end:])
    assert name in refusal(path) and "have it sent uncompressed" in refusal(path)
    assert "4711" not in refusal(path)


def test_jpeg_of_12_bits_is_refused_by_name(tmp_path: Path) -> None:
    require_dcmtk("jpeg-12-bit")
    assert "JPEG Extended" in refusal(encoded(small_ct(tmp_path / "plain.dcm"), "jpeg-12-bit"))


def test_a_decoder_that_breaks_costs_its_file_and_the_next_one_is_decoded(tmp_path: Path) -> None:
    require_dcmtk("jpeg-lossless-sv1")
    good = encoded(small_ct(tmp_path / "plain.dcm"), "jpeg-lossless-sv1")
    content = good.read_bytes()
    at = content.index(b"\xff\xda", content.index(b"\xff\xd8\xff"))
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(content[:at] + b"\0\0" + content[at + 2 :])  # GDCM gives up with abort()
    expected = read_ct(good).hu
    before = decoding._PROCESS._process
    assert "decoder" in refusal(bad) or "damaged" in refusal(bad)
    assert before is not None and before.pid != os.getpid()
    assert np.array_equal(read_ct(good).hu, expected)


def test_a_decoder_that_is_killed_is_started_again(tmp_path: Path) -> None:
    good = encoded(small_ct(tmp_path / "plain.dcm"), "rle")
    expected = read_ct(good).hu
    process = decoding._PROCESS._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(UnusableImageError, match="the decoder broke"):
        read_ct(good)
    assert np.array_equal(read_ct(good).hu, expected)


# Multi-frame


def compressed(path: Path) -> Path:
    header = pydicom.dcmread(path)
    header.compress(RLELossless, generate_instance_uid=False)
    header.save_as(path.with_suffix(".rle"))
    return path.with_suffix(".rle")


def test_frames_become_slices_compressed_or_not(tmp_path: Path) -> None:
    plain = enhanced_ct(tmp_path / "e.dcm", frames=3)
    first, second = imported(plain), imported(compressed(plain))
    assert [item.data for item in first] == [item.data for item in second]
    assert len({item.place.sop_instance_uid for item in first}) == 3


def test_what_is_removed_is_counted_once_a_frame(tmp_path: Path) -> None:
    path = enhanced_ct(tmp_path / "e.dcm", frames=40)
    header = pydicom.dcmread(path)
    for item in header.PerFrameFunctionalGroupsSequence:
        item.PatientName = NAME
    header.PatientName = NAME
    header.save_as(path)
    removed = sum((item.removed["(0010,0010) PatientName: Z"] for item in imported(path)), 0)
    assert removed == 40  # not 40 times 40: the time would grow like that as well


def changed(path: Path, **changes: object) -> Path:
    header = pydicom.dcmread(path)
    for keyword, value in changes.items():
        setattr(header, keyword, value)
    header.save_as(path)
    return path


def test_frames_that_do_not_add_up_are_refused_by_name(tmp_path: Path) -> None:
    more = changed(enhanced_ct(tmp_path / "a.dcm", frames=3), NumberOfFrames=4)
    fewer = changed(enhanced_ct(tmp_path / "b.dcm", frames=3), NumberOfFrames=2)
    rle = changed(compressed(enhanced_ct(tmp_path / "c.dcm", frames=3)), NumberOfFrames=2)
    nowhere = changed(enhanced_ct(tmp_path / "d.dcm", frames=3), PerFrameFunctionalGroupsSequence=[Dataset()])
    plain = small_ct(tmp_path / "e.dcm")
    many = changed(plain, NumberOfFrames=2, PixelData=2 * pydicom.dcmread(plain).PixelData)
    for path, reason in (
        (more, "match the header"),
        (fewer, "match the header"),
        (rle, "2 compressed frames"),
        (nowhere, "functional groups"),
        (many, "one frame in CT Image Storage"),
    ):
        with pytest.raises(UnusableImageError, match=reason):
            imported(path)


# Missing tags, wrong VR


def names(text: str, keyword: str) -> bool:
    """Whether a reason names an attribute, by keyword or by tag; a range of tags names all in it."""
    tag = pydicom.tag.Tag(keyword)
    if keyword in text or f"({tag.group:04X},{tag.element:04X})" in text:
        return True
    ranges = re.findall(r"\(([0-9A-F]{4}),([0-9A-F]{4})-([0-9A-F]{4})\)", text)
    return any(
        int(group, 16) == tag.group and int(low, 16) <= tag.element <= int(high, 16)
        for group, low, high in ranges
    )


def test_a_missing_attribute_changes_no_pixel_or_is_named(tmp_path: Path) -> None:
    plain = small_ct(tmp_path / "plain.dcm")
    expected, refused = imported(plain)[0].data, set()
    stored = pydicom.dcmread(plain).PixelData
    for element in pydicom.dcmread(plain):
        if element.tag.is_private:
            continue
        header = pydicom.dcmread(plain)
        del header[element.tag]
        header.save_as(tmp_path / "without.dcm")
        try:
            [item] = imported(tmp_path / "without.dcm")
        except UnusableImageError as error:
            assert names(str(error), element.keyword) or element.keyword in ("Modality", "SOPClassUID"), str(
                error
            )
            refused.add(element.keyword)
        else:
            assert item.data.endswith(stored) and len(item.data) <= len(expected), element.keyword
    needed = (
        "PatientID StudyInstanceUID SeriesInstanceUID SOPInstanceUID SOPClassUID Modality Rows Columns BitsAllocated "
        "BitsStored PixelRepresentation SamplesPerPixel PhotometricInterpretation RescaleSlope RescaleIntercept "
        "PixelData"
    )
    assert refused == set(needed.split())


READ = (
    "ImageType SOPClassUID SOPInstanceUID StudyDate Modality PatientID PatientAge SliceThickness StudyInstanceUID "
    "SeriesInstanceUID InstanceNumber ImagePositionPatient ImageOrientationPatient SamplesPerPixel Rows Columns "
    "PhotometricInterpretation PixelSpacing BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue "
    "RescaleIntercept RescaleSlope NumberOfFrames"
)
KINDS = "LO DS IS US FD PN UI DA"


def test_a_wrong_vr_changes_no_hounsfield_unit_or_is_named(tmp_path: Path) -> None:
    pixels = real_ct().pixel_array[:32, :32].copy()
    pixels[0, :4] = -2000
    plain = ct(tmp_path / "p.dcm", Rows=32, Columns=32, PixelData=pixels.tobytes(), NumberOfFrames=1)
    expected, content, read = read_ct(plain), plain.read_bytes(), 0
    nameless: list[str] = []
    assert (expected.hu[0, :4] == -1024).all()
    for keyword in READ.split():
        tag = pydicom.tag.Tag(keyword)
        at = content.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"), 300)
        for kind in KINDS.split():
            path = tmp_path / "wrong.dcm"
            path.write_bytes(content[: at + 4] + kind.encode() + content[at + 6 :])
            try:
                found, after = read_ct(path), imported_hu(path)
            except UnusableImageError as error:
                if not names(str(error), keyword) and not (
                    "claims" in str(error) and keyword == "NumberOfFrames"
                ):
                    nameless.append(f"{keyword} as {kind}: {error}")
                continue
            read += 1
            assert np.array_equal(found.hu, expected.hu) and np.array_equal(after, expected.hu), (
                keyword,
                kind,
            )
            assert found.orientation in ((), expected.orientation), (keyword, kind)
            assert found.spacing_mm in (None, expected.spacing_mm), (keyword, kind)
    assert not nameless
    assert read > 60


def test_padding_that_was_written_with_the_other_sign_is_air_all_the_same(tmp_path: Path) -> None:
    pixels = real_ct().pixel_array[:32, :32].copy()
    pixels[:4] = -2000
    header = pydicom.dcmread(ct(tmp_path / "p.dcm", Rows=32, Columns=32, PixelData=pixels.tobytes()))
    header[0x00280120] = pydicom.DataElement(0x00280120, "US", 63536)
    header.save_as(tmp_path / "p.dcm")
    assert (read_ct(tmp_path / "p.dcm").hu[:4] == -1024).all()
    assert (imported_hu(tmp_path / "p.dcm")[:4] == -1024).all()


# Wrong rescale, geometry that cannot be


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "no slope": ({"RescaleSlope": None}, "0028,1052-1053"),
    "no intercept": ({"RescaleIntercept": None}, "0028,1052-1053"),
    "slope of zero": ({"RescaleSlope": 0}, "0028,1052-1053"),
    "two slopes": ({"RescaleSlope": [1, 2]}, "0028,1052-1053"),
    "slope of a million": ({"RescaleSlope": 1e6}, "0028,1052-1053"),
    "air became water": ({"RescaleIntercept": 0}, "0028,1052-1053"),
    "far intercept": ({"RescaleIntercept": -90000}, "0028,1052-1053"),
    "upside down": ({"RescaleSlope": -100}, "0028,1052-1053"),
    "other unit": ({"RescaleType": "OD"}, "0028,1054"),
    "bits beyond": ({"BitsStored": 17}, "0028,0100-0101"),
    "no bits": ({"BitsAllocated": 0}, "0028,0100-0101"),
    "high bit": ({"HighBit": 15}, "0028,0102"),
    "sign": ({"PixelRepresentation": 2}, "0028,0103"),
    "half the rows": ({"Rows": 64}, "match the header"),
    "half the columns": ({"Columns": 64}, "match the header"),
    "eight bits": ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, "match the header"),
    "pixels of a metre": ({"PixelSpacing": [1000, 1000]}, "0028,0030"),
    "pixels of nothing": ({"PixelSpacing": [0, 0]}, "0028,0030"),
    "no two directions": ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "0020,0037"),
    "no direction": ({"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}, "0020,0037"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_contradicts_itself_is_refused_by_name(tmp_path: Path, name: str) -> None:
    changes, reason = WRONG[name]
    path = small_ct(tmp_path / "a.dcm", size=128)
    read_ct(path)
    header = pydicom.dcmread(path)
    for keyword, value in changes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    header.save_as(path)
    assert reason in refusal(path)


# Inconsistent series, gantry tilt


def tilted(folder: Path, degrees: float, levels: int = 4) -> list[Path]:
    """A head CT with a tilted gantry: the table moves along z, and the slices lean."""
    angle = np.deg2rad(degrees)
    cosines = [1, 0, 0, 0, float(np.cos(angle)), float(-np.sin(angle))]
    return [
        small_ct(
            folder / f"{(7 * number) % levels}.dcm",  # files are not in the order of the slices
            ImageOrientationPatient=[round(value, 6) for value in cosines],
            ImagePositionPatient=[0, 0, 5 * number],
            GantryDetectorTilt=degrees,
            SeriesInstanceUID="1.2.3.4",
        )
        for number in range(levels)
    ]


@pytest.mark.parametrize("degrees", [-25.0, 0.0, 18.5])
def test_a_tilted_gantry_keeps_order_distance_plane_and_pixels(tmp_path: Path, degrees: float) -> None:
    paths = tilted(tmp_path / "source", degrees)
    holdings = Holdings(tmp_path / "held")
    importer = Importer(holdings, PSEUDONYMS)
    assert {importer.take(path) for path in paths} == {Outcome.HELD}
    held = read_dicom(holdings.root / "dicom")
    levels = [image.level_mm for image in held.images]
    assert np.diff(levels) == pytest.approx([5 * np.cos(np.deg2rad(degrees))] * 3, abs=1e-4)
    assert {image.acquisition.plane for image in held.images} == {"axial"}
    tilts = {float(pydicom.dcmread(image.path).GantryDetectorTilt) for image in held.images}
    assert tilts == {degrees}
    beside = [
        tuple(held_at(held, path) for path in image.neighbours or ())
        for image in with_neighbours(held).images
    ]
    assert beside == [(0, 1), (0, 2), (1, 3), (2, 3)]
    originals = [PSEUDONYMS.uid(pydicom.dcmread(path).SOPInstanceUID) for path in paths]
    assert [image.image_id for image in held.images] == originals


def held_at(held: Any, path: Path) -> int:
    return [image.path for image in held.images].index(path)


def test_a_series_of_two_patients_or_two_geometries_is_not_trained_on(tmp_path: Path) -> None:
    holdings = Holdings(tmp_path / "held")
    importer = Importer(holdings, PSEUDONYMS)
    for name, changes in {
        "a": {"PatientID": "1", "SeriesInstanceUID": "1.2.1"},
        "b": {"PatientID": "2", "SeriesInstanceUID": "1.2.1"},
        "c": {"SeriesInstanceUID": "1.2.2"},
        "d": {"SeriesInstanceUID": "1.2.2"},
        "e": {"SeriesInstanceUID": "1.2.2", "PixelSpacing": [0.5, 0.5]},
        "f": {"SeriesInstanceUID": "1.2.2", "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]},
    }.items():
        importer.take(small_ct(tmp_path / f"{name}.dcm", **changes))
    held = read_dicom(holdings.root / "dicom")
    assert len(held) == 2
    reasons = sorted(item.reason for item in held.skipped)
    assert [reason.split(",")[0] for reason in reasons] == [
        "expected matrix",
        "expected matrix",
        "expected one patient and study a series (0020",
        "expected one patient and study a series (0020",
    ]


def test_another_image_under_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    importer = Importer(Holdings(tmp_path / "held"), PSEUDONYMS)
    first = small_ct(tmp_path / "a.dcm")
    uid = str(pydicom.dcmread(first).SOPInstanceUID)
    other = small_ct(tmp_path / "b.dcm", RescaleIntercept=-1000)
    header = pydicom.dcmread(other)
    header.SOPInstanceUID = uid
    header.save_as(other)
    shutil.copy(first, tmp_path / "c.dcm")
    outcomes = [importer.take(path) for path in (first, other, tmp_path / "c.dcm")]
    assert outcomes == [Outcome.HELD, Outcome.REFUSED, Outcome.KNOWN]
    [reason] = importer.summary.refused
    assert "(0008,0018) once" in reason and uid not in reason


# Absurd sizes, bombs, fuzz: in a process with limits


def hostile_reader(folder: Path, *options: str) -> Any:
    """What a reader with limits on memory and time says; it must end by itself."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.imaging.hostile_reader", str(folder), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    number = folder / "work" / "number"
    case = number.read_text() if number.is_file() else "-"
    assert done.returncode == 0, f"ended with {done.returncode} at case {case}: {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_bombs_are_refused_by_name_within_limits(tmp_path: Path) -> None:
    for name, (make, _) in BOMBS.items():
        make(tmp_path / f"{name}.dcm")
    found = hostile_reader(tmp_path, "--as-they-are", "--seconds", "60")
    for name, (_, reason) in BOMBS.items():
        assert re.search(reason, found["outcomes"][name]), (name, found["outcomes"][name])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_mutated_files_are_read_or_refused_within_limits(tmp_path: Path) -> None:
    corpus(tmp_path)
    options = ["--seed", str(FUZZ_SEED), "--seconds", str(FUZZ_SECONDS or 60)]
    found = hostile_reader(tmp_path, *options, *([] if FUZZ_SECONDS else ["--cases", "250"]))
    print(json.dumps(found, indent=1))  # noqa: T201 - a long run is for somebody who looks
    outcomes = found["outcomes"]
    assert len(outcomes) > 20 and outcomes["read"] > 100  # it reached deep, and not one check alone
