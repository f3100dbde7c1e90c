"""The homes behind a second opinion: several processes on one, a restored one, one whose disk is full."""

from __future__ import annotations

import errno
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consilia.protocols.diagnosis import QueryState
from consilia.roles.diagnosis import answering, consultation
from consilia.values import Digest
from tests.consortium import consortium
from tests.roles.asking import LESION, MODEL, Clinic

ANSWERED, OPENED, PASSED = QueryState.ANSWERED, QueryState.OPENED, QueryState.PASSED
RELEASED = QueryState.RELEASED


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clinic]:
    """A hospital that asks, a server that answers, and two more hospitals."""
    with consortium(tmp_path, monkeypatch) as town:
        yield Clinic(town)


def openings(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every envelope that a side opens, slowly enough for another process to come meanwhile."""
    opened = []
    honest = module.fetch_artifact

    def fetch_artifact(*arguments: Any) -> Any:
        opened.append(arguments)
        time.sleep(0.3)
        return honest(*arguments)

    monkeypatch.setattr(module, "fetch_artifact", fetch_artifact)
    return opened


def at_once(*processes: Any) -> None:
    """Let them take their steps at the same time."""
    threads = [threading.Thread(target=process.advance) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_processes_of_a_hospitals_home_open_the_reports_once(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hospital run` beside `consult`: neither takes the other's half-written file for the server's answer."""
    query_id = clinic.query_in(ANSWERED)
    opened = openings(consultation, monkeypatch)
    at_once(clinic.hospital, clinic.town.new_hospital(0).consultation)
    assert len(opened) == 1 and clinic.query(query_id).state is OPENED


def test_two_processes_of_a_servers_home_answer_once(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    """`server run --serve` beside `--spec`: neither refuses a query for the other's half-written file."""
    query_id = clinic.ask()
    opened = openings(answering, monkeypatch)
    first = clinic.server
    clinic.town.server = clinic.town.new_server()
    at_once(first, clinic.new_server())
    assert len(opened) == 1 and clinic.query(query_id).state is ANSWERED


@pytest.mark.parametrize("state", [ANSWERED, PASSED, RELEASED])
def test_a_hospital_restored_from_its_backup_goes_on_with_its_query(
    clinic: Clinic, state: QueryState
) -> None:
    """What it asked is in the store, sealed to its own key too."""
    query_id = clinic.query_in(state)
    shutil.rmtree(clinic.hospital.party.home / "consultations")
    opinion = clinic.run(query_id)
    assert opinion.query.state is RELEASED and opinion.diagnoses[0][1].codes == (LESION,)


def test_a_full_disk_ends_neither_side(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/path/of/this/host")

    query_id = clinic.ask()
    for module, party, name in (
        (answering, clinic.server, "server"),
        (consultation, clinic.hospital, "hospital-1"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, "fetch_artifact", full)
            party.advance()
        said = [facts["reason"] for _, facts in clinic.town.steps[name].said if "reason" in facts]
        assert said == ["No space left on device"]
        party.advance()
    assert clinic.query(query_id).state is OPENED


def test_only_what_can_be_asked_is_on_offer(clinic: Clinic) -> None:
    """A card that nobody can read hides no other offer, and a server that has left costs nobody its archive."""
    (offer,) = clinic.hospital.offers()
    clinic.server.contract.offer(
        "a card that is none",
        model_digest=MODEL,
        code_book=Digest.of(b"another"),
        price_wei=1,
        bond_wei=1,
        recipient_key=clinic.town.server.identity.recipient,
        card=b"\xff garbage",
    )
    assert clinic.hospital.offers() == [offer]
    clinic.town.server.ledger.registry.leave("leave")
    assert clinic.hospital.offers() == []
