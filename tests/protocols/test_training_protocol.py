"""The values and decisions of a round: when the server waits, what it tells, and what it reads of strangers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import VerificationError
from consilia.protocols.task_spec import parse_toml
from consilia.protocols.training import (
    Decision,
    LocalMetrics,
    Outcome,
    RoundClock,
    RoundReport,
    SkippedStudy,
    TaskContexts,
    UpdateOutcome,
    decide_round,
    from_bitmap,
    to_bitmap,
)
from tests.consortium import spec_toml

WAIT, GO, END = Decision.WAIT, Decision.AGGREGATE, Decision.GIVE_UP
DEADLINE = 1000.0


@pytest.mark.parametrize(
    ("usable", "refused", "quorum_since", "now", "decision"),
    [
        (0, 0, None, 0, WAIT),
        (1, 0, None, 999, WAIT),
        (1, 0, None, 1000, END),  # the deadline, below the quorum
        (2, 0, 100, 100, WAIT),  # the quorum, and still some patience with the others
        (2, 0, 100, 129, WAIT),
        (2, 0, 100, 130, GO),
        (2, 0, None, 100, WAIT),  # the quorum is reached this very moment
        (2, 0, 990, 1000, GO),  # the deadline cuts the patience short
        (4, 0, 100, 100, GO),  # everybody
        (2, 2, 100, 100, GO),  # nobody waits for those who were rejected
        (3, 0, 100, 110, WAIT),
        (1, 3, None, 10, END),  # everybody came, and too few can be used
        (0, 4, None, 10, END),
        (1, 2, None, 999, WAIT),
    ],
)
def test_when_the_server_waits(
    usable: int, refused: int, quorum_since: float | None, now: float, decision: Decision
) -> None:
    spec = parse_toml(spec_toml(4, quorum=2, grace_seconds=30.0))
    clock = RoundClock(DEADLINE, quorum_since)
    assert decide_round(spec, 4, usable, refused, clock, now) is decision


@given(st.sets(st.integers(0, 511)))
def test_a_bitmap_holds_its_positions(positions: set[int]) -> None:
    words = to_bitmap(positions)
    assert all(0 <= word < 2**256 for word in words)
    assert from_bitmap(words) == tuple(sorted(positions))
    assert sum(word.bit_count() for word in words) == len(positions)


def test_the_bits_are_where_the_contract_looks() -> None:
    assert to_bitmap([0, 2]) == (5, 0) and to_bitmap([256]) == (0, 1) and to_bitmap([511]) == (0, 2**255)


METRICS = LocalMetrics(0.5, 20, 1.25, 3, (SkippedStudy("a.dcm", "no pixels"),))
REPORT = RoundReport(
    7,
    2,
    (
        UpdateOutcome("0x" + "aa" * 20, Outcome.INCLUDED, "", 0, 10, 800, METRICS),
        UpdateOutcome("0x" + "bb" * 20, Outcome.MISSING, "nothing came"),
    ),
)


@pytest.mark.parametrize("value", [METRICS, REPORT])
def test_what_was_written_is_read(value: LocalMetrics | RoundReport) -> None:
    assert type(value).from_bytes(value.to_bytes()) == value
    assert REPORT.included == REPORT.updates[:1]


@pytest.mark.parametrize("value", [METRICS, REPORT])
@pytest.mark.parametrize(
    "harm", ["space", "unknown key", "missing key", "key twice", "deep", "bytes", "list"]
)
def test_anything_else_is_refused(value: LocalMetrics | RoundReport, harm: str) -> None:
    good = value.to_bytes()
    raw = json.loads(good)
    first = sorted(raw)[0]
    compact = {"sort_keys": True, "separators": (",", ":")}
    harmed = {
        "space": good.replace(b",", b", ", 1),
        "unknown key": json.dumps(raw | {"zzz": 1}, **compact).encode(),
        "missing key": json.dumps({k: v for k, v in raw.items() if k != first}, **compact).encode(),
        "key twice": good[:-1] + b"," + good[1:],
        "deep": b"[" * 100_000,
        "bytes": b"\xff" + good,
        "list": b"[]",
    }[harm]
    with pytest.raises(VerificationError):
        type(value).from_bytes(harmed)


@pytest.mark.parametrize("loss", ["NaN", "Infinity", "1e999", '"0.5"', "true", "null", "9" * 5000, "1"])
def test_a_loss_that_is_no_plain_number_is_refused(loss: str) -> None:
    harmed = METRICS.to_bytes().replace(b'"loss":0.5', b'"loss":' + loss.encode())
    with pytest.raises(VerificationError):
        LocalMetrics.from_bytes(harmed)


def test_half_a_character_is_refused() -> None:
    harmed = METRICS.to_bytes().replace(b"a.dcm", b"\\ud800")
    with pytest.raises(VerificationError):
        LocalMetrics.from_bytes(harmed)


def test_every_artifact_of_a_task_has_a_context_of_its_own() -> None:
    hospital, other, server, contract = ("0x" + byte * 20 for byte in ("aa", "bb", "cc", "dd"))
    encoded = []
    for chain_id, task_id in ((1, 1), (2, 1), (1, 2)):
        contexts = TaskContexts(chain_id, contract, task_id, server)
        encoded += [contexts.key_string().encode()]
        for index in (0, 1):
            encoded += [contexts.model(index).encode(), contexts.round_report(index).encode()]
            encoded += [contexts.update(index, hospital).encode(), contexts.update(index, other).encode()]
            encoded += [contexts.update(index, server).encode()]
    assert len(set(encoded)) == len(encoded)
