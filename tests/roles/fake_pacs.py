"""PACS of the kinds that Orthanc is not: they give few answers at a time, lose instances, or answer with anything."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.imaging.ct_files import ct

FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
CT, MR, CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in (2, 4, 7))
PARTS = 'multipart/related; type="application/dicom"; boundary="a boundary"'


def slices(folder: Path, series: str, count: int, study: str = "1.8.1") -> list[Any]:
    """CT slices of one series; their UIDs begin with the series' own."""
    names = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
    found = []
    for number in range(1, count + 1):
        image = pydicom.dcmread(ct(folder / f"{series}-{number}.dcm", **names))
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
        found.append(image)
    return found


def as_bytes(image: Any) -> bytes:
    """The file."""
    out = io.BytesIO()
    image.save_as(out)
    return out.getvalue()


def found(tag: str, *values: Any, **more: Any) -> dict[str, Any]:
    """One answer in DICOM JSON."""
    return {tag: {"vr": "UI", "Value": [*values]}, **more}


@dataclass
class Reply:
    """What WADO answers for one instance."""

    body: bytes
    status: int = 200
    kind: str = PARTS
    missing: int = 0
    """So many bytes fewer than Content-Length says."""

    @classmethod
    def of(cls, *parts: bytes, **how: Any) -> Reply:
        """A multipart message as of RFC 2046."""
        head = b"--a boundary\r\nContent-Type: application/dicom\r\n\r\n"
        return cls(b"".join(head + part + b"\r\n" for part in parts) + b"--a boundary--\r\n", **how)


@dataclass
class WebPacs:
    """A DICOMweb server: what each path below its root answers, `cap` answers of a search at a time."""

    searches: dict[str, Any] = field(default_factory=dict)
    """Such as `/studies/1.8/series`."""
    replies: dict[str, Reply] = field(default_factory=dict)
    """By SOPInstanceUID."""
    cap: int = 100
    knows_offset: bool = True
    url: str = ""

    def hold(self, image: Any) -> None:
        """Take a slice in, to be found and retrieved."""
        study, series, uid = image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID
        for path, item in (
            ("/studies", found("0020000D", study)),
            (f"/studies/{study}/series", found("0020000E", series, **found("00080060", "CT"))),
            (f"/studies/{study}/series/{series}/instances", found("00080018", uid)),
        ):
            if item not in self.searches.setdefault(path, []):
                self.searches[path].append(item)
        self.replies[uid] = Reply.of(as_bytes(image))

    def reply(self, target: str) -> Reply:
        """To a GET."""
        parts = urlsplit(target)
        if "/instances/" in parts.path:
            return self.replies[parts.path.rsplit("/", 1)[1]]
        items = self.searches.get(parts.path, [])
        if isinstance(items, bytes):
            return Reply(items, kind="application/dicom+json")
        if isinstance(items, list):
            offset = int(parse_qs(parts.query).get("offset", ["0"])[0]) if self.knows_offset else 0
            items = items[offset : offset + self.cap]
        return Reply(json.dumps(items).encode(), 200 if items else 204, "application/dicom+json")


@contextmanager
def serving(pacs: WebPacs) -> Iterator[WebPacs]:
    """Have it answer on a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply = pacs.reply(self.path)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.kind)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body[: len(reply.body) - reply.missing])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    pacs.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield pacs
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class DimsePacs:
    """A PACS by DIMSE, of one study: its series, and which instances are never sent."""

    images: list[Any]
    destination_port: int
    lost: frozenset[str] = frozenset()
    """SOPInstanceUIDs: counted as failed."""
    answers: list[Dataset] = field(default_factory=list)
    """To a search for series, besides those that it has."""
    models: tuple[str, ...] = (FIND, MOVE, GET)
    address: str = ""

    def find(self, event: Any) -> Iterator[tuple[int, Dataset]]:
        """Answer C-FIND on either level."""
        level = event.identifier.QueryRetrieveLevel
        series = dict.fromkeys(str(image.SeriesInstanceUID) for image in self.images)
        if level == "SERIES":
            for answer in self.answers:
                yield 0xFF00, answer
        for uid in series if level == "SERIES" else ("",):
            answer = Dataset()
            answer.QueryRetrieveLevel, answer.StudyInstanceUID = level, "1.8.1"
            if uid:
                answer.SeriesInstanceUID, answer.Modality = uid, "CT"
            yield 0xFF00, answer

    def get(self, event: Any) -> Iterator[Any]:
        """Send a series; pynetdicom counts what the other side does not take, we what we never send."""
        wanted = [
            image for image in self.images if image.SeriesInstanceUID == event.identifier.SeriesInstanceUID
        ]
        yield len(wanted)
        lost = []
        for image in wanted:
            if image.SOPInstanceUID in self.lost:
                lost.append(image.SOPInstanceUID)
            else:
                yield 0xFF00, image
        if lost:
            failed = Dataset()
            failed.FailedSOPInstanceUIDList = lost
            yield 0xB000, failed

    def move(self, event: Any) -> Iterator[Any]:
        """The same, to where we listen."""
        yield "127.0.0.1", self.destination_port
        yield from self.get(event)


@contextmanager
def listening(pacs: DimsePacs) -> Iterator[DimsePacs]:
    """Have it answer on a port of its own, as `PACS`."""
    from pynetdicom import AE, evt

    entity = AE("PACS")
    for model in pacs.models:
        entity.add_supported_context(model)
    for name in (CT, MR, CAPTURE):
        entity.add_supported_context(name, scp_role=True, scu_role=True)
        entity.add_requested_context(name)
    handlers: list[Any] = [
        (evt.EVT_C_FIND, pacs.find), (evt.EVT_C_GET, pacs.get), (evt.EVT_C_MOVE, pacs.move)
    ]  # fmt: skip
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    pacs.address = f"PACS@127.0.0.1:{server.server_address[1]}"
    try:
        yield pacs
    finally:
        server.shutdown()


def as_class(image: Any, name: str) -> Any:
    """The same pixels, said to be of another kind."""
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = name
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return image
