"""Images from a hospital's PACS: over DICOMweb, or by DIMSE, where we listen (C-STORE) or ask (C-MOVE, C-GET).

An original is on disk for as long as it takes to de-identify it: in a folder of the home that only its owner reads.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilia.errors import InputError, PacsError, PacsUnreachableError
from consilia.imaging.annotation_objects import REPORTS, SEGMENTATION
from consilia.imaging.dicom import CT_IMAGE_STORAGE, ENHANCED_CT_STORAGE
from consilia.imaging.dicom_file import MAX_FILE_BYTES
from consilia.imaging.importing import Outcome

if TYPE_CHECKING:
    from pynetdicom import AE
    from pynetdicom.events import Event

STORED = (CT_IMAGE_STORAGE, *ENHANCED_CT_STORAGE, *REPORTS, SEGMENTATION)
MODALITIES = ("CT", "SR", "SEG")

_FIND, _MOVE, _GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
"""Study Root Query/Retrieve (PS3.4 C.6.2)."""
_ECHO = "1.2.840.10008.1.1"
_SUCCESS, _NOT_UNDERSTOOD, _NO_ROOM = 0x0000, 0xC000, 0xA700
_PENDING = (0xFF00, 0xFF01)

Take = Callable[[Path], Outcome]
"""What to do with a received file; it is deleted afterwards."""


@dataclass(frozen=True)
class Entity:
    """A DICOM application entity: AE title, host and port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Entity:
        """From `AET@host:port`.

        Raises:
            InputError: it is something else.
        """
        found = re.fullmatch(r"([!-?A-~][ -?A-~]{0,15})@(\[[0-9a-fA-F:]+\]|[^@:/]+):([0-9]{1,5})", text)
        if found is None or not 0 < int(found[3]) < 65_536:
            raise InputError("expected AET@host:port, such as PACS@127.0.0.1:104")
        return cls(found[1].strip(), found[2].strip("[]"), int(found[3]))


@dataclass(frozen=True)
class Wanted:
    """Which studies to ask for."""

    studies: tuple[str, ...] = ()
    """StudyInstanceUIDs."""
    dates: str = ""
    """YYYYMMDD or YYYYMMDD-YYYYMMDD."""

    def __post_init__(self) -> None:
        if not self.studies and not self.dates:
            raise InputError("expected --study or --dates: a whole PACS is not asked for by accident")
        if self.dates and not re.fullmatch(r"[0-9]{8}?(-[0-9]{8})?", self.dates):
            raise InputError("expected --dates YYYYMMDD or YYYYMMDD-YYYYMMDD")
        if not all(re.fullmatch(r"[0-9.]{1,64}", study) for study in self.studies):
            raise InputError("expected StudyInstanceUIDs (0020,000D) as --study")


@contextmanager
def spool(home: Path) -> Iterator[Path]:
    """A folder for originals in a home, for its owner alone, gone afterwards; what a killed import left goes first."""
    folder = home / "incoming"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# We listen


class Listener:
    """A C-STORE server: takes what is sent, one file at a time, and answers when it is kept."""

    def __init__(self, own: Entity, folder: Path, take: Take) -> None:
        self._own, self._folder, self._take = own, folder, take
        self._lock = threading.Lock()
        self._server: Any = None
        self.received = 0
        self.failure: Exception | None = None
        self.last_heard = time.monotonic()

    def __enter__(self) -> Listener:
        from pynetdicom import evt

        handlers: list[Any] = [(evt.EVT_C_STORE, self.handle), (evt.EVT_C_ECHO, lambda _: _SUCCESS)]
        try:
            self._server = _entity(self._own.title).start_server(
                (self._own.host, self._own.port), block=False, evt_handlers=handlers
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {self._own.host}:{self._own.port}: {error.strerror}"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def handle(self, event: Event) -> int:
        """Take one instance; the status that goes back (PS3.4 B.2.3)."""
        with self._lock:
            self.received += 1
            try:
                return self._store(event)
            except OSError as error:  # a full disk must be told to the sender, who then sends again
                self.failure = error
                return _NO_ROOM
            finally:
                self.last_heard = time.monotonic()

    def _store(self, event: Event) -> int:
        data = event.encoded_dataset()
        if len(data) > MAX_FILE_BYTES:
            return _NOT_UNDERSTOOD
        path = self._folder / f"{self.received}.dcm"
        path.write_bytes(data)
        try:
            self._take(path)
        finally:
            path.unlink()
        return _SUCCESS

    def wait(self, idle_seconds: float) -> None:
        """Until nothing came for so long."""
        while time.monotonic() - self.last_heard < idle_seconds and self.failure is None:
            time.sleep(0.05)
        self.check()

    def check(self) -> None:
        """Say that something could not be kept.

        Raises:
            PacsError: the disk took nothing more.
        """
        if self.failure is not None:
            raise PacsError(f"cannot keep what was sent: {type(self.failure).__name__}")


def _entity(title: str) -> AE:
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES

    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)  # its log quotes identifiers
    entity = AE(ae_title=title)
    entity.maximum_associations = 4
    entity.network_timeout = entity.dimse_timeout = 60
    for name in STORED:
        entity.add_supported_context(name, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(_ECHO)
    return entity


# We ask, by DIMSE


def move(pacs: Entity, own: Entity, wanted: Wanted) -> None:
    """Have a PACS send studies to us, who must be listening and known to it (C-FIND, then C-MOVE).

    Raises:
        PacsError: it refuses.
        PacsUnreachableError: nobody answers.
    """

    with _association(pacs, own.title, (_FIND, _MOVE)) as association:
        for query in _series(association, wanted):
            for status, _ in association.send_c_move(query, own.title, _MOVE):
                _check(status, "C-MOVE: does it know our AE title, host and port?")


def get(pacs: Entity, own_title: str, wanted: Wanted, handle: Callable[[Event], int]) -> None:
    """Fetch studies over the association that we open: nobody needs to reach us (C-FIND, then C-GET).

    Raises:
        PacsError: it refuses.
        PacsUnreachableError: nobody answers.
    """
    from pynetdicom import evt

    handlers = [(evt.EVT_C_STORE, handle)]
    with _association(pacs, own_title, (_FIND, _GET), stored=True, handlers=handlers) as association:
        for query in _series(association, wanted):
            for status, _ in association.send_c_get(query, _GET):
                _check(status, "C-GET")


@contextmanager
def _association(
    pacs: Entity,
    title: str,
    models: tuple[Any, ...],
    *,
    stored: bool = False,
    handlers: list[Any] | None = None,
) -> Iterator[Any]:
    from pynetdicom import ALL_TRANSFER_SYNTAXES, build_role

    entity = _entity(title)
    for model in models:
        entity.add_requested_context(model)
    roles: list[Any] = []
    for name in STORED if stored else ():
        entity.add_requested_context(name, ALL_TRANSFER_SYNTAXES)
        roles.append(build_role(name, scp_role=True))
    association = entity.associate(
        pacs.host, pacs.port, ae_title=pacs.title, ext_neg=roles, evt_handlers=handlers or []
    )
    if not association.is_established:
        if association.is_rejected:
            raise PacsError("the PACS refuses our AE title: have it entered there")
        raise PacsUnreachableError("nobody answers as a PACS at this host and port")
    try:
        yield association
    finally:
        association.release()


def _series(association: Any, wanted: Wanted) -> Iterator[Any]:
    """Queries, one a series of a kind that we read, each ready for C-MOVE or C-GET."""
    found = (pair for study in _studies(association, wanted) for pair in _series_of(association, study))
    for study, series in dict.fromkeys(found):  # a PACS lists a study twice that has two patients
        yield _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID=series)


def _series_of(association: Any, study: str) -> Iterator[tuple[str, str]]:
    query = _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality="")
    for found in _find(association, query):
        if found.get("Modality") in MODALITIES and found.get("SeriesInstanceUID"):
            yield study, str(found.SeriesInstanceUID)


def _studies(association: Any, wanted: Wanted) -> tuple[str, ...]:
    if wanted.studies:
        return wanted.studies
    query = _query("STUDY", StudyDate=wanted.dates, StudyInstanceUID="")
    return tuple(
        str(found.StudyInstanceUID) for found in _find(association, query) if "StudyInstanceUID" in found
    )


def _query(level: str, **keys: str) -> Any:
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _find(association: Any, query: Any) -> list[Any]:
    found = []
    for status, identifier in association.send_c_find(query, _FIND):
        _check(status, "C-FIND")
        if identifier is not None:
            found.append(identifier)
    return found


def _check(status: Any, step: str) -> None:
    code = status.Status if "Status" in status else None
    if code is None:
        raise PacsUnreachableError(f"the PACS stopped answering during {step}")
    if (
        code not in (_SUCCESS, *_PENDING) and code != 0xB000
    ):  # 0xB000: some of the transfers failed, and are told
        raise PacsError(f"the PACS answered {step} with status {code:04X}")


# We ask, over DICOMweb


@dataclass(frozen=True)
class DicomWeb:
    """Where QIDO and WADO begin, and what lets us in."""

    url: str
    token: str = ""


def fetch(
    server: DicomWeb, wanted: Wanted, known: Callable[[str, str], bool], folder: Path
) -> Iterator[Path]:
    """The instances of studies, one file each; `known` says of a series and an instance that it needs no fetching.

    Raises:
        PacsError: the server refuses, or its answer is not DICOM.
        PacsUnreachableError: nobody answers.
    """
    from dicomweb_client.api import DICOMwebClient

    logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)  # its log quotes identifiers
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else None
    with _web_errors():
        client = DICOMwebClient(server.url, headers=headers)
        client.set_http_retry_params(retry=True, max_attempts=3, wait_exponential_multiplier=200)
        for study, series in dict.fromkeys(_web_series(client, wanted)):
            for item in client.search_for_instances(study, series):
                uid = _value(item, "00080018")
                if not known(series, uid):
                    yield _retrieve(client, (study, series, uid), folder)


def send(server: DicomWeb, instances: Sequence[Any]) -> None:
    """Store results, such as a structured report, in the PACS (STOW-RS, PS3.18 10.5).

    Raises:
        PacsError: the server refuses one of them.
        PacsUnreachableError: nobody answers.
    """
    from dicomweb_client.api import DICOMwebClient

    logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else None
    with _web_errors():
        reply = DICOMwebClient(server.url, headers=headers).store_instances(instances)
    stored = len(reply.get("ReferencedSOPSequence") or ())
    if stored != len(instances):
        raise PacsError(f"expected the PACS to store {len(instances)} results, it took {stored}")


def _web_series(client: Any, wanted: Wanted) -> Iterator[tuple[str, str]]:
    studies = wanted.studies or tuple(
        _value(item, "0020000D")
        for item in client.search_for_studies(search_filters={"StudyDate": wanted.dates})
    )
    for study in studies:
        for item in client.search_for_series(study):
            if _value(item, "00080060") in MODALITIES:
                yield study, _value(item, "0020000E")


def _value(item: dict[str, Any], tag: str) -> str:
    return str(item.get(tag, {}).get("Value", [""])[0])


def _retrieve(client: Any, names: tuple[str, str, str], folder: Path) -> Path:
    # any transfer syntax: as it is stored, not transcoded
    image = client.retrieve_instance(*names, media_types=(("application/dicom", "*"),))
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".dcm", delete=False) as file:
        image.save_as(file, enforce_file_format=True)
    return Path(file.name)


@contextmanager
def _web_errors() -> Iterator[None]:
    """Texts of these libraries quote URLs, and so identifiers: only the kind of failure is passed on."""
    import warnings

    import requests

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except requests.HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise PacsError(f"the DICOMweb server answered {status}: check address and rights") from None
    except requests.RequestException:
        raise PacsUnreachableError("nobody answers as a DICOMweb server at this address") from None
