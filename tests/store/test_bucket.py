"""Where a bucket lies: what is no url is told from settings alone, before any of it reaches the client's library."""

from __future__ import annotations

import pytest

from consilia.errors import SettingsError, StoreUnreachableError
from consilia.store.bucket import Bucket, Credentials, connect

NOBODY = "http://127.0.0.1:1"
KEYS = Credentials("access", "hidden-secret")


def ask(url: str = "s3://bucket/prefix", endpoint: str | None = NOBODY, region: str = "us-east-1") -> None:
    connect(Bucket(url, endpoint, region, 0.05), KEYS)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:9:9",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:x",
        "http://a b:9",
        "http://1.2.3.4.5",
        "http://256.1.1.1:9",
        "http://[::1",
        "http://[::g]:9",
        "http://xn--:9",
        "http://a.xn--a:9",
        "http://",
        "http://:9",
        "http://user:hidden-password@127.0.0.1:9",
        "http://127.0.0.1:9?x=1",
        "http://127.0.0.1:9\n",
        "127.0.0.1:9",
        "ftp://127.0.0.1",
        "",
    ],
)
def test_what_is_no_endpoint_is_said_so(endpoint: str) -> None:
    """Most of these ended the process with a panic of the library, which no `except Exception` sees."""
    with pytest.raises(SettingsError, match=r"store\.endpoint: expected http\(s\)://host:port") as caught:
        ask(endpoint=endpoint)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://[/p",
        "s3://",
        "s3:///p",
        "s3://a b/p",
        "s3://user:hidden-password@b/p",
        "s3://b/p?x",
        "s3://b/p#x",
        "s3://b/a//b",
        "s3://b/../p",
        "s3://b/p q",
        "http://b/p",
        "b",
    ],
)
def test_what_is_no_bucket_is_said_so(url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.url: expected s3://bucket/prefix") as caught:
        ask(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("region", ["", "a b", "us-east-1\n", "eu/x"])
def test_what_is_no_region_is_said_so(region: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.region"):
        ask(region=region)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("s3://bucket", NOBODY),
        ("s3://B_ucket.x/", NOBODY + "/"),
        ("s3://bucket/a/b=2,(c)+d~e!'*_.-/", "http://localhost.:1/gate/way"),
        ("s3://bucket/p", "http://[::1]:1"),
        ("s3://bucket/p", "http://xn--bcher-kva.invalid:1"),
    ],
)
def test_every_url_that_is_one_is_asked_at(url: str, endpoint: str) -> None:
    with pytest.raises(StoreUnreachableError):
        ask(url, endpoint)
