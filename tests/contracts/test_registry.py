"""Who belongs to the consortium: each refusal stands beside what is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boa
import pytest

from consilia.values import Role
from tests.contracts.conftest import VALID_TO, account, founder, load, next_contract

if TYPE_CHECKING:
    from tests.contracts.conftest import Contracts

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ALICE = account(77)


def deploy(*founders: tuple[Any, ...]) -> Any:
    return load("registry", list(founders))


def here() -> str:
    return next_contract(str(boa.env.eoa))


def high_s(signature: bytes) -> bytes:
    """The other signature of the same words, which anybody can compute."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])


def test_founders_are_listed_as_they_signed() -> None:
    record = founder(ALICE, Role.HOSPITAL, here())
    registry = deploy(record)
    admitted = registry.get_logs()[0]
    assert type(admitted).__name__ == "MemberAdmitted"
    assert (admitted.account, admitted.role, admitted.recipient_key) == (ALICE.address, 1, record[1])
    assert (admitted.certificate_digest, admitted.valid_from, admitted.valid_to) == record[3:6]
    assert tuple(registry.member(ALICE.address)) == (*record[:6], 1, 0)
    assert registry.count() == 1


def test_a_founder_signs_with_the_account_it_claims() -> None:
    record = founder(account(78), Role.HOSPITAL, here())
    with boa.reverts("registry: not the founder's signature"):
        deploy((ALICE.address, *record[1:]))


def test_a_signature_for_another_registry_is_worth_nothing() -> None:
    elsewhere = next_contract(str(boa.env.eoa), 5)
    with boa.reverts("registry: not the founder's signature"):
        deploy(founder(ALICE, Role.HOSPITAL, elsewhere))


def test_a_signature_for_another_chain_is_worth_nothing() -> None:
    record = founder(ALICE, Role.HOSPITAL, here())
    boa.env.evm.patch.chain_id += 1
    with boa.reverts("registry: not the founder's signature"):
        deploy(record)


@pytest.mark.parametrize("field", range(6))
def test_no_field_changes_after_the_signature(field: int) -> None:
    record = list(founder(ALICE, Role.HOSPITAL, here()))
    other = [account(79).address, b"\x06" * 32, int(Role.SERVER), b"\x07" * 32, 1, VALID_TO - 1]
    record[field] = other[field]
    with boa.reverts("registry: not the founder's signature"):
        deploy(tuple(record))


def test_the_higher_s_is_refused() -> None:
    record = founder(ALICE, Role.HOSPITAL, here())
    with boa.reverts("registry: not the founder's signature"):
        deploy((*record[:6], high_s(record[6])))
    record = founder(ALICE, Role.HOSPITAL, here())
    deploy((*record[:6], high_s(high_s(record[6]))))  # the flip itself is right


@pytest.mark.parametrize(
    "signature",
    [b"", b"\x01" * 64, b"\x00" * 65, b"\x00" * 64 + b"\x1b"],
    ids=["empty", "short", "zero", "zero with v"],
)
def test_a_malformed_signature_is_refused(signature: bytes) -> None:
    with boa.reverts("registry: not the founder's signature"):
        deploy(founder(ALICE, Role.HOSPITAL, here(), signature=signature))


def test_nobody_signs_for_the_zero_account() -> None:
    # ecrecover answers a malformed signature with the zero address: that must never count as "it signed"
    record = founder(ALICE, Role.HOSPITAL, here(), signature=b"\x00" * 64 + b"\x1b")
    with boa.reverts("registry: not the founder's signature"):
        deploy(("0x" + "00" * 20, *record[1:]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"role": 0}, "registry: unknown role"),
        ({"role": 4}, "registry: unknown role"),
        ({"recipient_key": b"\x00" * 32}, "registry: empty recipient key"),
        ({"valid_from": 5, "valid_to": 5}, "registry: validity ends before it begins"),
    ],
)
def test_a_record_must_make_sense(changes: dict[str, Any], reason: str) -> None:
    with boa.reverts(reason):
        deploy(founder(ALICE, **{"role": Role.HOSPITAL, "registry": here(), **changes}))


def test_nobody_is_listed_twice() -> None:
    with boa.reverts("registry: already a member"):
        deploy(founder(ALICE, Role.HOSPITAL, here()), founder(ALICE, Role.SERVER, here()))


def test_no_two_members_have_one_recipient_key() -> None:
    # envelopes name their recipients by key: the second could open what was sealed for the first
    with boa.reverts("registry: recipient key already listed"):
        deploy(*(founder(account(n), Role.HOSPITAL, here(), recipient_key=b"\x05" * 32) for n in (77, 78)))


def test_a_consortium_needs_a_founder() -> None:
    with boa.reverts("registry: no founder"):
        deploy()


def test_a_member_is_active_in_its_role_only(contracts: Contracts) -> None:
    registry, hospital = contracts.registry, contracts.hospitals[0]
    assert [registry.is_active(hospital, role) for role in (1, 2, 3)] == [True, False, False]
    assert [registry.is_active(contracts.server, role) for role in (1, 2, 3)] == [False, True, False]
    assert [registry.is_active(contracts.auditor, role) for role in (1, 2, 3)] == [False, False, True]
    assert registry.in_good_standing(contracts.auditor)
    assert not any(registry.is_active(contracts.stranger, role) for role in range(4))
    assert not registry.in_good_standing(contracts.stranger)
    assert not registry.is_active(hospital, 0)


def test_a_member_is_active_within_its_validity_only() -> None:
    now = boa.env.evm.patch.timestamp
    registry = deploy(founder(ALICE, Role.SERVER, here(), valid_from=now + 10, valid_to=now + 20))
    active = []
    for moment in (9, 10, 19, 20):
        boa.env.evm.patch.timestamp = now + moment
        active.append(registry.is_active(ALICE.address, Role.SERVER))
        assert registry.in_good_standing(ALICE.address) == active[-1]
    assert active == [False, True, True, False]


def test_members_come_in_pages(contracts: Contracts) -> None:
    registry = contracts.registry
    everybody = [contracts.server, *contracts.hospitals, contracts.auditor]
    assert [m.account for m in registry.members(0, 64)] == everybody
    assert [m.account for m in registry.members(0, 2)] == everybody[:2]
    assert [m.account for m in registry.members(4, 2**255)] == everybody[4:]
    assert registry.members(6, 64) == registry.members(0, 0) == []
    assert registry.count() == 6
