"""Images from a hospital's PACS over DICOMweb (QIDO-RS, WADO-RS), and results to it (STOW-RS); PS3.18.

A server may answer anything, and answers with identifiers: no text of it is passed on, an instance is parsed
nowhere but where files are (`consilia.imaging.dicom_file`), and what cannot be used costs itself alone.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from consilia.errors import InputError, PacsError, PacsUnreachableError, UnusableImageError
from consilia.imaging.dicom_file import MAX_FILE_BYTES, TOO_LARGE
from consilia.imaging.importing import Importer
from consilia.roles.pacs import MODALITIES, NO_UID, Wanted, is_uid, quiet_libraries

_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"
_MOST_ANSWERS = 1_000_000
"""To one search, in pieces as small as the server likes."""
_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""As it is stored, not transcoded."""
_NO_ADDRESS = "expected a DICOMweb address, such as https://pacs:8443/dicom-web"
_NO_ANSWER = "expected DICOM from the DICOMweb server, it answers with something else: check the address"
_TIMEOUT_SECONDS = 20
_BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 504)
_NOT_FOR_US = (401, 403, 407, *_BUSY)
"""What is said of one instance and holds for all."""
_ENVELOPE_BYTES = 65_536
"""What a multipart message may have around its part."""


@dataclass(frozen=True)
class DicomWeb:
    """Where QIDO and WADO begin, and what lets us in."""

    url: str
    token: str = ""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise InputError(_NO_ADDRESS)
        if not re.fullmatch("[!-~]*", self.token):
            raise InputError("expected a bearer token of one line without spaces")


def fetch(server: DicomWeb, wanted: Wanted, importer: Importer, folder: Path) -> Iterator[Path]:
    """The instances of studies that the importer does not know, one file each; it counts what does not come.

    Raises:
        PacsError: the server refuses, or what it finds is not DICOM.
        PacsUnreachableError: nobody answers.
    """
    session, root = _session(server), f"{server.url.rstrip('/')}/studies"
    for study, series in dict.fromkeys(_wanted_series(session, root, wanted, importer)):
        instances = f"{root}/{study}/series/{series}/instances"
        for uid in dict.fromkeys(_uids(_search(session, instances), _INSTANCE, importer)):
            if importer.recognise(series, uid):
                continue
            try:
                data = _retrieve(session, f"{instances}/{uid}")
            except UnusableImageError as error:
                importer.refuse(str(error))
                continue
            if data is None:
                importer.summary.not_delivered += 1
                continue
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".dcm", delete=False) as file:
                file.write(data)
            yield Path(file.name)


def send(server: DicomWeb, instances: Sequence[Any]) -> None:
    """Store results, such as a structured report, in the PACS (STOW-RS, PS3.18 10.5).

    Raises:
        PacsError: the server refuses one of them.
        PacsUnreachableError: nobody answers.
    """
    from dicomweb_client.api import DICOMwebClient

    with quiet_libraries(), _web_errors():
        client = DICOMwebClient(server.url.rstrip("/"), session=_session(server))
        reply = client.store_instances(instances)
        stored = len(reply.get("ReferencedSOPSequence") or ())
    if stored != len(instances):
        raise PacsError(f"expected the PACS to store {len(instances)} results, it took {stored}")


def _session(server: DicomWeb) -> Any:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    session = requests.Session()
    if server.token:
        session.headers["Authorization"] = f"Bearer {server.token}"
    # a Retry-After by the server could be a year
    again = Retry(
        connect=0, read=0, other=0, status=2, status_forcelist=_BUSY, backoff_factor=0.2,
        raise_on_status=False, respect_retry_after_header=False,
    )  # fmt: skip
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=again))
    return session


def _wanted_series(session: Any, root: str, wanted: Wanted, importer: Importer) -> Iterator[tuple[str, str]]:
    studies: Iterator[str] = iter(wanted.studies)
    if not wanted.studies:
        studies = _uids(_search(session, root, StudyDate=wanted.dates), _STUDY, importer)
    for study in dict.fromkeys(studies):
        items = _search(session, f"{root}/{study}/series")
        readable = [item for item in items if _value(item, _MODALITY) in MODALITIES]
        for series in _uids(readable, _SERIES, importer):
            yield study, series


def _uids(items: list[Any], tag: str, importer: Importer) -> Iterator[str]:
    for item in items:
        if is_uid(uid := _value(item, tag)):
            yield uid
        else:
            importer.refuse(NO_UID)


def _value(item: Any, tag: str) -> str:
    """A text of an answer in DICOM JSON (PS3.18 F.2), empty where there is none."""
    try:
        value = item[tag]["Value"][0]
    except (LookupError, TypeError):
        return ""
    return value.rstrip("\0 ") if isinstance(value, str) else ""


def _search(session: Any, url: str, **keys: str) -> list[Any]:
    """All answers: a server gives as many at a time as it likes, and need not say that there are more.

    Asked on until nothing new comes, which ends it also where a server does not know `offset`.
    """
    found: dict[str, Any] = {}
    offset = 0
    while True:
        page = _page(session, url, keys | ({"offset": str(offset)} if offset else {}))
        before, offset = len(found), offset + len(page)
        found |= {json.dumps(item, sort_keys=True): item for item in page}
        if len(found) == before:
            return list(found.values())
        if len(found) > _MOST_ANSWERS:
            raise PacsError(f"expected at most {_MOST_ANSWERS} answers: ask for fewer days at a time")


def _page(session: Any, url: str, keys: dict[str, str]) -> list[Any]:
    headers = {"Accept": "application/dicom+json"}
    with _web_errors(), session.get(url, params=keys, headers=headers, timeout=_TIMEOUT_SECONDS) as reply:
        reply.raise_for_status()
        page = json.loads(reply.content) if reply.content else []  # 204: nothing, or no more
    if isinstance(page, dict):
        return [page]  # as some send a single answer
    if not isinstance(page, list):
        raise PacsError(_NO_ANSWER)
    return page


def _retrieve(session: Any, url: str) -> bytes | None:
    """One instance, whatever it is; None where the server does not deliver it, and may deliver others.

    Raises:
        UnusableImageError: it cannot be an instance.
        PacsError: no other will come either.
    """
    from requests.exceptions import ChunkedEncodingError, ContentDecodingError

    headers, body = {"Accept": _ANY_SYNTAX}, bytearray()
    with (
        _web_errors(),
        session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as reply,
    ):
        if reply.status_code >= 400 and reply.status_code not in _NOT_FOR_US:
            return None
        reply.raise_for_status()
        try:
            for chunk in reply.iter_content(2**20):
                body += chunk
                if len(body) > MAX_FILE_BYTES + _ENVELOPE_BYTES:
                    raise UnusableImageError(TOO_LARGE)
        except (ChunkedEncodingError, ContentDecodingError):
            return None
        return _part(str(reply.headers.get("Content-Type", "")), bytes(body))


def _part(kind: str, body: bytes) -> bytes:
    """The only part of a multipart message (RFC 2046 5.1); what is none, and DICOM or nothing, is the part itself."""
    found = re.search(r'boundary=(?:"([^"]+)"|([^;,\s]+))', kind, re.IGNORECASE)
    if found is None or not kind.lower().startswith("multipart/"):
        return body
    marker = b"--" + (found[1] or found[2]).encode("latin-1", "replace")
    begin = body.find(b"\r\n\r\n", body.find(marker)) + 4
    end = body.find(b"\r\n" + marker, begin - 2)
    after = body[end + 2 + len(marker) :]
    if not 0 <= body.find(marker) < begin - 3 <= end or not after.startswith(b"--"):
        raise UnusableImageError("expected one instance from the DICOMweb server, it sent none or several")
    return body[begin:end]


@contextmanager
def _web_errors() -> Iterator[None]:
    """Texts of these libraries quote URLs and answers, and so identifiers: only the kind of failure is passed on."""
    import requests
    from urllib3.exceptions import LocationParseError

    try:
        yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise PacsError(f"the DICOMweb server answered {status}: check address and rights") from None
    except (requests.exceptions.InvalidURL, LocationParseError):
        raise InputError(_NO_ADDRESS) from None
    except requests.RequestException:
        raise PacsUnreachableError("nobody answers as a DICOMweb server at this address") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, SyntaxError):
        raise PacsError(_NO_ANSWER) from None
