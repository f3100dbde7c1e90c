"""The PACS that other tests use is there, takes what it is given, and serves loopback alone."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request

import pytest
from pydicom.data import get_testdata_file
from pynetdicom import AE

from tests.orthanc import Pacs

pytestmark = pytest.mark.pacs


def test_it_stores_over_dicomweb_and_lists_what_it_has(pacs: Pacs) -> None:
    from dicomweb_client.api import DICOMwebClient
    from pydicom import dcmread

    image = dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    DICOMwebClient(pacs.dicomweb_url).store_instances([image])
    assert (pacs.count(), pacs.count("studies")) == (1, 1)
    pacs.clear()
    assert pacs.count() == 0


def other_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("203.0.113.1", 9))  # sends nothing: asks the kernel for this machine's other address
        return str(probe.getsockname()[0])


def test_it_answers_nobody_who_is_not_on_loopback(pacs: Pacs) -> None:
    try:
        address = other_address()
    except OSError:
        address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"http://{address}:{pacs.http_port}/system", timeout=5)
    title = AE(ae_title=pacs.destination_aet)
    title.add_requested_context("1.2.840.10008.1.1")
    assert admitted(title, "127.0.0.1", pacs)
    assert not admitted(title, address, pacs)


def admitted(title: AE, host: str, pacs: Pacs) -> bool:
    association = title.associate(host, pacs.dicom_port, ae_title=pacs.aet)
    established = bool(association.is_established)
    association.abort()
    return established
