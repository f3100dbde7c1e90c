"""Every word with which a contract refuses is one that a test provokes."""

from __future__ import annotations

import re
from pathlib import Path

import consilia.contracts

SOURCES = Path(consilia.contracts.__file__).parent


def test_each_refusal_is_named_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    refusals = {
        word for path in SOURCES.glob("*.vy") for word in re.findall(r'"(\w+: [^"]+)"', path.read_text())
    }
    assert len(refusals) > 100
    assert not {word for word in refusals if word.partition(": ")[2] not in tests}
