"""The store that a party's settings name, opened."""

from __future__ import annotations

from consilia.errors import SettingsError, StoreUnreachableError
from consilia.settings.sections import StoreSection
from consilia.store import ArtifactStore
from consilia.store.bucket import Bucket, Credentials, connect
from consilia.store.directory import DirectoryStore


def open_store(section: StoreSection) -> ArtifactStore:
    """Open a folder or a bucket.

    Raises:
        SettingsError: the bucket's url, endpoint or credentials cannot be used as they are.
        StoreUnreachableError: the folder cannot be used, or nobody answers at the endpoint.
        StoreError: the server refuses the credentials, or has no such bucket.
    """
    if section.path is not None:
        return DirectoryStore(section.path)
    if section.url is None:
        raise SettingsError("store: expected path or url")
    bucket = Bucket(section.url, section.endpoint, section.region, section.patience_seconds)
    return connect(bucket, Credentials(*section.credentials()))


def find_store(section: StoreSection) -> ArtifactStore:
    """Open a store that is to be looked at: a folder that is not there is not made, it is a wrong path or not mounted.

    Raises:
        StoreUnreachableError: there is no such folder; and as `open_store`.
    """
    if section.path is not None and not section.path.is_dir():
        raise StoreUnreachableError(
            f"expected the store's folder at {section.path}, there is none: is it mounted, is `path` in [store] right?"
        )
    return open_store(section)
