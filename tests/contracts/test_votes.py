"""Members decide by vote: each refusal stands beside what is accepted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import boa
import pytest

from consilia.ledger.registry import Kind
from consilia.values import Digest, Role
from tests.contracts.conftest import VALID_TO, account
from tests.contracts.test_registry import high_s
from tests.contracts.voting import (
    EMERGENCY_SECONDS,
    EMERGENCY_VOTE_SECONDS,
    FOR_GOOD,
    PAUSE_SECONDS,
    VOTE_SECONDS,
    Town,
    town,
    wait,
)


@pytest.fixture
def four() -> Town:
    """A server and three hospitals: 3 of 4 decide, 2 suspend at once."""
    return town(3)


@pytest.fixture
def five() -> Town:
    """A server and four hospitals: 3 of 5 decide, 2 suspend at once."""
    return town(4)


def names(registry: Any) -> list[str]:
    return [type(event).__name__ for event in registry.get_logs()]


# Admission


def test_a_newcomer_is_admitted_by_more_than_half(four: Town) -> None:
    key, application = four.newcomer()
    proposal = four.apply(key, application, by=1)
    assert names(four.registry) == ["Proposed", "ApplicationFiled", "Voted"]
    assert four.needed(proposal) == (1, 3)
    four.vote(proposal, 2)
    assert not four.registry.in_good_standing(key.address)
    four.vote(proposal, 0)
    assert names(four.registry) == ["Voted", "Enacted", "MemberAdmitted"]
    assert four.registry.is_active(key.address, Role.HOSPITAL)
    assert four.registry.electorate() == four.registry.count() == 5
    four.registry.vote(four.propose(Kind.REMOVAL, 1), sender=key.address)  # it votes like everybody


def test_the_applicant_signs_its_record_with_the_account_that_it_claims(four: Town) -> None:
    key, application = four.newcomer()
    for wrong in (account(91), four.keys[0]):
        with boa.reverts("registry: not the applicant's signature"):
            four.apply(wrong, application)
    four.apply(key, application)


@pytest.mark.parametrize(
    "change",
    [
        {"account": account(91).address},
        {"recipient_key": b"\x06" * 32},
        {"role": Role.SERVER},
        {"certificate_digest": Digest(b"\x07" * 32)},
        {"valid_from": 1},
        {"valid_to": VALID_TO - 1},
        {"replaces": account(1).address},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_field_of_an_application_changes_after_the_signature(four: Town, change: dict[str, Any]) -> None:
    key, application = four.newcomer()
    signature = application.sign(key, boa.env.evm.patch.chain_id, str(four.registry.address))
    with boa.reverts("registry: not the applicant's signature"):
        four.apply(key, replace(application, **change), signature=signature)
    with boa.reverts("registry: not the applicant's signature"):
        four.apply(key, application, signature=high_s(signature))
    four.apply(key, application, signature=signature)


def test_an_application_for_another_registry_or_chain_is_worth_nothing(four: Town) -> None:
    key, application = four.newcomer()
    chain_id, here = boa.env.evm.patch.chain_id, str(four.registry.address)
    for signature in (
        application.sign(key, chain_id + 1, here),
        application.sign(key, chain_id, key.address),
    ):
        with boa.reverts("registry: not the applicant's signature"):
            four.apply(key, application, signature=signature)


def test_the_proofs_are_those_that_the_applicant_signed(four: Town) -> None:
    key, application = four.newcomer()
    with boa.reverts("registry: not the application's proofs"):
        four.apply(key, application, proofs=b"others")
    four.apply(key, application)


def test_an_application_must_make_sense(four: Town) -> None:
    now = boa.env.evm.patch.timestamp
    member_key = bytes(four.registry.member(four.address(1)).recipient_key)
    for change, reason in (
        ({"role": 4}, "registry: unknown role"),
        ({"role": 0}, "registry: unknown role"),
        ({"recipient_key": bytes(32)}, "registry: empty recipient key"),
        ({"recipient_key": member_key}, "registry: recipient key already listed"),
        ({"valid_from": VALID_TO}, "registry: validity ends before it begins"),
        ({"valid_to": now}, "registry: validity is over"),
    ):
        key, application = four.newcomer(**change)
        with boa.reverts(reason):
            four.apply(key, application)
    with boa.reverts("registry: already a member"):
        four.apply(four.keys[1], replace(application, account=four.address(1), valid_to=VALID_TO))
    with boa.reverts("registry: not a voting member"):
        four.registry.propose(int(Kind.REMOVAL), four.address(1), sender=key.address)


def test_an_application_is_used_once(four: Town) -> None:
    key, application = four.newcomer()
    four.vote(four.apply(key, application), 1, 2)
    four.keys.append(key)
    four.decide(Kind.REMOVAL, 4, 0, 1, 2)
    with boa.reverts("registry: application already used"):  # it agreed to join then, not for ever
        four.apply(key, application)
    four.vote(four.apply(key, replace(application, certificate_digest=Digest.of(b"new"))), 1, 2)
    assert four.registry.in_good_standing(key.address)
    assert four.registry.count() == 5  # not listed twice


def test_two_applications_for_one_account_are_one_admission(four: Town) -> None:
    key, application = four.newcomer()
    first = four.apply(key, application)
    second = four.apply(key, replace(application, role=Role.SERVER))
    four.vote(first, 1, 2)
    four.vote(second, 1)
    with boa.reverts("registry: already a member"):
        four.vote(second, 2)


# Votes


def test_a_member_votes_once(four: Town) -> None:
    proposal = four.propose(Kind.SUSPENSION, 3)
    for again in (0, 1):
        if again == 1:
            four.vote(proposal, 1)
        with boa.reverts("registry: already voted"):
            four.vote(proposal, again)
    assert four.needed(proposal) == (2, 3)
    assert four.registry.has_voted(proposal, four.address(1)) and not four.registry.has_voted(
        proposal, four.address(2)
    )


def test_strangers_do_not_vote_and_unknown_proposals_take_no_votes(four: Town) -> None:
    proposal = four.propose(Kind.SUSPENSION, 3)
    with boa.reverts("registry: not a voting member"):
        four.registry.vote(proposal, sender=account(90).address)
    for call in (four.registry.vote, four.registry.enact):
        with boa.reverts("registry: no such proposal"):
            call(proposal + 1, sender=four.address(1))
    with boa.reverts("registry: unknown kind"):
        four.registry.propose(2, four.address(1), sender=four.address(0))
    with boa.reverts("registry: unknown kind"):
        four.registry.propose(7, four.address(1), sender=four.address(0))


def test_a_vote_expires(four: Town) -> None:
    proposal = four.propose(Kind.SUSPENSION, 3)
    four.vote(proposal, 1)
    wait(VOTE_SECONDS - 1)
    four.vote(four.propose(Kind.SUSPENSION, 2), 1)
    wait(1)
    with boa.reverts("registry: vote has expired"):
        four.vote(proposal, 2)
    with boa.reverts("registry: vote has expired"):
        four.registry.enact(proposal, sender=four.address(0))
    assert four.active() == [0, 1, 2, 3]


def test_an_emergency_vote_expires_sooner(five: Town) -> None:
    proposal = five.propose(Kind.EMERGENCY, 3)
    wait(EMERGENCY_VOTE_SECONDS)
    with boa.reverts("registry: vote has expired"):
        five.vote(proposal, 1)


def test_what_is_decided_is_decided_once(four: Town) -> None:
    proposal = four.decide(Kind.SUSPENSION, 3, 0, 1, 2)
    with boa.reverts("registry: already decided"):
        four.vote(proposal, 2)
    with boa.reverts("registry: already decided"):
        four.registry.enact(proposal, sender=four.address(0))


def test_votes_of_suspended_members_do_not_count(five: Town) -> None:
    doomed = five.propose(Kind.REMOVAL, 2, by=4)
    five.vote(doomed, 3)
    five.decide(Kind.SUSPENSION, 4, 0, 1, 2)
    assert five.needed(doomed) == (1, 3)  # 3 of the 4 that are left, and the vote of number 4 is void
    with boa.reverts("registry: not a voting member"):
        five.vote(five.propose(Kind.REMOVAL, 2), 4)
    five.vote(doomed, 0)
    assert five.registry.in_good_standing(five.address(2))
    five.vote(doomed, 1)
    assert not five.registry.in_good_standing(five.address(2))


def test_what_has_enough_votes_since_the_members_changed_can_be_carried_out(five: Town) -> None:
    proposal = five.decide(Kind.SUSPENSION, 4, 0, 1)
    with boa.reverts("registry: too few votes"):
        five.registry.enact(proposal, sender=five.address(0))
    five.registry.leave(sender=five.address(2))
    assert five.needed(proposal) == (2, 3)
    five.registry.leave(sender=five.address(3))
    assert five.needed(proposal) == (2, 2)
    five.registry.enact(proposal, sender=account(90).address)  # anybody
    assert five.active() == [0, 1]


# Suspension, lifting, removal, leaving


def test_a_suspended_member_may_do_nothing_until_that_is_lifted(four: Town) -> None:
    four.decide(Kind.SUSPENSION, 3, 0, 1, 2)
    assert names(four.registry) == ["Voted", "Enacted", "MemberSuspended"]
    subject = four.address(3)
    assert four.registry.member(subject).suspended_until == FOR_GOOD
    assert not four.registry.is_active(subject, Role.HOSPITAL) and not four.registry.may_vote(subject)
    assert four.registry.electorate() == 3
    with boa.reverts("registry: already suspended"):
        four.propose(Kind.SUSPENSION, 3)
    with boa.reverts("registry: not suspended"):
        four.propose(Kind.LIFTING, 2)
    four.decide(Kind.LIFTING, 3, 0, 1)
    assert names(four.registry) == ["Voted", "Enacted", "SuspensionLifted"]
    assert four.registry.is_active(subject, Role.HOSPITAL) and four.registry.electorate() == 4


def test_a_removed_member_is_none(four: Town) -> None:
    four.decide(Kind.REMOVAL, 3, 0, 1, 2)
    assert names(four.registry) == ["Voted", "Enacted", "MemberRemoved"]
    assert not four.registry.in_good_standing(four.address(3))
    for kind in (Kind.SUSPENSION, Kind.EMERGENCY, Kind.LIFTING, Kind.REMOVAL):
        with boa.reverts("registry: not a member"):
            four.propose(kind, 3)
    with boa.reverts("registry: not a member"):
        four.registry.leave(sender=four.address(3))
    assert [member.status for member in four.registry.members(0, 64)] == [1, 1, 1, 2]


def test_a_suspended_member_can_be_removed_without_being_counted_out_twice(four: Town) -> None:
    four.decide(Kind.SUSPENSION, 3, 0, 1, 2)
    four.decide(Kind.REMOVAL, 3, 0, 1)
    assert four.registry.electorate() == 3 and not four.registry.has_left(four.address(3))


def test_a_member_leaves_at_once(four: Town) -> None:
    four.registry.leave(sender=four.address(3))
    (event,) = four.registry.get_logs()
    assert type(event).__name__ == "MemberRemoved"
    assert (event.account, event.by_itself) == (four.address(3), True)
    assert four.registry.has_left(four.address(3)) and not four.registry.has_left(four.address(2))
    assert four.active() == [0, 1, 2] and four.registry.electorate() == 3


def test_the_last_ones_cannot_leave(four: Town) -> None:
    four.registry.leave(sender=four.address(3))
    four.registry.leave(sender=four.address(2))
    with boa.reverts("registry: the last hospital"):
        four.registry.leave(sender=four.address(1))
    four.registry.leave(sender=four.address(0))
    with boa.reverts("registry: the last hospital"):
        four.registry.leave(sender=four.address(1))


# Emergencies


def test_a_few_suspend_at_once_and_for_a_while(five: Town) -> None:
    proposal = five.propose(Kind.EMERGENCY, 4)
    assert five.needed(proposal) == (1, 2)  # never one alone
    five.vote(proposal, 1)
    assert five.active() == [0, 1, 2, 3]
    assert five.registry.electorate() == 5  # it still counts: a few must not become the majority by this
    wait(EMERGENCY_SECONDS - 1)
    assert 4 not in five.active()
    wait(1)
    assert 4 in five.active() and five.registry.may_vote(five.address(4))


def test_an_alarm_is_not_renewed_by_the_few_who_raised_it(five: Town) -> None:
    five.decide(Kind.EMERGENCY, 4, 0, 1)
    with boa.reverts("registry: already suspended"):
        five.propose(Kind.EMERGENCY, 4)
    wait(EMERGENCY_SECONDS)
    with boa.reverts("registry: needs the ordinary quorum"):
        five.propose(Kind.EMERGENCY, 4)
    wait(PAUSE_SECONDS)
    five.decide(Kind.EMERGENCY, 4, 0, 1)
    assert 4 not in five.active()


def test_a_lifted_alarm_is_not_renewed_either(five: Town) -> None:
    five.decide(Kind.EMERGENCY, 4, 0, 1)
    five.decide(Kind.LIFTING, 4, 0, 2, 3)
    assert 4 in five.active()
    with boa.reverts("registry: needs the ordinary quorum"):
        five.propose(Kind.EMERGENCY, 4)


def test_the_majority_makes_an_alarm_last(five: Town) -> None:
    five.decide(Kind.EMERGENCY, 4, 0, 1)
    five.decide(Kind.SUSPENSION, 4, 0, 1, 2)
    assert five.registry.electorate() == 4
    wait(EMERGENCY_SECONDS)
    assert 4 not in five.active()


def test_a_few_cannot_suspend_themselves_into_a_majority(five: Town) -> None:
    five.decide(Kind.EMERGENCY, 4, 0, 1)
    five.decide(Kind.EMERGENCY, 3, 0, 1)
    with boa.reverts("registry: too few would be left to decide"):  # 3 of 5 are needed, 3 can vote
        five.decide(Kind.EMERGENCY, 2, 0, 1)
    removal = five.propose(Kind.REMOVAL, 2)
    five.vote(removal, 1)
    assert five.needed(removal) == (2, 3) and five.active() == [0, 1, 2]


def test_ended_alarms_make_room_for_new_ones(five: Town) -> None:
    for subject in (4, 3):
        five.decide(Kind.EMERGENCY, subject, 0, 1)
    wait(EMERGENCY_SECONDS)
    for subject in (1, 2):
        five.decide(Kind.EMERGENCY, subject, 0, 3)
    assert five.active() == [0, 3, 4]


def test_there_is_an_end_to_emergencies() -> None:
    many = town(40)
    many.vote(many.registry.propose_quorum(50, 0, sender=many.address(0)), *range(1, 21))
    for subject in range(25, 41):
        many.decide(Kind.EMERGENCY, subject, 0, 1)
    with boa.reverts("registry: too many emergencies"):
        many.decide(Kind.EMERGENCY, 24, 0, 1)
    wait(EMERGENCY_SECONDS)
    many.decide(Kind.EMERGENCY, 24, 0, 1)


def test_an_alarm_does_not_leave_the_chain_without_a_miner() -> None:
    small = town(1)
    for number in (90, 91, 92):
        key, application = small.newcomer(number, role=Role.AUDITOR)
        proposal = small.apply(key, application)
        small.keys.append(key)
        small.vote(proposal, *range(1, {90: 2, 91: 2, 92: 3}[number]))
    for kind, voters in ((Kind.EMERGENCY, (0, 2)), (Kind.SUSPENSION, (0, 2, 3)), (Kind.REMOVAL, (0, 2, 3))):
        with boa.reverts("registry: the last hospital"):
            small.decide(kind, 1, *voters)


# Another record for a member


def test_a_member_gets_another_recipient_key(four: Town) -> None:
    proposal = four.apply(four.keys[3], four.renewal(3, recipient_key=b"\x66" * 32), by=3)
    four.vote(proposal, 1, 2)
    assert names(four.registry) == ["Voted", "Enacted", "RecipientKeyChanged", "ValidityChanged"]
    assert four.registry.member(four.address(3)).recipient_key == b"\x66" * 32
    assert four.registry.electorate() == four.registry.count() == 4
    # the old key is free, the new one is not
    key, application = four.newcomer(recipient_key=b"\x66" * 32)
    with boa.reverts("registry: recipient key already listed"):
        four.apply(key, application)


def test_a_member_gets_another_account(four: Town) -> None:
    new = account(90)
    proposal = four.apply(new, four.renewal(3, account=new.address))
    four.vote(proposal, 1, 2)
    assert names(four.registry) == ["Voted", "Enacted", "AccountChanged", "MemberAdmitted"]
    assert four.registry.is_active(new.address, Role.HOSPITAL)
    assert not four.registry.in_good_standing(four.address(3))
    assert four.registry.electorate() == 4
    with boa.reverts("registry: account already used"):  # nor can it come back as another's
        four.apply(four.keys[3], four.renewal(2, account=four.address(3), recipient_key=b"\x67" * 32))


def test_the_new_account_signs(four: Town) -> None:
    new = account(90)
    for wrong in (four.keys[3], four.keys[0]):
        with boa.reverts("registry: not the applicant's signature"):
            four.apply(wrong, four.renewal(3, account=new.address))


def test_a_certificate_is_renewed(four: Town) -> None:
    change = {"valid_from": 7, "valid_to": VALID_TO + 1, "certificate_digest": Digest.of(b"2027")}
    four.vote(four.apply(four.keys[3], four.renewal(3, **change), by=3), 0, 1)
    assert names(four.registry) == ["Voted", "Enacted", "ValidityChanged"]
    record = four.registry.member(four.address(3))
    assert (record.valid_from, record.valid_to) == (7, VALID_TO + 1)


def test_a_change_keeps_role_and_suspension(four: Town) -> None:
    with boa.reverts("registry: a role never changes"):
        four.apply(four.keys[3], four.renewal(3, role=Role.SERVER))
    with boa.reverts("registry: not a member"):
        four.apply(four.keys[3], four.renewal(3, replaces=account(90).address))
    four.decide(Kind.EMERGENCY, 3, 0, 1)
    new = account(90)
    four.vote(four.apply(new, four.renewal(3, account=new.address)), 1, 2)
    assert not four.registry.in_good_standing(new.address)
    wait(EMERGENCY_SECONDS)
    assert four.registry.in_good_standing(new.address)
    four.keys.append(new)
    with boa.reverts("registry: needs the ordinary quorum"):
        four.propose(Kind.EMERGENCY, 4)


def test_lapsed_members_can_still_renew_one_another() -> None:
    now = boa.env.evm.patch.timestamp
    lapsed = town(2, valid_to=now + 100)
    wait(100)
    assert lapsed.active() == []
    renewal = lapsed.renewal(1, valid_to=now + 1000, certificate_digest=Digest.of(b"new"))
    lapsed.vote(lapsed.apply(lapsed.keys[1], renewal, by=1), 2)
    assert lapsed.active() == [1]


# The quorum


def test_the_quorum_changes_by_vote(four: Town) -> None:
    proposal = four.registry.propose_quorum(75, 30, sender=four.address(0))
    assert four.needed(proposal) == (
        1,
        4,
    )  # 75 % of 4 is 3, and more than that are needed: show that they agree
    four.vote(proposal, 1, 2)
    assert four.registry.percent() == 50
    four.vote(proposal, 3)
    assert names(four.registry) == ["Voted", "Enacted", "QuorumChanged"]
    assert (four.registry.percent(), four.registry.emergency_percent()) == (75, 30)
    lower = four.registry.propose_quorum(50, 25, sender=four.address(0))
    assert four.needed(lower) == (1, 4)  # the old one decides on its end


def test_a_quorum_is_at_least_half_and_never_more_than_all(four: Town) -> None:
    for percent in (0, 49, 100, 2**255):
        with boa.reverts("registry: quorum out of range"):
            four.registry.propose_quorum(percent, 25, sender=four.address(0))
    with boa.reverts("registry: emergency quorum above the quorum"):
        four.registry.propose_quorum(60, 61, sender=four.address(0))
    for percent in (50, 99):
        four.registry.propose_quorum(percent, percent, sender=four.address(0))


def test_a_quorum_that_changes_in_the_middle_counts_from_then_on(five: Town) -> None:
    suspension = five.propose(Kind.SUSPENSION, 4)
    five.vote(suspension, 1)
    assert five.needed(suspension) == (2, 3)
    quorum = five.registry.propose_quorum(70, 25, sender=five.address(0))
    five.vote(quorum, 1, 2, 3)
    assert five.needed(suspension) == (2, 4)
    five.vote(suspension, 2)
    assert 4 in five.active()
    five.vote(suspension, 3)
    assert 4 not in five.active()


def test_a_founder_alone_decides_alone() -> None:
    alone = town(1)
    alone.registry.leave(sender=alone.address(0))
    key, application = alone.newcomer()
    alone.apply(key, application, by=1)
    assert alone.registry.in_good_standing(key.address)
    second = alone.apply(*alone.newcomer(91), by=1)
    assert alone.needed(second) == (1, 2)  # from now on both
