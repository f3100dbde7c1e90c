"""A real S3 server on loopback: Debian's Ceph, one process of each kind, its data in memory, gone with the tests.

Debian: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from consilia.settings.sections import StoreSection

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph-authtool")
START_SECONDS = 120.0
REGION = "us-east-1"

CONFIGURATION = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon data avail crit = 1
mon max pg per osd = 1000
run dir = {home}
admin socket = {home}/$name.asok
log file = {home}/$name.log
crash dir = {home}
keyring = {home}/keyring
[mon.a]
mon data = {home}/mon
[osd.0]
osd data = {home}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd memory target = 939524096
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{ports[2]}
rgw data = {home}/rgw
"""


@dataclass(frozen=True)
class S3Server:
    """Where it answers, and the one user that it has."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)

    def new_bucket(self) -> str:
        """Make a bucket; its name."""
        name = f"bucket-{secrets.token_hex(6)}"
        # obstore makes no buckets, but signs the request that does
        url = obstore.sign(self.objects(name), "PUT", "", timedelta(seconds=60))
        urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
        return name

    def objects(self, bucket: str) -> S3Store:
        """The bucket's bare objects, as the server's operator sees and changes them."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            region=REGION,
            access_key_id=self.access_key,
            secret_access_key=self.secret_key,
            client_options={"allow_http": True},
        )

    def section(
        self, home: Path, bucket: str, patience_seconds: float = 60, endpoint: str = ""
    ) -> StoreSection:
        """The [store] section of a party's settings; writes its two key files into `home`."""
        for name, secret in (("access-key", self.access_key), ("secret-key", self.secret_key)):
            (home / name).touch(mode=0o600)
            (home / name).write_text(secret + "\n")
        return StoreSection(
            url=f"s3://{bucket}/consortium",
            endpoint=endpoint or self.endpoint,
            region=REGION,
            access_key_file=home / "access-key",
            secret_key_file=home / "secret-key",
            patience_seconds=patience_seconds,
        )


def section_toml(section: StoreSection) -> str:
    """The section as a settings file has it."""
    values = section.model_dump(mode="json", exclude_unset=True)
    lines = (f"{key} = {json.dumps(value)}" for key, value in values.items())
    return "[store]\n" + "\n".join(lines) + "\n"


class Ceph:
    """A context manager around the processes."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._processes: list[subprocess.Popen[bytes]] = []
        self._configuration = home / "ceph.conf"
        with socket.socket() as a, socket.socket() as b, socket.socket() as c:
            for listener in (a, b, c):
                listener.bind(("127.0.0.1", 0))
            self._ports = [listener.getsockname()[1] for listener in (a, b, c)]
        self._fsid = str(uuid.uuid4())

    def __enter__(self) -> S3Server:
        try:
            return self._start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop what was started, the newest first."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()

    def _start(self) -> S3Server:
        home = self._home
        for name in ("mon", "osd", "rgw"):
            (home / name).mkdir()
        self._configuration.write_text(CONFIGURATION.format(home=home, fsid=self._fsid, ports=self._ports))
        self._make_keys()
        monmap = str(home / "monmap")
        address = f"[v2:127.0.0.1:{self._ports[0]},v1:127.0.0.1:{self._ports[1]}]"
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", str(home / "keyring"))
        self._daemon("ceph-mon", "-i", "a")
        self._run("ceph", "osd", "create")
        self._run("ceph-osd", "-i", "0", "--mkfs")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default")
        self._daemon("ceph-osd", "-i", "0")
        access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
        self._run("radosgw-admin", "user", "create", "--uid=consilia", "--display-name=Consilia",
                  f"--access-key={access_key}", f"--secret-key={secret_key}")  # fmt: skip
        self._daemon("radosgw", "-n", "client.rgw.a")
        server = S3Server(f"http://127.0.0.1:{self._ports[2]}", access_key, secret_key)
        self._await(server.endpoint)
        return server

    def _make_keys(self) -> None:
        keyring = str(self._home / "keyring")
        self._run(
            "ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"
        )
        for name, monitor in (
            ("client.admin", "allow *"),
            ("osd.0", "allow profile osd"),
            ("client.rgw.a", "allow *"),
        ):
            capabilities = ["--cap", "mon", monitor, "--cap", "osd", "allow *"]
            self._run("ceph-authtool", keyring, "--gen-key", "-n", name, *capabilities)

    def _run(self, program: str, *arguments: str) -> None:
        command = [
            program,
            *([] if program in ("monmaptool", "ceph-authtool") else ["-c", str(self._configuration)]),
        ]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=START_SECONDS)
        assert done.returncode == 0, f"{program} {arguments}: {done.stderr[-2000:]}"

    def _daemon(self, program: str, *arguments: str) -> None:
        # killed with the tests, however those end
        command = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            program,
            "-c",
            str(self._configuration),
            "-f",
            *arguments,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)

    def _await(self, endpoint: str) -> None:
        until = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(endpoint, timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                alive = all(process.poll() is None for process in self._processes)
                assert alive and time.monotonic() < until, f"radosgw does not answer; see {self._home}"
                time.sleep(0.2)


def unavailable(reason: str) -> None:
    """Skip, loudly; in CI a missing server is a failure: a store that was only tried in memory is not tested."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must test against a real S3 server: {reason}")
    pytest.skip(f"NOT TESTED AGAINST A REAL S3 SERVER: {reason}")


def require_programs() -> None:
    """Skip where Ceph is not installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        unavailable(f"{', '.join(missing)} missing: apt install ceph-mon ceph-osd radosgw")
