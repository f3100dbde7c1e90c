"""DICOM files for attacks on the reader: real and generated, of every encoding, and mutations of bytes and elements."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.imaging.ct_files import ct, enhanced_ct, real_ct
from tests.imaging.planted import NAME, NUMBER

DCMTK = {
    "big-endian": ("dcmconv", "+tb"),
    "implicit": ("dcmconv", "+ti"),
    "deflated": ("dcmconv", "+td"),
    "jpeg-8-bit": ("dcmcjpeg", "+eb"),
    "jpeg-12-bit": ("dcmcjpeg", "+ee"),
    "jpeg-lossless": ("dcmcjpeg", "+el"),
    "jpeg-lossless-sv1": ("dcmcjpeg", "+e1"),
    "jpeg-lossless-sv6": ("dcmcjpeg", "+el", "+sv", "6"),
    "jpeg-ls-near": ("dcmcjpls", "+en"),
}
"""By another implementation than the one that reads them."""
PYDICOM = {"jpeg-2000": JPEG2000Lossless, "jpeg-ls": JPEGLSLossless, "rle": RLELossless}
_SEEDS = ("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "liver_1frame.dcm", "reportsi.dcm", "test-SR.dcm")

_NUMBERS = (0, 1, -1, 2, 3, 8, 16, 32, 127, 255, 4096, 32767, 65535, 2**31 - 1, 2**32 - 1, 2**62)
_TEXTS = (
    "",
    "x",
    "NaN",
    "1e999",
    "-1",
    "0",
    "\\",
    "1\\2\\3",
    "1" * 70000,
    "\\" * 70000,
    "\udcff",
    f"{NAME} {NUMBER}",
)
_VRS = "AE AS AT CS DA DS DT FD FL IS LO OB OW PN SH SL SQ SS ST TM UI UL UN US UT OF OV SV UC".split()  # noqa: SIM905
_LAYOUT = [
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ImageType",
    "SOPClassUID",
    "Modality",
    "SharedFunctionalGroupsSequence",
    "ContentSequence",
    "PerFrameFunctionalGroupsSequence",
    "SegmentSequence",
    "SpecificCharacterSet",
    "PatientID",
    "SOPInstanceUID",
    "StudyDate",
]


def encoded(plain: Path, encoding: str) -> Path:
    """The same image in another transfer syntax, beside it."""
    path = plain.with_name(f"{encoding}.dcm")
    if encoding in DCMTK:
        program, *options = DCMTK[encoding]
        subprocess.run([program, *options, str(plain), str(path)], check=True, capture_output=True)
    else:
        header = pydicom.dcmread(plain)
        header.compress(PYDICOM[encoding], generate_instance_uid=False)
        header.save_as(path)
    return path


def small_ct(path: Path, size: int = 32, **changes: object) -> Path:
    """A corner of the real slice with a person in its header, 12 bits a pixel."""
    pixels = real_ct().pixel_array[40 : 40 + size, 40 : 40 + size].clip(0, 4095).astype(np.uint16)
    whole = {"BitsStored": 12, "HighBit": 11, "PatientName": NAME, "PatientID": f"{NAME}-{NUMBER}", **changes}
    return ct(path, pixels=pixels, **whole)


def corpus(folder: Path) -> list[Path]:
    """What mutations begin with: every encoding, an enhanced CT plain and compressed, and real files of pydicom's."""
    plain = small_ct(folder / "plain.dcm")
    files = [plain, *(encoded(plain, name) for name in PYDICOM)]
    files += [encoded(plain, name) for name in DCMTK if shutil.which(DCMTK[name][0])]
    enhanced = enhanced_ct(folder / "enhanced.dcm", frames=2)
    header = pydicom.dcmread(enhanced)
    header.compress(RLELossless)
    header.save_as(folder / "enhanced-rle.dcm")
    files += [enhanced, folder / "enhanced-rle.dcm"]
    for name in _SEEDS:
        files.append(folder / name)
        shutil.copy(str(get_testdata_file(name, download=False)), files[-1])
    return files


def mutate(seeds: list[bytes], drawn: random.Random) -> tuple[bytes, bool]:
    """One hostile file, and whether its pixels are still their own: elsewhere than there nobody may be found."""
    seed = drawn.choice(seeds)
    if drawn.random() < 0.5:
        return mutate_bytes(seed, seeds, drawn), False
    try:
        return mutate_elements(seed, drawn), True
    except Exception:  # noqa: BLE001 - the writer cannot write it
        return mutate_bytes(seed, seeds, drawn), False


# Bytes


def mutate_bytes(seed: bytes, seeds: list[bytes], drawn: random.Random) -> bytes:
    """Some bytes changed, numbers put in that overflow, pieces cut out, doubled, or taken from another file."""
    data = bytearray(seed)
    for _ in range(drawn.choice((1, 1, 2, 4, 16))):
        low, high = _region(data, drawn)
        drawn.choice(_BYTE_MUTATIONS)(data, drawn.randrange(low, high), drawn)
    if drawn.random() < 0.05:
        other = drawn.choice(seeds)
        cut = drawn.randrange(132, min(len(data), len(other)))
        data[cut:] = other[cut:]
    return bytes(data)


def _region(data: bytearray, drawn: random.Random) -> tuple[int, int]:
    """Anywhere; or where pixel data begin, which the decoders see first."""
    pixels = max(data.rfind(b"\xe0\x7f\x10\x00"), data.rfind(b"\x7f\xe0\x00\x10"))
    if pixels < 0 or drawn.random() < 0.5:
        return 0, max(1, len(data))
    return pixels, max(pixels + 1, min(len(data), pixels + drawn.choice((16, 64, 256, 4096))))


def _change(data: bytearray, at: int, drawn: random.Random) -> None:
    data[at : at + 1] = bytes([drawn.choice((0, 255, 127, 128, drawn.randrange(256)))])


def _flip(data: bytearray, at: int, drawn: random.Random) -> None:
    if at < len(data):
        data[at] ^= 1 << drawn.randrange(8)


def _number(data: bytearray, at: int, drawn: random.Random) -> None:
    size, order = drawn.choice((2, 4)), drawn.choice(("little", "big"))
    data[at : at + size] = (drawn.choice(_NUMBERS) % 256**size).to_bytes(size, order)


def _cut(data: bytearray, at: int, drawn: random.Random) -> None:
    del data[at : at + drawn.choice((1, 2, 8, 100, 10000))]


def _double(data: bytearray, at: int, drawn: random.Random) -> None:
    data[at:at] = data[at : at + drawn.choice((1, 2, 8, 100))] * drawn.choice((1, 2, 100))


_BYTE_MUTATIONS: tuple[Callable[[bytearray, int, random.Random], None], ...] = (
    _change,
    _flip,
    _number,
    _cut,
    _double,
)


# Elements


def mutate_elements(seed: bytes, drawn: random.Random) -> bytes:
    """Some elements removed, given another kind or value, moved into other places or deep into sequences."""
    header = pydicom.dcmread(io.BytesIO(seed))
    for _ in range(drawn.choice((1, 1, 2, 4))):
        place = drawn.choice(list(_datasets(header)))
        tags = [tag for tag in place.keys() if not tag.is_private]  # noqa: SIM118
        wanted = [tag for keyword in _LAYOUT if (tag := pydicom.tag.Tag(keyword)) in place]
        tags = wanted if wanted and drawn.random() < 0.7 else tags
        if tags:
            drawn.choice(_ELEMENT_MUTATIONS)(place, drawn.choice(tags), drawn)
    out, before = io.BytesIO(), config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        header.save_as(out)
    finally:
        config.settings.writing_validation_mode = before
    return out.getvalue()


def _datasets(header: Dataset, depth: int = 0) -> Iterator[Dataset]:
    yield header
    for element in header:
        if element.VR == "SQ" and depth < 4:
            for item in element.value:
                yield from _datasets(item, depth + 1)


def _remove(place: Dataset, tag: Any, _drawn: random.Random) -> None:
    del place[tag]


def _give_value(place: Dataset, tag: Any, drawn: random.Random) -> None:
    vr = place[tag].VR
    kind = "US" if vr in ("US", "SS", "UL", "SL", "IS") else vr
    value: Any = drawn.choice(_NUMBERS) if kind == "US" else drawn.choice(_TEXTS)
    if vr in ("OB", "OW", "UN"):
        value = drawn.randbytes(drawn.choice((0, 1, 2, 100)))
    if vr in ("US", "UL"):
        value %= 2 ** (16 if vr == "US" else 32)
    _put(place, tag, vr, str(value) if vr == "IS" else value)


def _give_kind(place: Dataset, tag: Any, drawn: random.Random) -> None:
    value, vr = place[tag].value, drawn.choice(_VRS)
    if vr in ("US", "UL", "SS", "SL", "SV"):
        value = drawn.choice((0, 1, 32, 127))
    elif vr in ("FL", "FD"):
        value = drawn.choice((0.0, 1.0, float("nan"), float("inf"), 1e300))
    elif vr == "SQ":
        value = [Dataset()]
    elif vr in ("OB", "OW", "UN", "OF", "OV"):
        value = str(value)[:64].encode("utf-8", "replace")
    else:
        value = str(value)
    _put(place, tag, vr, value)


def _nest(place: Dataset, tag: Any, drawn: random.Random) -> None:
    inner = place[tag]
    for _ in range(drawn.choice((1, 3, 6))):  # deeper, the writer takes twice as long for each
        item = Dataset()
        item.add(inner)
        inner = DataElement(0x00081140, "SQ", [item])
    place.add(inner)


def _repeat(place: Dataset, tag: Any, drawn: random.Random) -> None:
    element = place[tag]
    if element.VR == "SQ":
        element.value = list(element.value) * drawn.choice((0, 2, 50))
    else:
        _put(place, tag, element.VR, [element.value] * drawn.choice((2, 50)))


def _move(place: Dataset, tag: Any, drawn: random.Random) -> None:
    other = drawn.choice(list(place.keys()))
    _put(place, other, place[tag].VR, place[tag].value)


def _put(place: Dataset, tag: Any, vr: str, value: Any) -> None:
    place[tag] = DataElement(tag, vr, value, validation_mode=config.IGNORE)


_ELEMENT_MUTATIONS: tuple[Callable[[Dataset, Any, random.Random], None], ...] = (
    _remove, _give_value, _give_value, _give_kind, _nest, _repeat, _move,
)  # fmt: skip
