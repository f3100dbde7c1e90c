"""Second opinions between processes' objects on a mined chain: what docs/protocols/diagnosis.md promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from consilia.cli.report.consulted import certificate_of
from consilia.errors import InputError, TransactionRevertedError
from consilia.ledger.embedded.server import RpcServer
from consilia.ledger.registry import Kind
from consilia.protocols.answer import codes_behind
from consilia.protocols.assurance import Standing
from consilia.protocols.diagnosis import HEALTHY, ImageRole, QueryImage, QueryState
from consilia.protocols.findings import Finding
from consilia.protocols.query import make_query
from consilia.roles.audit.home import audit
from consilia.roles.diagnosis import consultation
from consilia.roles.diagnosis.diagnoser import task_id_of
from consilia.roles.progress import silent
from tests.consortium import consortium
from tests.orthanc import free_port
from tests.roles.asking import (
    BOND_WEI,
    LESION,
    MODEL,
    OTHER,
    PRICE_WEI,
    SILENCES,
    SIZE,
    Clinic,
    Seer,
    Silence,
    case,
    known,
    picture,
    wrong_half,
    wrong_place,
)

ASKED, ANSWERED, OPENED, PASSED, ACCEPTED, RELEASED, FAILED, STOPPED = QueryState
CANDIDATES = (HEALTHY, (LESION,), (OTHER,), (LESION, OTHER))


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clinic]:
    """A hospital, another one, and a server with a model."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Clinic(town)


# The ordinary course


def test_an_honest_server_passes_and_the_hospital_gets_its_diagnosis(clinic: Clinic) -> None:
    query_id = clinic.ask()
    opinion = clinic.run(query_id)
    query = opinion.query
    assert query.state is RELEASED and (query.matches, query.audits, query.images) == (20, 20, 32)
    ((image, diagnosis),) = opinion.diagnoses
    assert image.name == "the patient" and diagnosis.codes == (LESION,)
    (found,), (true,) = diagnosis.findings, picture(1900)[1]
    assert found.box_xyxy == true.box_xyxy and found.score == 0.9
    assert set(opinion.transactions) == {
        "Asked", "Answered", "AuditOpened", "Scored", "Accepted", "AnswersReleased", "QueryClosed"
    }  # fmt: skip
    assert not opinion.failed and not opinion.spoilt and clinic.seer.calls == 1
    assert query.server_wei == PRICE_WEI + BOND_WEI
    clinic.settled()
    audit(clinic.town.home, silent)


def test_a_careless_server_fails_and_the_hospital_gets_error_and_its_fee(clinic: Clinic) -> None:
    clinic.seer.spoil = wrong_half
    opinion = clinic.run(clinic.ask())
    query = opinion.query
    assert query.state is FAILED and query.matches < query.threshold and opinion.failed
    assert not opinion.diagnoses and not query.hidden_openings
    assert (query.hospital_wei, query.server_wei) == (PRICE_WEI, BOND_WEI)
    clinic.settled()


def test_several_real_cases_cover_one_another(clinic: Clinic) -> None:
    images = [replace(i, role=ImageRole.REAL) if i.role is ImageRole.COVER else i for i in case()]
    opinion = clinic.run(clinic.ask(images))
    assert len(opinion.diagnoses) == 12
    assert {image.name for image, _ in opinion.diagnoses} >= {"the patient", "cover-3"}


def test_boxes_in_the_wrong_corner_fail_although_every_code_is_right(clinic: Clinic) -> None:
    clinic.seer.spoil = wrong_place
    opinion = clinic.run(clinic.ask())
    query = opinion.query
    assert query.state is FAILED and query.reason == "boxes do not agree"
    assert query.scored_matches == 20 and query.matches == query.threshold - 1
    assert query.challenged.bit_count() == 5 and opinion.failed
    clinic.settled()


def test_a_few_boxes_apart_are_forgiven(clinic: Clinic) -> None:
    clinic.seer.spoil = lambda place, found: wrong_place(place, found) if place < 4 else found
    query_id = clinic.ask()
    assert clinic.run(query_id).query.state is RELEASED


def test_an_answer_waits_for_its_time(clinic: Clinic) -> None:
    clinic.answer_seconds = 1000
    clinic.server = clinic.new_server()
    query_id = clinic.ask()
    clinic.server.advance()
    assert clinic.query(query_id).state is ASKED and clinic.seer.calls == 1
    clinic.town.let_pass(990 - (clinic.town.clock.time() - clinic.query(query_id).asked_at))
    clinic.server.advance()
    assert clinic.query(query_id).state is ASKED
    clinic.town.let_pass(20)
    clinic.server.advance()
    assert clinic.query(query_id).state is ANSWERED and clinic.seer.calls == 1


# What is refused


def test_one_bad_image_fails_the_query_and_not_the_server(clinic: Clinic) -> None:
    images = case()
    images[3] = replace(images[3], pixels=bytes(SIZE * SIZE))
    opinion = clinic.run(clinic.ask(images))
    assert opinion.query.state is STOPPED and "corrupt" in opinion.query.reason and opinion.failed
    assert opinion.query.hospital_wei == PRICE_WEI
    assert clinic.run(clinic.ask(case(seed=3000))).query.state is RELEASED
    clinic.settled()


def test_images_of_another_size_are_refused_on_both_sides(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [replace(image, pixels=image.pixels[:-1]) for image in case()]
    with pytest.raises(InputError, match="pixels"):
        clinic.ask(images)
    images[0] = case()[0]
    with pytest.raises(InputError, match="one size"):
        clinic.ask(images)

    honest = consultation.write_package
    monkeypatch.setattr(consultation, "write_package", lambda *a: honest(*a) + b"more")
    query_id = clinic.ask()
    clinic.server.advance()
    assert clinic.query(query_id).state is STOPPED and "bytes" in clinic.query(query_id).reason


def test_a_suspended_hospital_is_refused_from_the_next_block_on(clinic: Clinic) -> None:
    clinic.hospital = clinic.town.hospitals[1].consultation  # the first one mines
    waiting = clinic.ask(case(seed=5000))
    clinic.town.decide(Kind.SUSPENSION, 1)
    with pytest.raises(TransactionRevertedError, match="not an active hospital"):
        clinic.ask()
    clinic.server.advance()
    assert clinic.query(waiting).state is STOPPED and clinic.query(waiting).reason == "party not active"


def test_reports_that_are_not_there_are_declined(clinic: Clinic) -> None:
    query_id = clinic.query_in(ANSWERED)
    root = clinic.query(query_id).reports_root
    assert root is not None
    clinic.town.lose_object(root)
    clinic.hospital.advance()
    query = clinic.query(query_id)
    assert query.state is STOPPED and (query.hospital_wei, query.server_wei) == (PRICE_WEI, BOND_WEI)
    clinic.settled()


def test_reports_other_than_those_of_the_ledger_are_declined(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    from consilia.roles.diagnosis import answering

    honest = answering.write_reports
    monkeypatch.setattr(answering, "write_reports", lambda a: honest(a)[:-1] + b"\x00")
    query_id = clinic.query_in(ANSWERED)
    clinic.hospital.advance()
    assert clinic.query(query_id).state is STOPPED and "not those" in clinic.query(query_id).reason


# Whoever cheats


def test_before_it_has_committed_a_server_can_only_guess(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It means to answer audit images well and the rest badly; what it holds of a query tells it nothing."""
    query_id = clinic.ask()
    held = clinic.server._open(clinic.query(query_id))  # all that it has when it commits
    own = clinic.hospital.own(clinic.query(query_id))
    assert held.pixels == tuple(image.pixels for image in own.images)
    assert {field.name for field in fields(held)} == {"query_id", "image_format", "label_secrets", "pixels"}
    place, images = clinic.hospital.place, case()
    real_hits, audit_hits, queries = np.zeros(3), np.zeros(3), 300
    for number in range(queries):
        query = make_query(place, clinic.town.addresses[0], images, 16, number.to_bytes(32, "big"))
        keys = [query.secrets.label_secret(j) for j in range(32)]
        brightness = [sum(image.pixels) for image in query.images]
        for row, rank in enumerate((list(range(32)), keys, brightness)):
            ordered = sorted(range(32), key=rank.__getitem__)
            audit_hits[row] += len({*ordered[:20]} & {*query.audits})
            real_hits[row] += ordered[-1] in query.real
    # 20 of 32 guessed blindly: 12.5 hits, of variance 3.0; the real one: once in 32 times; 4 standard deviations.
    # Brightness is no chance here: these few images are the same each time, and the archive's to choose alike.
    assert (abs(audit_hits[:2] / queries - 12.5) < 4 * (3.03 / queries) ** 0.5).all()
    assert (real_hits[:2] / queries < 1 / 32 + 4 * (1 / 32 / queries) ** 0.5).all()


def test_a_server_that_answers_half_of_them_badly_is_caught_by_the_audit(clinic: Clinic) -> None:
    """It means to answer audit images well and the rest badly; which are which it must guess."""
    clinic.seer.spoil = lambda place, found: found if place < 20 else (Finding(OTHER, (1, 1, 5, 5)),)
    query_id = clinic.ask()
    opinion = clinic.run(query_id)
    audited_badly = sum(j >= 20 for j in clinic.hospital.own(opinion.query).audits)
    assert opinion.query.scored_matches == 20 - audited_badly
    assert opinion.query.state is (FAILED if audited_badly > 4 else RELEASED)


def test_the_server_can_show_that_a_label_was_false(clinic: Clinic) -> None:
    """A hospital commits to false labels: it gets its fee back and no diagnosis, and leaves the proof behind."""
    images = [
        replace(i, truth=(Finding(OTHER, (1, 1, 9, 9)),)) if i.role is ImageRole.AUDIT else i for i in case()
    ]
    query_id = clinic.ask(images)
    opinion = clinic.run(query_id)
    query = opinion.query
    assert query.state is FAILED and query.hospital_wei == PRICE_WEI and opinion.failed
    answer = clinic.server._kept(query)
    audits = [j for j in range(query.images) if query.roles >> j & 1]
    for x, j in zip(query.xs, audits, strict=True):
        said = codes_behind(query_id, j, answer.label_secrets[j], x, CANDIDATES)
        assert said == (OTHER,)  # and the image, under the root that the hospital registered, shows another


def test_a_spoilt_report_of_the_real_case_is_told_and_its_codes_are_found(
    clinic: Clinic, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.contracts.garbling import Garbled

    query_id = clinic.ask()
    own = clinic.hospital.own(clinic.query(query_id))
    (real,) = own.real
    honest = clinic.server._prepared

    def spoil(query: object) -> Garbled:
        made = honest(query)
        return Garbled(made.query_id, made.secret, made.label_secrets, made.reports, real, (5,) * 8)

    monkeypatch.setattr(clinic.server, "_prepared", spoil)
    opinion = clinic.run(query_id)
    assert opinion.query.state is RELEASED and not opinion.diagnoses and "the patient" in opinion.spoilt[0]
    y = opinion.query.openings()[real][1]
    assert codes_behind(query_id, real, own.secrets.label_secret(real), y, CANDIDATES) == (LESION,)


# Whoever falls silent


@pytest.mark.parametrize("silence", SILENCES, ids=lambda silence: silence.state.name)
def test_whoever_vanishes_pays_what_the_protocol_says(clinic: Clinic, silence: Silence) -> None:
    clinic.fall_silent(silence)


def test_a_server_that_sees_the_audit_and_leaves_pays_and_has_missed_it(clinic: Clinic) -> None:
    """The audits opened show it that it fails: leaving the consortium keeps neither its bond nor its record."""
    clinic.seer.spoil = wrong_half
    query_id = clinic.query_in(OPENED)
    clinic.town.server.ledger.registry.leave("leave")
    clinic.hospital.advance()
    assert clinic.query(query_id).state is OPENED
    clinic.town.let_pass(86_401)
    clinic.hospital.advance()
    query = clinic.query(query_id)
    assert query.state is STOPPED and (query.hospital_wei, query.server_wei) == (PRICE_WEI + BOND_WEI, 0)
    record = certificate_of(clinic.hospital.log(), MODEL)
    assert (record.matches, record.audits, record.silent) == (0, 20, 1)
    assert record.standing is Standing.REVOKED


def test_a_hospital_that_is_silent_after_the_score_delays_the_server_by_a_day(clinic: Clinic) -> None:
    query_id = clinic.query_in(PASSED)
    clinic.server.advance()
    assert clinic.query(query_id).state is PASSED
    clinic.town.let_pass(86_401)
    clinic.server.advance()
    assert clinic.query(query_id).state is RELEASED
    assert clinic.hospital.opinion(clinic.query(query_id)).diagnoses


def test_a_server_that_is_late_keeps_its_answers(clinic: Clinic) -> None:
    query_id = clinic.query_in(ACCEPTED)
    clinic.town.let_pass(86_400 - 300)
    clinic.server.advance()
    assert clinic.query(query_id).state is ACCEPTED


# kill -9


def test_both_may_be_killed_after_every_step(clinic: Clinic) -> None:
    """Everything is made again from the homes; nothing is asked, answered or paid twice."""
    images = case()
    query_id = clinic.ask(images)
    clinic.restart()
    assert clinic.ask(images) == query_id  # goes on with what it began
    for _ in range(6):
        clinic.server.advance()
        clinic.restart()
        clinic.hospital.advance()
        clinic.restart()
    opinion = clinic.hospital.opinion(clinic.query(query_id))
    assert opinion.query.state is RELEASED and opinion.diagnoses[0][1].codes == (LESION,)
    assert clinic.seer.calls == 1 and len(clinic.hospital.log().queries) == 1
    assert len(clinic.hospital.log().offers) == 1
    clinic.settled()


class _Killed(BaseException):
    """kill -9: no handler runs."""


@pytest.mark.parametrize("name", ["diagnosis/", "query/", "reports/"])
def test_killed_before_each_deed_it_goes_on_with_the_same_secrets(
    clinic: Clinic, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies at each transaction, and after each envelope, once; then everything goes through."""
    from consilia.ledger.client import Ledger
    from consilia.roles.diagnosis import answering

    seen: set[str] = set()
    write, publish = Ledger.write, consultation.publish_artifact

    def dying_write(ledger: Ledger, key: str, *arguments: object, **named: object) -> object:
        if key.startswith(name) and key not in seen:
            seen.add(key)
            raise _Killed
        return write(ledger, key, *arguments, **named)

    def dying_publish(store: object, state: object, key: str, *arguments: object) -> object:
        made = publish(store, state, key, *arguments)
        if key.startswith(name) and key not in seen:
            seen.add(key)
            raise _Killed
        return made

    monkeypatch.setattr(Ledger, "write", dying_write)
    for module in (answering, consultation):
        monkeypatch.setattr(module, "publish_artifact", dying_publish)
    images = case()
    while True:
        try:
            query_id = clinic.ask(images)
            opinion = clinic.run(query_id)
            break
        except _Killed:
            clinic.restart()
    assert opinion.query.state is RELEASED and len(opinion.diagnoses) == 1
    assert len(clinic.hospital.log().queries) == 1 and len(seen) >= (7 if name == "diagnosis/" else 1)


# Small things


def test_a_query_that_is_none_is_refused_before_anything_leaves(clinic: Clinic) -> None:
    many = (Finding(LESION, (0, 0, 4, 4)),) * 9
    for images, required in (
        (case()[1:], 16),
        (case(), 21),
        ([replace(case()[0], truth=()), *case()[1:]], 16),
        ([*case()[:-1], QueryImage("x", ImageRole.AUDIT, picture(1)[0])], 16),
        ([*case()[:-1], replace(known(1), truth=many)], 16),
    ):
        with pytest.raises(InputError):
            clinic.ask(images, required)
    with pytest.raises(InputError, match="offer"):
        clinic.hospital.ask(99, case(), 16)
    assert not clinic.hospital.log().queries


def test_a_withdrawn_model_is_not_offered_again(clinic: Clinic) -> None:
    (offer,) = clinic.hospital.offers()
    clinic.server.withdraw(offer.offer_id)
    clinic.server.offer()
    assert not clinic.hospital.offers()


def test_a_seer_is_loaded_once(clinic: Clinic) -> None:
    first, second = clinic.ask(case(seed=1)), clinic.ask(case(seed=6000))
    for query_id in (first, second):
        assert clinic.run(query_id).query.state is RELEASED
    assert isinstance(clinic.seer, Seer) and clinic.seer.calls == 2


def test_a_server_that_starts_beside_the_nodes_waits_for_what_they_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own node answers, the others do not yet: until then nothing is confirmed, and no task known."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        town.start_server()
        task = town.finish()
        late = free_port()
        settings = town.home / "server" / "consilia.toml"
        text = settings.read_text().replace("[ledger]", f'[ledger]\nwitnesses = ["http://127.0.0.1:{late}"]')
        settings.write_text(text + "[[diagnosis.offers]]\ntask = 1\nprice_wei = 1\nbond_wei = 1\n")
        server = town.new_server()
        assert not server.tasks()
        server.await_history(0.0)  # told that it waits no longer
        node = RpcServer(town.node.methods(), "127.0.0.1", late)
        threading.Timer(0.5, node.start).start()
        server.await_history(60.0)
        assert task_id_of(1, server.tasks()) == task.task_id
        assert town.server_said("waiting for the ledger to tell of the tasks of the offers")
        node.close()
