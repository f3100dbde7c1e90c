"""Images from a hospital's PACS by DIMSE, where we listen (C-STORE) or ask (C-MOVE, C-GET).

What cannot be used, or does not come, is counted by the importer: no text of the PACS is passed on. An original is on
disk for as long as it takes to de-identify it: in a folder of the home that only its owner reads.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consilia.errors import ConsiliaError, InputError, PacsError, PacsUnreachableError
from consilia.imaging.annotation_objects import REPORTS, SEGMENTATION
from consilia.imaging.dicom import CT_IMAGE_STORAGE, ENHANCED_CT_STORAGE
from consilia.imaging.dicom_file import MAX_FILE_BYTES, TOO_LARGE, parser_errors
from consilia.imaging.importing import Importer

if TYPE_CHECKING:
    from pynetdicom import AE
    from pynetdicom.events import Event

STORED = (CT_IMAGE_STORAGE, *ENHANCED_CT_STORAGE, *REPORTS, SEGMENTATION)
_BESIDE = "7 7.1 7.2 7.3 7.4 66 66.5 66.7 88.35 88.40 88.50 88.59 88.65 88.67 88.68 88.69 88.71 88.73 88.76"
BESIDE = tuple(f"1.2.840.10008.5.1.4.1.1.{number}" for number in _BESIDE.split())
"""Secondary captures, raw data, other reports and segmentations: they lie in the same series, so they may come, and are
refused and counted. Otherwise the PACS would count them as not delivered, and hardly an import were complete."""
MODALITIES = ("CT", "SR", "SEG", "")
"""Without one, nobody knows: it comes, and is looked at."""
NO_UID = "expected UIDs of studies, series and instances in the PACS's answers, one has something else"

_FIND, _MOVE, _GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
"""Study Root Query/Retrieve (PS3.4 C.6.2)."""
_ECHO = "1.2.840.10008.1.1"
_SUCCESS, _NOT_UNDERSTOOD, _NO_ROOM, _FAILED = 0x0000, 0xC000, 0xA700, 0x0110
_PENDING = (0xFF00, 0xFF01)
_SOME_LOST, _ALL_LOST = 0xB000, 0xA702
"""Of the transfers of a C-MOVE or C-GET (PS3.4 C.4.2.1.5)."""


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
        if not all(is_uid(study) for study in self.studies):
            raise InputError("expected StudyInstanceUIDs (0020,000D) as --study")


def is_uid(text: object) -> bool:
    """Whether it is a UID (PS3.5 9.1), leading zeros forgiven: anything else could be a name."""
    return isinstance(text, str) and len(text) <= 64 and bool(re.fullmatch(r"[0-9]+(\.[0-9]+)*", text))


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Nothing that they log or warn of: it quotes identifiers."""
    for name in ("dicomweb_client", "pydicom", "pynetdicom", "retrying", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def spool(home: Path) -> Iterator[Path]:
    """A folder for originals in a home, for its owner alone, gone afterwards; what a killed import left goes first."""
    folder = home / "incoming"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        with quiet_libraries():
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# We listen


class Listener:
    """A C-STORE server: takes what is sent, one file at a time, and answers when it is kept."""

    def __init__(self, own: Entity, folder: Path, importer: Importer) -> None:
        self._own, self._folder, self._importer = own, folder, importer
        self._lock = threading.Lock()
        self._server: Any = None
        self.received = self.turned_away = 0
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
            except ConsiliaError as error:
                self.failure = error
                return _FAILED
            finally:
                self.last_heard = time.monotonic()

    def _store(self, event: Event) -> int:
        data = event.encoded_dataset()
        if len(data) > MAX_FILE_BYTES:
            self._importer.refuse(TOO_LARGE)
            self.turned_away += 1
            return _NOT_UNDERSTOOD
        path = self._folder / f"{self.received}.dcm"
        path.write_bytes(data)
        try:
            self._importer.take(path)
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
            ConsiliaError: what the data folder holds is damaged.
        """
        if isinstance(self.failure, ConsiliaError):
            raise self.failure
        if self.failure is not None:
            raise PacsError(f"cannot keep what was sent: {type(self.failure).__name__}")


def _entity(title: str) -> AE:
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES

    entity = AE(ae_title=title)
    entity.maximum_associations = 4
    entity.network_timeout = entity.dimse_timeout = 60
    for name in (*STORED, *BESIDE):
        entity.add_supported_context(name, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(_ECHO)
    return entity


# We ask, by DIMSE


def move(pacs: Entity, own: Entity, wanted: Wanted, importer: Importer) -> int:
    """Have a PACS send studies to us, who must be listening and known to it (C-FIND, then C-MOVE).

    Returns:
        How many instances it could not deliver, by its own count.

    Raises:
        PacsError: it refuses.
        PacsUnreachableError: nobody answers.
    """
    lost = 0
    with _association(pacs, own.title, (_FIND, _MOVE)) as association:
        for query in _series(association, wanted, importer):
            for status, identifier in association.send_c_move(query, own.title, _MOVE):
                lost += _not_delivered(
                    status, identifier, "C-MOVE: does it know our AE title, host and port?"
                )
    return lost


def get(
    pacs: Entity, own_title: str, wanted: Wanted, importer: Importer, handle: Callable[[Event], int]
) -> int:
    """Fetch studies over the association that we open: nobody needs to reach us (C-FIND, then C-GET).

    Returns:
        How many instances the PACS could not deliver, by its own count.

    Raises:
        PacsError: it refuses.
        PacsUnreachableError: nobody answers.
    """
    from pynetdicom import evt

    lost = 0
    handlers = [(evt.EVT_C_STORE, handle)]
    with _association(pacs, own_title, (_FIND, _GET), stored=True, handlers=handlers) as association:
        for query in _series(association, wanted, importer):
            for status, identifier in association.send_c_get(query, _GET):
                lost += _not_delivered(status, identifier, "C-GET")
    return lost


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
    for name in (*STORED, *BESIDE) if stored else ():
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
    except ValueError:  # by pynetdicom: no presentation context
        raise PacsError("the PACS does not take queries, C-MOVE or C-GET of Study Root from us") from None
    except RuntimeError:
        raise PacsUnreachableError("the PACS has ended the association") from None
    finally:
        association.release()


def _series(association: Any, wanted: Wanted, importer: Importer) -> Iterator[Any]:
    """Queries, one a series of a kind that we read, each ready for C-MOVE or C-GET."""
    studies = wanted.studies or _studies(association, wanted, importer)
    found = (pair for study in studies for pair in _series_of(association, study, importer))
    for study, series in dict.fromkeys(found):  # a PACS lists a study twice that has two patients
        yield _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID=series)


def _series_of(association: Any, study: str, importer: Importer) -> Iterator[tuple[str, str]]:
    query = _query("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality="")
    for found in _find(association, query):
        if _text(found, "Modality") not in MODALITIES:
            continue
        if is_uid(series := _text(found, "SeriesInstanceUID")):
            yield study, series
        else:
            importer.refuse(NO_UID)


def _studies(association: Any, wanted: Wanted, importer: Importer) -> Iterator[str]:
    for found in _find(association, _query("STUDY", StudyDate=wanted.dates, StudyInstanceUID="")):
        if is_uid(study := _text(found, "StudyInstanceUID")):
            yield study
        else:
            importer.refuse(NO_UID)


def _text(found: Any, keyword: str) -> str:
    """A value of an answer, empty where there is none; it is decoded only now, and may be anything."""
    try:
        return str(found.get(keyword) or "").rstrip("\0 ")
    except parser_errors():
        return ""


def _query(level: str, **keys: str) -> Any:
    from pydicom.dataset import Dataset

    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value)
    return query


def _find(association: Any, query: Any) -> list[Any]:
    """What is found; an answer that is no DICOM is an empty one."""
    from pydicom.dataset import Dataset

    found = []
    for status, identifier in association.send_c_find(query, _FIND):
        code = _code(status, "C-FIND")
        if code in _PENDING:
            found.append(Dataset() if identifier is None else identifier)
        elif code != _SUCCESS:
            raise PacsError(f"the PACS answered C-FIND with status {code:04X}")
    return found


def _not_delivered(status: Any, identifier: Any, step: str) -> int:
    """How many transfers of a series have failed, by its last answer; the other series are asked for all the same."""
    code = _code(status, step)
    if code in _PENDING:
        return 0
    if code not in (_SUCCESS, _SOME_LOST, _ALL_LOST):
        raise PacsError(f"the PACS answered {step} with status {code:04X}")
    failed = status.get("NumberOfFailedSuboperations")
    if failed is None:  # it need not be there
        failed = int(code != _SUCCESS)
    return max(int(failed), _listed(identifier), int(code == _ALL_LOST))


def _listed(identifier: Any) -> int:
    try:
        listed = identifier.get("FailedSOPInstanceUIDList") if identifier is not None else None
    except parser_errors():
        return 0
    return len(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else int(bool(listed))


def _code(status: Any, step: str) -> int:
    if "Status" not in status:
        raise PacsUnreachableError(f"the PACS stopped answering during {step}")
    return int(status.Status)
