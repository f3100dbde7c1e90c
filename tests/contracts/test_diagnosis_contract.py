"""contracts/diagnosis.vy step by step: what each admits, and beside it all that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import boa
import pytest

from consilia.protocols.diagnosis import ImageRole, QueryState, list_digest, reports_digest, roles_commitment
from consilia.protocols.findings import Finding
from consilia.values import Digest
from tests.contracts.asking import BOND_WEI, DAY, HERE, PRICE_WEI, Asking
from tests.contracts.conftest import Contracts
from tests.contracts.garbling import garbled

ASKED, ANSWERED, OPENED, PASSED, ACCEPTED, RELEASED, FAILED, STOPPED = QueryState
JUNK = Digest.of(b"junk")


@pytest.fixture
def asking(contracts: Contracts) -> Asking:
    """A model on offer."""
    made = Asking(contracts)
    made.offer()
    return made


def refused(reason: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    with boa.reverts(f"diagnosis: {reason}"):
        call(*arguments, **named)


# The ordinary course


def test_a_query_that_passes_pays_the_server_when_it_releases(asking: Asking) -> None:
    query_id = asking.query_in(ASKED)
    (event,) = asking.events()
    assert event["event"] == "Asked" and event["query_id"] == query_id == asking.asked[query_id].query_id
    assert event["deadline"] == asking.now + DAY and asking.balance() == PRICE_WEI
    asking.answer(query_id, wrong=1)
    (event,) = asking.events()
    assert (event["event"], event["query_id"]) == ("Answered", query_id)
    assert asking.balance() == PRICE_WEI + BOND_WEI
    asking.open_audit(query_id)
    (event,) = asking.events()
    assert (event["event"], event["roles"]) == ("AuditOpened", asking.asked[query_id].bitmap)
    asking.score(query_id)
    (event,) = asking.events()
    query = asking.asked[query_id]
    assert (
        event["event"] == "Scored"
        and event["matches"] == 3
        and event["matched"] == query.bitmap & ~(1 << query.audits[0])
    )
    asking.accept(query_id)
    assert [event["event"] for event in asking.events()] == ["Accepted"]
    asking.release(query_id)
    released, closed = asking.events()
    assert (released["event"], closed["event"]) == ("AnswersReleased", "QueryClosed")
    assert len(released["us"]) == 3 and closed["state"] == RELEASED and closed["server_wei"] == 1100
    assert asking.credits() == (0, PRICE_WEI + BOND_WEI) and asking.record(query_id).matches == 3
    before = boa.env.get_balance(asking.server)
    asking.diagnosis.claim(sender=asking.server)
    (paid,) = asking.events()
    assert paid["event"] == "DiagnosisCreditPaid" and paid["account"] == asking.server
    assert paid["amount_wei"] == PRICE_WEI + BOND_WEI
    assert boa.env.get_balance(asking.server) == before + PRICE_WEI + BOND_WEI
    assert asking.balance() == asking.diagnosis.open_wei() == 0
    refused("nothing to claim", asking.diagnosis.claim, sender=asking.server)


def test_below_the_threshold_the_fee_goes_back_and_nothing_else_is_opened(asking: Asking) -> None:
    query_id = asking.query_in(OPENED, wrong=2)
    asking.score(query_id)
    scored, closed = asking.events()
    assert scored["matches"] == 2 and closed["reason"] == "too few matches"
    assert asking.state(query_id) == FAILED and asking.credits() == (PRICE_WEI, BOND_WEI)
    refused("nothing to release", asking.release, query_id)
    refused("nothing to expire", asking.diagnosis.expire, query_id)


# Step 0


def test_only_an_active_server_offers(contracts: Contracts) -> None:
    asking = Asking(contracts)
    for other in (asking.hospital, contracts.auditor, contracts.stranger):
        refused("not an active server", asking.offer, sender=other)
    refused("too much money", asking.offer, price_wei=2**128)
    refused("too much money", asking.offer, bond_wei=2**128)
    refused("empty digest", asking.offer, model_digest=bytes(32))
    refused("empty digest", asking.offer, code_book=bytes(32))
    refused("empty recipient key", asking.offer, recipient_key=bytes(32))
    assert asking.offer() == 1
    (offered,) = asking.events()
    assert (offered["event"], offered["offer_id"], offered["server"]) == ("ModelOffered", 1, asking.server)
    assert asking.offer() == 2
    assert asking.diagnosis.model_offer(2).server == asking.server


def test_a_withdrawn_offer_takes_no_more_queries_and_finishes_the_open_ones(asking: Asking) -> None:
    open_query = asking.query_in(ANSWERED)
    refused("not your offer", asking.diagnosis.withdraw, 1, sender=asking.hospital)
    asking.diagnosis.withdraw(1, sender=asking.server)
    assert [(event["event"], event["offer_id"]) for event in asking.events()] == [("OfferWithdrawn", 1)]
    refused("already withdrawn", asking.diagnosis.withdraw, 1, sender=asking.server)
    refused("offer withdrawn", asking.ask)
    asking.open_audit(open_query)
    asking.score(open_query)
    assert asking.state(open_query) == PASSED


# Step 1


def test_what_cannot_be_asked(asking: Asking) -> None:
    refused("no such offer", asking.ask, offer_id=2)
    refused("no such offer", asking.ask, offer_id=0)
    refused("not the price", asking.ask, value=PRICE_WEI - 1)
    refused("not the price", asking.ask, value=PRICE_WEI + 1)
    for other in (asking.server, asking.contracts.auditor, asking.contracts.stranger):
        refused("not an active hospital", asking.ask, sender=other)
    refused("no image is hidden", asking.ask, audits=7)
    refused("no image is hidden", asking.ask, images=129)
    refused("threshold out of range", asking.ask, threshold=0)
    refused("threshold out of range", asking.ask, threshold=5)
    refused("empty root or key", asking.ask, root=bytes(32))
    refused("empty root or key", asking.ask, recipient_key=bytes(32))
    query = asking.make()
    asking.ask(query)
    refused("already asked", asking.ask, query)


def test_two_hospitals_with_one_salt_have_two_queries(asking: Asking) -> None:
    query = asking.make()
    assert asking.ask(query) != asking.ask(query, sender=asking.other)


# Step 2


def test_only_the_server_answers_once_in_time_with_its_bond(asking: Asking) -> None:
    query_id = asking.query_in(ASKED)
    refused("not the server", asking.answer, query_id, sender=asking.hospital)
    refused("not the bond", asking.answer, query_id, value=BOND_WEI - 1)
    refused("not the bond", asking.answer, query_id, value=BOND_WEI + 1)
    refused("empty root", asking.answer, query_id, root=bytes(32))
    unknown = Digest.of(b"no query")
    refused(
        "not the server", asking.diagnosis.answer, unknown, JUNK, JUNK, JUNK, JUNK, 1, sender=asking.server
    )
    asking.answer(query_id)
    refused("not the time for this step", asking.answer, query_id)
    late = asking.query_in(ASKED)
    asking.let_pass(DAY)
    refused("too late", asking.answer, late)


def test_a_server_refuses_with_a_reason(asking: Asking) -> None:
    query_id = asking.query_in(ASKED)
    refused("not the server", asking.diagnosis.refuse, query_id, "no", sender=asking.hospital)
    asking.diagnosis.refuse(query_id, "image 3 is corrupt", sender=asking.server)
    (closed,) = asking.events()
    assert closed["reason"] == "image 3 is corrupt" and asking.credits() == (PRICE_WEI, 0)
    refused("not the time for this step", asking.diagnosis.refuse, query_id, "no", sender=asking.server)
    answered = asking.query_in(ANSWERED)
    refused("not the time for this step", asking.diagnosis.refuse, answered, "no", sender=asking.server)


# Step 3


def test_a_hospital_declines_what_it_cannot_read(asking: Asking) -> None:
    query_id = asking.query_in(ANSWERED)
    refused("not the hospital", asking.diagnosis.decline, query_id, "no", sender=asking.server)
    asking.diagnosis.decline(query_id, "no reports", sender=asking.hospital)
    assert asking.credits() == (PRICE_WEI, BOND_WEI) and asking.state(query_id) == STOPPED
    opened = asking.query_in(OPENED)
    refused("not the time for this step", asking.diagnosis.decline, opened, "no", sender=asking.hospital)


def test_a_hospital_that_opens_a_false_label_is_refused(asking: Asking) -> None:
    """Whatever it changes of what it committed to, the contract takes none of it."""
    query_id = asking.query_in(ANSWERED)
    query = asking.asked[query_id]
    honest = [query.label(j) for j in query.audits]
    lying = replace(query, images=tuple(replace(i, truth=(Finding(999, HERE),)) if i.truth is not None else i
                                        for i in query.images))  # fmt: skip
    false = [lying.label(query.audits[0]), *honest[1:]]
    refused("another label than asked", asking.open_audit, query_id, xs=false)
    marks = [lying.mark(query.audits[0]), *[query.mark(j) for j in query.audits[1:]]]
    refused("another label than asked", asking.open_audit, query_id, marks=marks)
    refused("other labels than asked", asking.open_audit, query_id, labels=lying.commitments())
    swapped = query.bitmap ^ (1 << query.audits[0]) ^ (1 << query.real[0])
    refused("other roles than asked", asking.open_audit, query_id, roles=swapped)
    refused("other roles than asked", asking.open_audit, query_id, salt=JUNK)
    refused("not every audit image", asking.open_audit, query_id, xs=honest[1:])
    refused("not every audit image", asking.open_audit, query_id, marks=marks[1:])
    refused("not a label for each image", asking.open_audit, query_id, labels=query.commitments()[1:])
    refused("not the hospital", asking.open_audit, query_id, sender=asking.server)
    asking.let_pass(DAY)
    refused("too late", asking.open_audit, query_id)
    asking.diagnosis.expire(query_id)  # all that is left is silence, and that pays the server
    assert asking.credits() == (0, PRICE_WEI + BOND_WEI)


def test_roles_that_do_not_fit_the_numbers_cannot_be_opened(asking: Asking) -> None:
    query = asking.make()
    for bitmap in (query.bitmap | 1 << 200, query.bitmap ^ 1 << query.audits[-1]):
        other = replace(query, secrets=replace(query.secrets, seed=bitmap.to_bytes(32, "big")))
        query_id = Digest(asking.place.query_id(asking.hospital, other.secrets.salt()))
        bound = replace(query, query_id=query_id, secrets=other.secrets)
        salt = bound.secrets.roles_salt()
        asking.ask(bound, roles=roles_commitment(query_id, salt, bitmap))
        asking.answer(query_id)
        refused("roles and numbers differ", asking.open_audit, query_id, roles=bitmap)


# Step 4


def test_a_server_cannot_change_its_answers_after_the_opening(asking: Asking) -> None:
    """It knows the labels now: x_j is on the ledger, and what it opens must still be what it committed to."""
    query_id = asking.query_in(OPENED, wrong=4)
    query, answer = asking.asked[query_id], asking.answers[query_id]
    xs = [query.label(j) for j in query.audits]
    us, ys = answer.opening(query.audits)
    refused("another answer than given", asking.score, query_id, ys=xs)
    refused("another answer than given", asking.score, query_id, us=[JUNK, *us[1:]])
    better = replace(answer, reports=tuple(asking.reports(query)))
    refused("other answers than given", asking.score, query_id, answers=better.commitments(), ys=xs)
    refused("other answers than given", asking.score, query_id, reports=JUNK)
    refused("other labels than opened", asking.score, query_id, xs=ys)
    refused("not every answer", asking.score, query_id, us=us[:-1], ys=ys[:-1])
    refused("not every answer", asking.score, query_id, us=[*us, JUNK], ys=[*ys, JUNK])
    refused("not an answer for each image", asking.score, query_id, us=us[1:])
    refused("not the server", asking.score, query_id, sender=asking.hospital)
    asking.let_pass(DAY)
    refused("too late", asking.score, query_id)


def test_nothing_is_released_before_the_score_or_while_it_can_be_challenged(asking: Asking) -> None:
    for state in (ASKED, ANSWERED, OPENED):
        query_id = asking.query_in(state)
        if query_id in asking.answers:
            refused("nothing to release", asking.release, query_id)
        refused("not the time for this step", asking.accept, query_id)
    query_id = asking.query_in(PASSED)
    refused("the hospital may still challenge", asking.release, query_id)
    refused("not the hospital", asking.accept, query_id, sender=asking.server)
    asking.let_pass(DAY)
    refused("too late", asking.accept, query_id)
    asking.release(query_id)
    assert asking.credits()[1] == PRICE_WEI + BOND_WEI


def test_an_answer_of_another_query_is_worth_nothing(asking: Asking) -> None:
    first, second = asking.query_in(OPENED), asking.query_in(OPENED)
    stolen = asking.answers[first].opening(asking.asked[second].audits)
    refused("another answer than given", asking.score, second, us=stolen[0], ys=stolen[1])


# Challenges


def test_boxes_in_the_wrong_place_are_challenged_until_the_query_fails(asking: Asking) -> None:
    query_id = asking.query_in(PASSED, misplaced=2)
    query = asking.asked[query_id]
    first, second = [j for j in query.audits if query.images[j].truth][:2]
    asking.challenge(query_id, first)
    (event,) = asking.events()
    assert event["event"] == "Challenged" and event["matches"] == 3 and asking.state(query_id) == PASSED
    refused("already challenged", asking.challenge, query_id, first)
    asking.challenge(query_id, second)
    assert asking.state(query_id) == FAILED and asking.credits() == (PRICE_WEI, BOND_WEI)
    assert asking.record(query_id).matches == 2
    refused("nothing to release", asking.release, query_id)


def test_a_challenge_without_ground_is_refused(asking: Asking) -> None:
    query_id = asking.query_in(PASSED, wrong=1, misplaced=1)
    query, answer = asking.asked[query_id], asking.answers[query_id]
    unmatched = query.audits[0]
    ill = [j for j in query.audits[1:] if query.images[j].truth]
    healthy = [j for j in query.audits[1:] if not query.images[j].truth]
    position = next(j for j in ill if answer.reports[j] != query.images[j].truth)
    fine = [j for j in (*ill, *healthy) if j != position]
    for j in fine:
        refused("the boxes agree", asking.challenge, query_id, j)
    refused("not a match", asking.challenge, query_id, unmatched)
    refused("not an audit image", asking.challenge, query_id, query.real[0])
    refused("not the hospital", asking.challenge, query_id, position, sender=asking.server)
    elsewhere = query.truth_words(position)
    moved = (elsewhere[0] + (1 << 48), *elsewhere[1:])
    refused("another truth than asked", asking.challenge, query_id, position, truth=moved)
    refused("another truth than asked", asking.challenge, query_id, position, truth_salt=JUNK)
    refused("another truth than asked", asking.challenge, query_id, position, label_secret=JUNK)
    refused("other labels than asked", asking.challenge, query_id, position, labels=answer.commitments())
    refused("other answers than given", asking.challenge, query_id, position, answers=query.commitments())
    refused("other answers than given", asking.challenge, query_id, position, digests=query.commitments())
    refused("not a match", asking.challenge, query_id, position, u=JUNK)
    refused("another report than given", asking.challenge, query_id, position, report=[1] * 8)
    asking.let_pass(DAY)
    refused("too late", asking.challenge, query_id, position)


def test_no_challenge_before_the_score_nor_after_acceptance(asking: Asking) -> None:
    for state in (OPENED, ACCEPTED, RELEASED):
        query_id = asking.query_in(state, misplaced=1)
        position = next(j for j in asking.asked[query_id].audits if asking.asked[query_id].images[j].truth)
        refused("not the time for this step", asking.challenge, query_id, position)


@pytest.mark.parametrize(
    "word", [2**256 - 1, 7 << 64 | 9 << 48, 7 << 64 | 5 << 48 | 5 << 32 | 1, 1 << 96 | 7 << 64 | 50]
)
def test_a_garbled_report_loses_and_never_stops_the_challenge(asking: Asking, word: int) -> None:
    """A server that knows that its box is wrong commits to words on which a careless contract would revert."""
    query_id = asking.query_in(ASKED)
    query = asking.asked[query_id]
    position = next(j for j in query.audits if query.images[j].truth)
    answer = garbled(query_id, query, asking.reports(query), position, word)
    digests = (list_digest(answer.commitments()), reports_digest(answer.sealed_reports()))
    asking.diagnosis.answer(query_id, *digests, JUNK, JUNK, 9, sender=asking.server, value=BOND_WEI)
    asking.answers[query_id] = answer
    asking.open_audit(query_id)
    asking.score(query_id)
    asking.challenge(query_id, position)
    assert asking.record(query_id).matches == 3


# Step 5


def test_the_hidden_answers_must_be_all_and_as_given(asking: Asking) -> None:
    query_id = asking.query_in(ACCEPTED)
    query, answer = asking.asked[query_id], asking.answers[query_id]
    hidden = [j for j, image in enumerate(query.images) if image.role is not ImageRole.AUDIT]
    us, ys = answer.opening(hidden)
    refused("not every answer", asking.release, query_id, us=us[:-1], ys=ys[:-1])
    refused("another answer than given", asking.release, query_id, ys=[JUNK, *ys[1:]])
    refused("another answer than given", asking.release, query_id, us=[JUNK, *us[1:]])
    refused("other answers than given", asking.release, query_id, reports=JUNK)
    refused("not the server", asking.release, query_id, sender=asking.hospital)
    audits = answer.opening(query.audits)
    refused("another answer than given", asking.release, query_id, us=audits[0][:3], ys=audits[1][:3])
    asking.let_pass(DAY)
    refused("too late", asking.release, query_id)


# Time


@pytest.mark.parametrize(
    ("state", "days", "reason", "hospital_wei", "server_wei"),
    [
        (ASKED, 1, "no answer", PRICE_WEI, 0),
        (ANSWERED, 1, "audit not opened", 0, PRICE_WEI + BOND_WEI),
        (OPENED, 1, "no score", PRICE_WEI + BOND_WEI, 0),
        (PASSED, 2, "no release", PRICE_WEI + BOND_WEI, 0),
        (ACCEPTED, 1, "no release", PRICE_WEI + BOND_WEI, 0),
    ],
)
def test_whoever_stops_pays(
    asking: Asking, state: QueryState, days: int, reason: str, hospital_wei: int, server_wei: int
) -> None:
    query_id = asking.query_in(state)
    asking.let_pass(days * DAY - 1)
    refused("still in time", asking.diagnosis.expire, query_id)
    asking.let_pass(1)
    asking.diagnosis.expire(query_id, sender=asking.contracts.stranger)
    (closed,) = asking.events()
    assert closed["reason"] == reason and asking.state(query_id) == STOPPED
    assert asking.credits() == (hospital_wei, server_wei)
    refused("nothing to expire", asking.diagnosis.expire, query_id)


@pytest.mark.parametrize("state", [ASKED, ANSWERED, OPENED, PASSED, ACCEPTED])
@pytest.mark.parametrize("who", ["hospital", "server"])
def test_a_party_that_is_out_ends_its_queries_and_loses_nothing_by_it(
    asking: Asking, state: QueryState, who: str
) -> None:
    query_id = asking.query_in(state)
    asking.suspend(getattr(asking, who))
    if state is ASKED:
        refused("a party is not active", asking.answer, query_id)
        refused("not an active hospital" if who == "hospital" else "server not active", asking.ask)
    if state is ACCEPTED:
        refused("a party is not active", asking.release, query_id)
    asking.diagnosis.expire(query_id)
    assert asking.credits() == (PRICE_WEI, 0 if state is ASKED else BOND_WEI)
    if asking.credits()[who == "server"]:  # what a stolen key cannot fetch
        refused("not an active member", asking.diagnosis.claim, sender=getattr(asking, who))


@pytest.mark.parametrize("who", ["hospital", "server"])
def test_a_question_ends_when_a_party_leaves_before_its_answer(asking: Asking, who: str) -> None:
    query_id = asking.query_in(ASKED)
    asking.contracts.registry.leave(sender=getattr(asking, who))
    refused("a party is not active", asking.answer, query_id)
    asking.diagnosis.expire(query_id)
    assert asking.events()[0]["reason"] == "party not active" and asking.credits() == (PRICE_WEI, 0)


@pytest.mark.parametrize("suspended_first", [False, True])
@pytest.mark.parametrize(
    ("state", "leaver", "days", "reason", "hospital_wei", "server_wei"),
    [
        (ANSWERED, "hospital", 1, "audit not opened", 0, PRICE_WEI + BOND_WEI),
        (OPENED, "server", 1, "no score", PRICE_WEI + BOND_WEI, 0),
        (ACCEPTED, "server", 1, "no release", PRICE_WEI + BOND_WEI, 0),
    ],
)
def test_who_leaves_has_fallen_silent(
    asking: Asking,
    suspended_first: bool,
    state: QueryState,
    leaver: str,
    days: int,
    reason: str,
    hospital_wei: int,
    server_wei: int,
) -> None:
    """A server that sees the audit, or a hospital that has its answer, does not get away by leaving.

    Who was put out by others and leaves then could do nothing else, and loses nothing.
    """
    query_id = asking.query_in(state)
    if suspended_first:
        asking.suspend(getattr(asking, leaver))
    asking.contracts.registry.leave(sender=getattr(asking, leaver))
    if suspended_first:
        asking.diagnosis.expire(query_id)
        assert asking.credits() == (PRICE_WEI, BOND_WEI)
        return
    refused("still in time", asking.diagnosis.expire, query_id)
    asking.let_pass(days * DAY)
    asking.diagnosis.expire(query_id)
    assert asking.events()[0]["reason"] == reason and asking.credits() == (hospital_wei, server_wei)


def test_a_hospital_that_leaves_after_the_opening_still_pays(asking: Asking) -> None:
    query_id = asking.query_in(OPENED)
    asking.contracts.registry.leave(sender=asking.hospital)
    asking.score(query_id)
    asking.let_pass(DAY)
    asking.release(query_id)
    assert asking.credits() == (0, PRICE_WEI + BOND_WEI)


def test_who_leaves_while_the_other_is_out_changes_nothing(asking: Asking) -> None:
    query_id = asking.query_in(OPENED)
    asking.suspend(asking.hospital)
    asking.contracts.registry.leave(sender=asking.server)
    asking.diagnosis.expire(query_id)
    assert asking.credits() == (PRICE_WEI, BOND_WEI)


def test_nothing_expires_that_is_over_or_was_never_asked(asking: Asking) -> None:
    query_id = asking.query_in(RELEASED)
    asking.let_pass(5 * DAY)
    refused("nothing to expire", asking.diagnosis.expire, query_id)
    refused("nothing to expire", asking.diagnosis.expire, JUNK)
    assert asking.record(JUNK).state == 0
