"""The store that a party's settings name, opened."""

from __future__ import annotations

from consilia.errors import SettingsError
from consilia.settings import StoreSection
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
