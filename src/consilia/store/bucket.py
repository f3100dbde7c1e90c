"""A bucket on a server that speaks S3: Amazon's, Ceph's, MinIO's and others."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from obstore.store import S3Store

from consilia.errors import SettingsError
from consilia.store.objects import ObjectStore

if TYPE_CHECKING:
    from obstore.store import S3Config

CONNECT_SECONDS = 5.0
ATTEMPTS_IN_PATIENCE = 4
"""One attempt may last a quarter of the store's patience: with 300 seconds, 2 MiB at 28 kB a second."""

_URL = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]*)(/[A-Za-z0-9!'()*._=+,~/-]*)?")
_ENDPOINT = re.compile(
    r"https?://([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?|\[[0-9a-fA-F:.]+\])(?::([0-9]{1,5}))?(?:/[A-Za-z0-9._~/-]*)?"
)


@dataclass(frozen=True)
class Credentials:
    """What signs the requests. Never in a message, a log or `repr`."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Bucket:
    """Where a store lies."""

    url: str
    """s3://bucket/prefix"""
    endpoint: str | None
    """http(s)://host:port; None for Amazon's own."""
    region: str
    patience_seconds: float


def connect(bucket: Bucket, credentials: Credentials) -> ObjectStore:
    """Open a store in a bucket, and ask it one thing, so that wrong settings show at once.

    Raises:
        SettingsError: the url or the endpoint is none.
        StoreUnreachableError: nobody answers at the endpoint.
        StoreError: the credentials are refused, or there is no such bucket.
    """
    name, prefix = _bucket_and_prefix(bucket.url)
    if bucket.endpoint is not None:
        _check_endpoint(bucket.endpoint)
    if not re.fullmatch("[A-Za-z0-9-]+", bucket.region):
        raise SettingsError(f"store.region: expected a name such as us-east-1, got {bucket.region!r}")
    config: S3Config = {
        # all that obstore would otherwise look for in the environment, and for credentials on the network
        "endpoint": bucket.endpoint or f"https://s3.{bucket.region}.amazonaws.com",
        "region": bucket.region,
        "access_key_id": credentials.access_key,
        "secret_access_key": credentials.secret_key,
        "virtual_hosted_style_request": False,
        "conditional_put": "etag",
    }
    if credentials.session_token:
        config["session_token"] = credentials.session_token
    objects = S3Store(
        name,
        prefix=prefix or None,
        config=config,
        client_options={
            "allow_http": (bucket.endpoint or "").startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=bucket.patience_seconds / ATTEMPTS_IN_PATIENCE),
        },
        retry_config={"max_retries": 0},  # store/requests.py does this, for every request alike
    )
    store = ObjectStore(objects, f"{bucket.url} at {bucket.endpoint or 'Amazon S3'}", bucket.patience_seconds)
    store.check_access()
    return store


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    parts = _URL.fullmatch(url)
    prefix = (parts[2] or "").strip("/") if parts else ""
    steps = prefix.split("/") if prefix else []
    if parts is None or not {"", ".", ".."}.isdisjoint(steps):
        raise SettingsError(
            "store.url: expected s3://bucket/prefix and nothing else; credentials have files or the environment"
        )
    return parts[1], prefix


def _check_endpoint(endpoint: str) -> None:
    """What obstore would not take for a url ends the process with a panic, so it never sees such a one."""
    if not (parts := _ENDPOINT.fullmatch(endpoint)) or not _is_host(parts[1]) or int(parts[2] or 1) > 65535:
        # with what stands before an @ left out: a password may be among it
        shown = endpoint.rpartition("@")[2]
        raise SettingsError(f"store.endpoint: expected http(s)://host:port, got {shown!r}")


def _is_host(host: str) -> bool:
    """Whether this is a host's name or address, as the WHATWG's URL standard has it (section 3.5)."""
    try:
        if host.startswith("["):
            IPv6Address(host[1:-1])
        elif re.fullmatch("[0-9]+|0[xX][0-9a-fA-F]*", host.rstrip(".").rpartition(".")[2]):
            IPv4Address(host.rstrip("."))
        else:
            host.encode().decode("idna")  # fails on xn-- with nonsense behind it
    except ValueError:
        return False
    return True
