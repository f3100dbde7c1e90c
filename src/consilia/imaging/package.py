"""A hospital's images and boxes as one deterministic, de-identified file, and back (docs/formats/dataset.md)."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from consilia.errors import VerificationError
from consilia.imaging.archive import finish, read_members, write_member
from consilia.imaging.cases import Dataset, LabelledImage
from consilia.imaging.plain_image import Pseudonyms, plain_image
from consilia.values import Digest, Json, canonical_json, parse_json

FORMAT = "consilia/dataset/v1"
ANNOTATIONS, MANIFEST = "annotations.json", "manifest.json"


@dataclass(frozen=True)
class Contents:
    """What is in a packed data set; the card repeats it, and whoever opens the package compares."""

    images: int
    images_with_boxes: int
    patients: int
    studies: int
    modality: str
    boxes_by_category: tuple[tuple[str, int], ...]
    """In the order of the labels."""
    members_digest: Digest
    """SHA-256 over the salted digests of all members but the manifest, in their order."""


def pack(dataset: Dataset, salt: bytes, target: BinaryIO) -> Contents:
    """Write a data set; the same images, boxes and salt give the same bytes.

    Args:
        salt: 32 random bytes that never leave the hospital: the pseudonyms hang on them.

    Raises:
        UnusableImageError: an image changed since the data set was read.
    """
    pseudonyms = Pseudonyms(salt)
    images = sorted(dataset.images, key=lambda image: image.image_id)
    names = [f"images/{i:06d}.{'png' if image.window is None else 'dcm'}" for i, image in enumerate(images)]
    listed: list[dict[str, Any]] = []
    annotations = _coco(dataset, images, names, pseudonyms)
    for name in [ANNOTATIONS, *names]:
        data = annotations if name == ANNOTATIONS else plain_image(images[len(listed) - 1], pseudonyms)[1]
        member_salt = pseudonyms.member_salt(name)
        digest = member_digest(member_salt, name, data)
        listed.append({"name": name, "salt": member_salt.hex(), "digest": str(digest)})
        write_member(target, name, data)
    write_member(target, MANIFEST, canonical_json({"format": FORMAT, "members": listed}))
    finish(target)
    return _contents(annotations, [Digest.from_hex(str(item["digest"])) for item in listed])


def unpack(source: BinaryIO, folder: Path) -> Contents:
    """Read a package into a new folder that `imaging.readers` understands, and check it against its manifest.

    Raises:
        VerificationError: not a package in canonical form, or a member is not the one that the manifest lists.
    """
    (folder / "images").mkdir(parents=True)
    digests: dict[str, bytes] = {}
    annotations = manifest = b""
    for name, data in read_members(source):
        if name == MANIFEST:
            manifest = data
            continue
        annotations = data if name == ANNOTATIONS else annotations
        digests[name] = hashlib.sha256(data).digest()
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return _contents(annotations, _check_manifest(manifest, digests))


def member_digest(salt: bytes, name: str, data: bytes) -> Digest:
    """What is registered of a member: its owner can show it alone, and nobody can guess it."""
    return _salted(salt, name, hashlib.sha256(data).digest())


def _salted(salt: bytes, name: str, content_digest: bytes) -> Digest:
    return Digest.of(b"consilia/dataset-member/v1\0" + salt + name.encode() + b"\0" + content_digest)


def _check_manifest(data: bytes, found: dict[str, bytes]) -> list[Digest]:
    try:
        manifest = parse_json(data)
        listed = [(str(m["name"]), bytes.fromhex(m["salt"]), str(m["digest"])) for m in manifest["members"]]
        canonical = data == canonical_json(manifest) and manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"expected a manifest of {FORMAT} at the end of a data set") from error
    if not canonical or [name for name, _, _ in listed] != list(found):
        raise VerificationError("a data set's manifest lists other members than are there")
    for name, salt, digest in listed:
        if str(_salted(salt, name, found[name])) != digest:
            raise VerificationError(f"{name} in a data set is not the one in its manifest")
    return [Digest.from_hex(digest) for _, _, digest in listed]


def _coco(dataset: Dataset, images: list[LabelledImage], names: list[str], pseudonyms: Pseudonyms) -> bytes:
    entries: list[Json] = []
    boxes: list[Json] = []
    for number, (image, name) in enumerate(zip(images, names, strict=True), start=1):
        entries.append(
            {
                "id": number,
                "file_name": name,
                "width": image.width,
                "height": image.height,
                "patient": pseudonyms.name("patient", image.patient),
                "study": pseudonyms.uid("study", image.study),
            }
        )
        for box, label in zip(image.boxes_xyxy.tolist(), image.labels.tolist(), strict=True):
            x1, y1, x2, y2 = (round(value, 3) for value in box)
            bbox = [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)]
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label, "bbox": bbox})
    categories: list[Json] = [
        {"id": label, "name": name} for label, name in enumerate(dataset.categories, start=1)
    ]
    return canonical_json({"images": entries, "annotations": boxes, "categories": categories})


def _contents(annotations: bytes, digests: list[Digest]) -> Contents:
    try:
        coco = parse_json(annotations)
        names = {item["id"]: str(item["name"]) for item in coco["categories"]}
        boxes = Counter(item["category_id"] for item in coco["annotations"])
        images = coco["images"]
        return Contents(
            images=len(images),
            images_with_boxes=len({item["image_id"] for item in coco["annotations"]}),
            patients=len({item["patient"] for item in images}),
            studies=len({item["study"] for item in images}),
            modality="CT" if any(str(item["file_name"]).endswith(".dcm") for item in images) else "image",
            boxes_by_category=tuple((names[label], boxes[label]) for label in sorted(names)),
            members_digest=Digest.of(b"consilia/dataset-members/v1\0" + b"".join(digests)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError("expected COCO annotations in a data set") from error
