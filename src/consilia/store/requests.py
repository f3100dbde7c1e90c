"""Requests to an object store: tried again while it helps, for a set time, and then an error that says what to do.

Every request that Consilia makes may be made twice: parts and indices have the same bytes each time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from consilia.errors import StoreError, StoreUnreachableError

FIRST_PAUSE_SECONDS = 0.2
MOST_PAUSE_SECONDS = 15.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ListedObject:
    """An entry of a listing."""

    path: str
    size: int
    modified_seconds: float


def pause(seconds: float, stop: Event | None) -> bool:
    """Wait; whether `stop` was set meanwhile."""
    if stop is not None:
        return stop.wait(seconds)
    time.sleep(seconds)
    return False


class Requests:
    """The few requests that an object store is asked, on obstore; `name` is what messages call the store."""

    def __init__(self, objects: Any, name: str, patience_seconds: float) -> None:
        self.name = name
        self._objects = objects
        self._patience_seconds = patience_seconds

    def get(self, path: str, stop: Event | None = None) -> memoryview | None:
        """All bytes of an object, or None if it is not there.

        Args:
            stop: set by whoever no longer waits for the answer.
        """
        return self._unless_missing(lambda: memoryview(obstore.get(self._objects, path).bytes()), stop)

    def has(self, path: str) -> bool:
        """Whether an object is there."""
        return self._unless_missing(lambda: obstore.head(self._objects, path)) is not None

    def put(self, path: str, data: bytes, stop: Event | None = None) -> None:
        """Write an object, in place of what is there; `stop` as for `get`."""
        self._write(lambda: obstore.put(self._objects, path, data, use_multipart=False), stop)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one of that name (If-None-Match: *); whether this call wrote it.

        A server that says that it has no such condition is asked first whether there is one: two writers at the
        same moment may then both write. One that takes the condition and ignores it lets the later one win.
        """
        try:
            self._write(lambda: obstore.put(self._objects, path, data, mode="create"))
        except (AlreadyExistsError, PreconditionError):
            return False
        except NotSupportedError:
            if self.has(path):
                return False
            self.put(path, data)
        return True

    def delete(self, path: str) -> None:
        """Remove an object; none is no error."""
        self._unless_missing(lambda: obstore.delete(self._objects, path))

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """All objects whose path begins with a folder, in no particular order."""
        listing = self._insist(lambda: iter(obstore.list(self._objects, prefix)))
        while page := self._insist(lambda: next(listing, None)):
            for entry in page:
                yield ListedObject(entry["path"], entry["size"], entry["last_modified"].timestamp())

    def _write(self, request: Callable[[], object], stop: Event | None = None) -> None:
        try:
            self._insist(request, stop)
        except (NotFoundError, FileNotFoundError) as error:
            raise self._no_bucket() from error

    def _unless_missing(self, request: Callable[[], Answer], stop: Event | None = None) -> Answer | None:
        try:
            return self._insist(request, stop)
        except (NotFoundError, FileNotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            return None

    def _insist(self, request: Callable[[], Answer], stop: Event | None = None) -> Answer:
        """Make a request until it is answered; what the server's refusals mean is left to the caller.

        Raises:
            StoreUnreachableError: no answer within the store's patience.
            StoreError: refused for good.
        """
        began = time.monotonic()
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                with self._refusals():
                    return request()
            except (GenericError, OSError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                waited = time.monotonic() - began
                if waited + pause_seconds > self._patience_seconds:
                    raise StoreUnreachableError(
                        f"the store {self.name} did not answer as it should for {waited:.0f} seconds: "
                        f"{_first_line(error)}; see that it runs and that [store] names its endpoint, then try again"
                    ) from error
            # at random, so that hospitals which were cut off together do not come back together
            if pause(pause_seconds * random.uniform(0.5, 1.0), stop):
                raise StoreUnreachableError(
                    f"the store {self.name} did not answer, and nobody waits any more"
                )
            pause_seconds = min(2 * pause_seconds, MOST_PAUSE_SECONDS)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise StoreError(
                f"the store {self.name} refuses these credentials ({_code(error)}); see that the key and its secret "
                "are right, and that they may read, write, list and delete under this prefix"
            ) from error
        except (NotFoundError, AlreadyExistsError, PreconditionError, NotSupportedError, GenericError):
            raise
        except BaseError as error:
            raise StoreError(f"the store {self.name} failed: {_first_line(error)}") from error

    def _no_bucket(self) -> StoreError:
        return StoreError(f"the store {self.name} has no such bucket; make it, or name another in [store]")


def _code(error: Exception) -> str:
    """The server's own word, such as SignatureDoesNotMatch, out of its XML."""
    _, found, rest = str(error).partition("<Code>")
    return rest.partition("</Code>")[0] if found else type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:400]
