"""A store in object storage that several machines share, on obstore (docs/store.md).

An envelope is sent in parts while it is being sealed; the index, written last and only where there is none, makes
it an object (store/index.py). So an upload that was cut off goes on with the parts that are missing, nobody ever
sees half an object, and a reader checks every leaf before it hands out a byte of it.
"""

from __future__ import annotations

import io
import re
import secrets
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, BinaryIO

from consilia.artifact import RootHasher
from consilia.errors import EnvelopeError, ObjectMissingError, StoreError
from consilia.store import StoredObject
from consilia.store.index import PART_BYTES, Index, damaged, part_path, upload_of
from consilia.store.requests import ListedObject, Requests
from consilia.store.verified import checked_blocks, fetch_object
from consilia.values import Digest

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PARTS_AT_ONCE = 3
"""Parts on their way while the next is being sealed; each is 2 MiB of memory."""
READ_ATTEMPTS = 3
"""A part that came cut short or changed is asked for again: the wire may be to blame, not the object."""
RESUMED_SECONDS = 12 * 3600
"""Older parts are sent again, which makes them young: `store gc` must not take them while an upload goes on."""

_STREAM_BYTES = 1 << 20
_INDEX_NAME = re.compile(r"objects/([0-9a-f]{2})/(\1[0-9a-f]{62})")
_PART_NAME = re.compile(r"parts/([0-9a-f]{64})/[0-9]{8}-[0-9a-f]{32}")


class ObjectStore:
    """An `ArtifactStore` in a bucket."""

    def __init__(self, objects: Any, name: str, patience_seconds: float) -> None:
        """Use a store of obstore's; `bucket.connect` makes one for S3.

        Args:
            name: what messages call it; never with credentials.
            patience_seconds: for how long each request is tried again.
        """
        self._requests = Requests(objects, name, patience_seconds)

    def check_access(self) -> None:
        """Ask for one object that is not there.

        Raises:
            StoreUnreachableError: nobody answers.
            StoreError: the credentials are refused, or there is no such bucket.
        """
        self._requests.get("consilia-is-here")

    def put(self, root: Digest, source: Path) -> None:
        """See `ArtifactStore.put`."""
        if self.has(root):
            return
        try:
            with source.open("rb") as file, self.writer(Digest.of(b"consilia/put" + root)) as incoming:
                for block in checked_blocks(file, root):
                    incoming.stream.write(block)
                incoming.commit(root)
        except OSError as error:
            raise StoreError(f"{source} cannot be put into the store: {error.strerror}") from error

    @contextmanager
    def writer(self, upload: Digest | None = None) -> Iterator[PartsUpload]:
        """See `ArtifactStore.writer`."""
        named = upload or Digest(secrets.token_bytes(32))
        kept = {} if upload is None else {part.path: part for part in self._parts(named)}
        with ThreadPoolExecutor(PARTS_AT_ONCE) as senders:
            incoming = PartsUpload(self._requests, named, kept, senders)
            try:
                yield incoming
            finally:
                incoming.end()
                if not incoming.committed and upload is None:
                    with suppress(StoreError):  # what is left, `store gc` removes
                        self.discard(named.hex())

    def get(self, root: Digest, target: Path) -> None:
        """See `ArtifactStore.get`."""
        fetch_object(self, root, target)

    @contextmanager
    def reader(self, root: Digest) -> Iterator[BinaryIO]:
        """See `ArtifactStore.reader`. Here every leaf is verified before a byte of it is handed out."""
        raw = _ObjectReader(self._requests, self._index(root))
        with io.BufferedReader(raw, _STREAM_BYTES) as stream:
            yield stream

    def has(self, root: Digest) -> bool:
        """See `ArtifactStore.has`."""
        return self._requests.has(_index_path(root))

    def delete(self, root: Digest) -> None:
        """See `ArtifactStore.delete`. The index goes first: a crash in between leaves parts for `store gc`."""
        head = self._requests.get(_index_path(root))
        if head is None:
            return
        self._requests.delete(_index_path(root))
        with suppress(StoreError):  # a damaged index names no parts
            self.discard(upload_of(bytes(head), root).hex())

    def objects(self) -> Iterator[StoredObject]:
        """See `ArtifactStore.objects`. What is not named like an index is passed over."""
        for entry in self._requests.list("objects"):
            if named := _INDEX_NAME.fullmatch(entry.path):
                yield StoredObject(Digest.from_hex(named[2]), entry.modified_seconds)

    def roots(self) -> Iterator[Digest]:
        """See `ArtifactStore.roots`."""
        return (found.root for found in self.objects())

    def abandoned(self, older_than_seconds: float) -> list[str]:
        """See `ArtifactStore.abandoned`. The youngest part of an upload says when it was last touched.

        Raises:
            ObjectDamagedError: an index is damaged, so its parts look as if nobody named them: repair it first.
        """
        youngest: dict[str, float] = {}
        for part in self._requests.list("parts"):
            if named := _PART_NAME.fullmatch(part.path):
                youngest[named[1]] = max(part.modified_seconds, youngest.get(named[1], 0.0))
        oldest = time.time() - older_than_seconds
        idle = {upload for upload, touched in youngest.items() if touched < oldest}
        # The indices are read after the parts: an upload that is finished meanwhile is seen.
        for found in self.objects() if idle else ():
            with suppress(ObjectMissingError):  # deleted meanwhile
                upload = self._index(found.root).upload.hex()
                if upload not in youngest and found.modified_seconds < oldest:
                    raise damaged(found.root, "the upload that its index names has no parts")
                idle.discard(upload)
        return sorted(idle)

    def discard(self, abandoned: str) -> None:
        """See `ArtifactStore.discard`."""
        for part in self._parts(Digest.from_hex(abandoned)):
            self._requests.delete(part.path)

    def _parts(self, upload: Digest) -> list[ListedObject]:
        return list(self._requests.list(f"parts/{upload.hex()}"))

    def _index(self, root: Digest) -> Index:
        data = self._requests.get(_index_path(root))
        if data is None:
            raise ObjectMissingError(f"the store {self._requests.name} has no object {root}")
        return Index.parse(bytes(data), root)


class PartsUpload:
    """An envelope on its way into a bucket, part by part."""

    def __init__(
        self,
        requests: Requests,
        upload: Digest,
        kept: dict[str, ListedObject],
        senders: ThreadPoolExecutor,
    ) -> None:
        self.committed = False
        self.sent_parts = 0
        """How many parts were sent; the others were there already."""
        self._requests = requests
        self._upload = upload
        self._kept = kept
        self._senders = senders
        self._stop = Event()
        self._sending: deque[Future[None]] = deque()
        self._hasher = RootHasher()
        self._waiting = bytearray()
        self._opening_taken = False
        self._paths: list[str] = []
        self._raw = _PartWriter(self)
        self.stream: BinaryIO = io.BufferedWriter(self._raw, _STREAM_BYTES)

    def take(self, data: bytes | memoryview) -> None:
        """The next bytes of the envelope.

        Raises:
            EnvelopeError: they are none.
            StoreError: an earlier part could not be sent.
        """
        self._hasher.update(data)
        self._waiting += data
        opening = self._hasher.opening
        if not self._opening_taken and opening:
            del self._waiting[: len(opening)]
            self._opening_taken = True
        while self._opening_taken and len(self._waiting) >= PART_BYTES:
            self._send(bytes(memoryview(self._waiting)[:PART_BYTES]))
            del self._waiting[:PART_BYTES]

    def commit(self, root: Digest) -> None:
        """See `Incoming.commit`; here the root is checked as well.

        Raises:
            ObjectDamagedError: what was written has another root.
        """
        self.stream.flush()
        try:
            if self._hasher.root() != root:
                raise damaged(root, f"what was written has the root {self._hasher.root()}")
        except EnvelopeError as error:
            raise damaged(root, str(error)) from error
        if self._waiting:
            self._send(bytes(self._waiting))
            self._waiting.clear()
        self._wait(0)
        index = Index(self._upload, self._hasher.opening, tuple(self._hasher.leaf_digests))
        if not self._requests.put_if_absent(_index_path(root), index.encode()):
            self._yield_to(root)
        for path in self._kept.keys() - set(self._paths):
            self._requests.delete(path)  # of an earlier attempt with other bytes
        self.committed = True

    def end(self) -> None:
        """Wait for what is on its way, and take nothing more."""
        self._raw.ended = True
        self._stop.set()
        for sending in self._sending:
            sending.cancel()
            with suppress(StoreError):
                if not sending.cancelled():
                    sending.result()
        self.stream.close()

    def _send(self, part: bytes) -> None:
        path = part_path(self._upload, len(self._paths), self._hasher.leaf_digests)
        self._paths.append(path)
        if _is_there(self._kept.get(path), part):
            return
        self._wait(PARTS_AT_ONCE - 1)
        self.sent_parts += 1
        self._sending.append(self._senders.submit(self._requests.put, path, part, self._stop))

    def _wait(self, most: int) -> None:
        while len(self._sending) > most:
            self._sending.popleft().result()

    def _yield_to(self, root: Digest) -> None:
        """There is an index already: another writer's, whose object stays; or ours, when an answer got lost."""
        head = self._requests.get(_index_path(root))
        if head is not None and upload_of(bytes(head), root) != self._upload:
            for path in self._paths:
                self._requests.delete(path)


class _PartWriter(io.RawIOBase):
    """Hands what is written to an upload."""

    def __init__(self, upload: PartsUpload) -> None:
        self._upload = upload
        self.ended = False

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        view = memoryview(data).cast("B")
        if not self.ended:
            self._upload.take(view)
        return len(view)


class _ObjectReader(io.RawIOBase):
    """Reads an object part by part, the next one while this one is used; verifies each before it hands it out."""

    def __init__(self, requests: Requests, index: Index) -> None:
        self._requests = requests
        self._index = index
        self._fetcher = ThreadPoolExecutor(1)
        self._stop = Event()
        self._ready = memoryview(index.opening)
        self._next_part = 0
        self._coming: Future[memoryview] | None = None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Let go of a part that is still on its way."""
        self._stop.set()
        self._fetcher.shutdown(cancel_futures=True)
        super().close()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        if not self._ready and self._next_part < self._index.parts:
            self._ready = self._take_part()
        taken = min(len(target), len(self._ready))
        target[:taken] = self._ready[:taken]
        self._ready = self._ready[taken:]
        return taken

    def _take_part(self) -> memoryview:
        coming = self._coming or self._fetcher.submit(self._fetch, self._next_part)
        self._next_part += 1
        self._coming = None
        part = coming.result()
        if self._next_part < self._index.parts:
            self._coming = self._fetcher.submit(self._fetch, self._next_part)
        return part

    def _fetch(self, number: int) -> memoryview:
        path = self._index.part_path(number)
        for _ in range(READ_ATTEMPTS):
            part = self._requests.get(path, self._stop)
            if part is None:
                raise damaged(self._index.root, f"its part {number} of {self._index.parts} is missing")
            if self._index.proves(number, part):
                return part
        raise damaged(self._index.root, f"its part {number} of {self._index.parts} is cut short or changed")


def _index_path(root: Digest) -> str:
    return f"objects/{root.hex()[:2]}/{root.hex()}"


def _is_there(kept: ListedObject | None, part: bytes) -> bool:
    """Whether a part need not be sent again: there under the name of its bytes, whole, and young."""
    return (
        kept is not None and kept.size == len(part) and kept.modified_seconds > time.time() - RESUMED_SECONDS
    )
