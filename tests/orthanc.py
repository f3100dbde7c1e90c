"""A real PACS on loopback: Debian's Orthanc with DICOMweb and DIMSE, its data in a folder that goes with the tests.

Debian: apt-get install --no-install-recommends orthanc orthanc-dicomweb
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_SECONDS = 60.0


def free_port() -> int:
    """A port on loopback that nobody listened on a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Pacs:
    """Where it answers, and whom it may send to by C-MOVE."""

    http_port: int
    dicom_port: int
    destination_port: int
    """Where it believes the AE title `CONSILIA` to listen: start a C-STORE server there."""
    aet: str = "ORTHANC"
    destination_aet: str = "CONSILIA"

    @property
    def rest_url(self) -> str:
        """Orthanc's own interface: what a person at the PACS sees and does."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def dicomweb_url(self) -> str:
        """Where QIDO, WADO and STOW begin."""
        return f"{self.rest_url}/dicom-web"

    @property
    def dimse(self) -> str:
        """AE title and address, as `--from` takes them."""
        return f"{self.aet}@127.0.0.1:{self.dicom_port}"

    def store(self, *files: Path | bytes) -> None:
        """Put DICOM files in, whatever they are."""
        for file in files:
            self.rest("POST", "/instances", file if isinstance(file, bytes) else file.read_bytes())

    def clear(self) -> None:
        """Delete everything in it."""
        for patient in self.rest("GET", "/patients"):
            self.rest("DELETE", f"/patients/{patient}")

    def count(self, level: str = "instances") -> int:
        """How many patients, studies, series or instances it holds."""
        return len(self.rest("GET", f"/{level}"))

    def send(self, to: str = "consilia") -> None:
        """C-STORE all that it holds to the modality `consilia`, as a person at the PACS would."""
        self.rest("POST", f"/modalities/{to}/store", json.dumps(self.rest("GET", "/studies")).encode())

    def rest(self, method: str, path: str, body: bytes | None = None) -> Any:
        """One request to Orthanc's own interface; its JSON."""
        request = urllib.request.Request(self.rest_url + path, body, method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = reply.read()
        return json.loads(text) if text else None


class Orthanc:
    """A context manager around the process."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._pacs = Pacs(free_port(), free_port(), free_port())
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Pacs:
        configuration = self._home / "orthanc.json"
        configuration.write_text(json.dumps(self._configuration()))
        log = (self._home / "orthanc.log").open("wb")
        # killed with the tests, however those end
        command = ["setpriv", "--pdeathsig", "KILL", _program(), str(configuration)]
        self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        log.close()
        try:
            self._await()
        except BaseException:
            self.stop()
            raise
        return self._pacs

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _configuration(self) -> dict[str, object]:
        pacs = self._pacs
        return {
            "Name": "ConsiliaTest",
            "StorageDirectory": str(self._home / "db"),
            "IndexDirectory": str(self._home / "db"),
            "HttpServerEnabled": True,
            "HttpPort": pacs.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomServerEnabled": True,
            "DicomPort": pacs.dicom_port,
            "DicomAet": pacs.aet,
            # Debian's version cannot bind to one address: it refuses whoever is not on loopback instead.
            **{f"DicomAlwaysAllow{verb}": False for verb in ("Echo", "Find", "Get", "Move", "Store")},
            "DicomCheckModalityHost": True,
            "DicomModalities": {"consilia": [pacs.destination_aet, "127.0.0.1", pacs.destination_port]},
            "UnknownSopClassAccepted": True,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "EnableWado": True, "WadoRoot": "/wado"},
        }

    def _await(self) -> None:
        assert self._process is not None
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                self._pacs.rest("GET", "/system")
                return
            except (urllib.error.URLError, OSError):
                alive = self._process.poll() is None
                assert alive and time.monotonic() < until, f"Orthanc does not answer; see {self._home}"
                time.sleep(0.1)


def _program() -> str:
    found = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
    return found if Path(found).is_file() else ""


def require_orthanc() -> None:
    """Skip, loudly; in CI a missing PACS is a failure: an import that was only tried on files is not tested."""
    missing = [
        name for name, there in (("orthanc", _program()), ("orthanc-dicomweb", PLUGIN.is_file())) if not there
    ]
    if not missing:
        return
    reason = f"{', '.join(missing)} missing: apt install orthanc orthanc-dicomweb"
    if os.environ.get("CI"):
        pytest.fail(f"CI must test against a real PACS: {reason}")
    pytest.skip(f"NOT TESTED AGAINST A REAL PACS: {reason}")
