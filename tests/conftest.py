"""Fixtures of all tests: a software HSM, a real S3 server, a real PACS."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.ceph import Ceph, S3Server, require_programs
from tests.orthanc import Orthanc, Pacs, require_orthanc
from tests.softhsm import SoftHsm, start

SERVERS = ("s3_server", "pacs_server")

# No test judges by the clock, hypothesis' own limits neither: on a busy machine every one of them is slow at times.
settings.register_profile("consilia", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("consilia")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together when several workers share the run (`make test` has two).

    A file is one worker's, for its fixtures' sake; so are all tests that need the same server, which is started once,
    and those of e2e, which start many processes each: two of them at a time would starve one another.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        server = next((name for name in SERVERS if name in fixtures), None)
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(server or ("e2e" if folder == "e2e" else item.path.stem)))


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """Debian's SoftHSM with one token. Keys stay in it until the tests end: take labels of your own."""
    return start(tmp_path_factory.mktemp("softhsm"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server (Ceph's) for the whole run; each test makes buckets of its own."""
    require_programs()
    with Ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def pacs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pacs]:
    """A real PACS (Orthanc) for the whole run, with DICOMweb and DIMSE."""
    require_orthanc()
    with Orthanc(tmp_path_factory.mktemp("orthanc")) as pacs:
        yield pacs


@pytest.fixture
def pacs(pacs_server: Pacs) -> Pacs:
    """The PACS, emptied."""
    pacs_server.clear()
    return pacs_server


@pytest.fixture(scope="module", autouse=True)
def open_files_end_with_a_module() -> Iterator[None]:
    """Collect what a module's tests left in cycles: databases and sockets among it.

    With all of torch's objects alive the interpreter looks for cycles so rarely that one worker came to more than
    1024 open files, above which pynetdicom, which waits by `select`, loses every association.
    """
    yield
    gc.collect()
