"""What is committed, and goes into the wheel, is what the sources compile to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consilia.contracts import build

PUSH0 = 0x5F
PUSH1, PUSH32 = 0x60, 0x7F
CODE_LIMIT = 24_576  # EIP-170


def test_the_committed_artifacts_fit_the_sources() -> None:
    assert build.stale_artifacts() == []


def test_a_changed_source_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(build.FOLDER, tmp_path / "contracts")
    monkeypatch.setattr(build, "FOLDER", tmp_path / "contracts")
    monkeypatch.setattr(build, "ARTIFACTS", tmp_path / "contracts" / "artifacts")
    monkeypatch.setattr(build, "CONTRACTS", ("registry",))
    assert build.main(["--check"]) == 0  # another folder, the same artifact
    module = tmp_path / "contracts" / "typed_data.vy"
    module.write_text(module.read_text().replace("v != 28", "v != 29"))
    assert build.main(["--check"]) == 1  # the registry imports it
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0


@pytest.mark.parametrize("name", build.CONTRACTS)
def test_the_bytecode_runs_by_londons_rules(name: str) -> None:
    # PUSH0 came with Shanghai: on a London chain it burns all gas and says nothing
    artifact = json.loads((build.ARTIFACTS / f"{name}.json").read_text())
    code = bytes.fromhex(artifact["bytecode"].removeprefix("0x"))
    assert len(code) < CODE_LIMIT
    position = 0
    end = len(code) - 200  # the compiler's metadata and immutables are no code
    while position < end:
        assert code[position] != PUSH0
        is_push = PUSH1 <= code[position] <= PUSH32
        position += 1 + (code[position] - PUSH1 + 1 if is_push else 0)


def test_reading_the_artifacts_needs_no_compiler() -> None:
    program = (
        "import sys, consilia.ledger.client as c; c.contract_abi('training'); print('vyper' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
