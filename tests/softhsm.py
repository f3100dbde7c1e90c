"""SoftHSM for tests: the PKCS#11 token of Debian's package softhsm2, in a folder that the tests throw away."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from consilia.crypto.token import Token

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "pin-4711-planted"
TOKEN = "hospital"


@dataclass(frozen=True)
class SoftHsm:
    """One initialised token; child processes find it by the environment variable SOFTHSM2_CONF."""

    pin_file: Path
    module: Path = MODULE
    label: str = TOKEN
    pin: str = PIN

    def log_in(self) -> Token:
        """A session that may make keys."""
        return Token(self.module, self.label, self.pin, writable=True)

    def toml(self, name: str) -> str:
        """The settings of a party whose two keys have labels with this name."""
        return f"""signer = "pkcs11"
opener = "pkcs11"
[keys.pkcs11]
module = "{self.module}"
token = "{self.label}"
pin_file = "{self.pin_file}"
account_label = "{name} account"
identity_label = "{name} identity"
"""


def start(folder: Path) -> SoftHsm:
    """Initialise the token. The library reads its configuration once a process, so this comes before any use of it."""
    tool = shutil.which("softhsm2-util")
    if tool is None or not MODULE.exists():
        if os.environ.get("CI"):
            pytest.fail("CI must test keys in a token: apt-get install softhsm2")
        pytest.skip("KEYS IN A TOKEN ARE NOT TESTED: apt-get install softhsm2")
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    command = [tool, "--init-token", "--free", "--label", TOKEN, "--pin", PIN, "--so-pin", "so-4711"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    pin_file = folder / "pin"
    pin_file.touch(mode=0o600)
    pin_file.write_text(PIN + "\n")
    return SoftHsm(pin_file)
