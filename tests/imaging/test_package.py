"""A data set as one file: deterministic, canonical or refused, and nothing in it that names a person."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from consilia.errors import VerificationError
from consilia.imaging.archive import BLOCK_BYTES, finish, read_members, write_member
from consilia.imaging.dicom import read_ct
from consilia.imaging.package import member_digest, pack, unpack
from consilia.imaging.readers import read_dataset
from consilia.values import parse_json
from tests.imaging.image_files import SECRET, SECRET_ID, ct_file
from tests.roles.trading import PATIENT, write_images

SALT = b"\x07" * 32


def packed(folder: Path, salt: bytes = SALT) -> bytes:
    target = io.BytesIO()
    pack(read_dataset(folder), salt, target)
    return target.getvalue()


@pytest.fixture
def ct_folder(tmp_path: Path) -> Path:
    """Two CT slices with a person's name all over them, and boxes."""
    folder = tmp_path / "ct"
    for number in range(2):
        ct_file(folder / "images" / f"{SECRET_ID}-{number}.dcm", StudyID=SECRET_ID, InstitutionName=SECRET)
    names = [f"{SECRET_ID}-{number}.dcm" for number in range(2)]
    images = ",".join(f'{{"id":{i},"file_name":"{name}"}}' for i, name in enumerate(names))
    (folder / "annotations.json").write_text(
        f'{{"images":[{images}],"annotations":[{{"image_id":1,"category_id":3,"bbox":[1,2,30,40]}}],'
        '"categories":[{"id":3,"name":"bleeding"}]}'
    )
    return folder


def test_equal_data_give_equal_bytes_and_another_salt_other_names(tmp_path: Path) -> None:
    first = packed(write_images(tmp_path / "a"))
    assert first == packed(write_images(tmp_path / "b"))
    other = packed(tmp_path / "a", b"\x08" * 32)
    assert other != first and len(other) == len(first)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in")
    target = io.BytesIO()
    contents = pack(read_dataset(folder), SALT, target)
    target.seek(0)
    assert unpack(target, tmp_path / "out") == contents
    before, after = read_dataset(folder), read_dataset(tmp_path / "out")
    assert contents.images == len(after) == 4 and contents.patients == 2
    for old, new in zip(sorted(before.images, key=lambda image: image.image_id), after.images, strict=True):
        assert np.array_equal(old.pixels(), new.pixels())
        assert np.allclose(old.boxes_xyxy, new.boxes_xyxy, atol=1e-3)
    groups = [{image.patient for image in dataset.images} for dataset in (before, after)]
    assert len(groups[1]) == 2 and not groups[0] & groups[1]  # who belongs together, under other names


def test_a_ct_keeps_its_units_and_its_geometry_and_nothing_else(ct_folder: Path, tmp_path: Path) -> None:
    data = packed(ct_folder)
    for word in (*SECRET.split("^"), SECRET_ID, PATIENT, "19000101"):
        assert word.encode() not in data
    unpack(io.BytesIO(data), tmp_path / "out")
    before = read_dataset(ct_folder)
    after = read_dataset(tmp_path / "out")
    assert after.categories == ("bleeding",) and len(after) == 2
    old, new = read_ct(before.images[0].path), read_ct(after.images[0].path)
    assert np.abs(old.hu - new.hu).max() <= 0.5
    assert new.spacing_mm == old.spacing_mm
    assert not {old.sop_instance_uid, old.series_uid, old.study_uid} & {
        new.sop_instance_uid,
        new.series_uid,
        new.study_uid,
    }


def test_a_member_can_be_shown_alone(tmp_path: Path) -> None:
    """The owner gives away one image and its salt; the digest in the manifest says that it was in the set."""
    with tarfile.open(fileobj=io.BytesIO(packed(write_images(tmp_path / "in")))) as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        contents = {name: file.read() for name, file in files.items() if file}
    manifest = parse_json(contents["manifest.json"])
    for member in manifest["members"]:
        digest = member_digest(bytes.fromhex(member["salt"]), member["name"], contents[member["name"]])
        assert str(digest) == member["digest"]
    salts = {member["salt"] for member in manifest["members"]}
    assert len(salts) == len(manifest["members"]) and SALT.hex() not in str(manifest)


def archive(*members: tuple[str, bytes], end: bytes = bytes(2 * BLOCK_BYTES)) -> io.BytesIO:
    stream = io.BytesIO()
    for name, data in members:
        write_member(stream, name, data)
    stream.write(end)
    stream.seek(0)
    return stream


def with_tarinfo(**changes: object) -> io.BytesIO:
    """A valid tar whose one header says something else."""
    info = tarfile.TarInfo("annotations.json")
    info.size, info.mode = 2, 0o644
    for name, value in changes.items():
        setattr(info, name, value)
    body = (b"{}" + bytes(510)) if info.size == 2 else b""
    return io.BytesIO(info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(2 * BLOCK_BYTES))


NAMES = ["/etc/passwd", "../annotations.json", "images/../../x.png", "images/1.png", "images/000001.exe", ""]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_never_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(VerificationError):
        list(read_members(with_tarinfo(name=name)))


@pytest.mark.parametrize(
    "changes",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "manifest.json"},
        {"type": tarfile.DIRTYPE},
        {"mode": 0o777},
        {"mtime": 1},
        {"uid": 1000},
        {"uname": "root"},
        {"size": 8**11 - 1},
    ],
)
def test_only_the_canonical_header_is_read(changes: dict[str, object]) -> None:
    with pytest.raises(VerificationError):
        list(read_members(with_tarinfo(**changes)))


def test_only_whole_archives_are_read() -> None:
    good = archive(("annotations.json", b"{}"), ("manifest.json", b"x" * 600)).getvalue()
    assert [name for name, _ in read_members(io.BytesIO(good))] == ["annotations.json", "manifest.json"]
    padded = bytearray(good)
    padded[BLOCK_BYTES + 100] = 1  # in what fills up the first member's block
    for bad in (good[:-1], good[:700], good[:-BLOCK_BYTES], good + b"\0", bytes(padded), b""):
        with pytest.raises(VerificationError):
            list(read_members(io.BytesIO(bad)))
    twice = archive(("annotations.json", b"{}"), ("annotations.json", b"{}"))
    reverse = archive(("manifest.json", b"{}"), ("annotations.json", b"{}"))
    for bad_order in (twice, reverse):
        with pytest.raises(VerificationError):
            list(read_members(bad_order))


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    data = packed(write_images(tmp_path / "in", count=1))
    for at in range(0, len(data), 97):
        changed = bytearray(data)
        changed[at] ^= 0x40
        with pytest.raises(VerificationError):
            unpack(io.BytesIO(bytes(changed)), tmp_path / f"out-{at}")


def test_a_member_that_the_manifest_does_not_know_is_refused(tmp_path: Path) -> None:
    data = packed(write_images(tmp_path / "in", count=2))
    members = list(read_members(io.BytesIO(data)))
    stream = io.BytesIO()
    for name, content in [*members[:-1], ("images/000009.png", b"more"), members[-1]]:
        write_member(stream, name, content)
    finish(stream)
    stream.seek(0)
    with pytest.raises(VerificationError, match="other members"):
        unpack(stream, tmp_path / "out")
