"""Other people's money: nobody is paid twice, and what is owed is there, whatever is called in what order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import boa
import pytest
from eth.exceptions import Revert
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consilia.values import Role
from tests.contracts.conftest import RICH_WEI, VALID_TO, account, founder, load, next_contract

if TYPE_CHECKING:
    pass

CLAIM_SECONDS = 90 * 86400
DEAL = 7


@dataclass
class Escrow:
    """An escrow whose controller is an account, so that a test can say what no training contract would."""

    contract: Any
    controller: str
    members: list[str]
    funders: list[str]
    stranger: str


def make_escrow() -> Escrow:
    deployer = str(boa.env.eoa)
    keys = [account(number + 1) for number in range(5)]
    roles = [Role.HOSPITAL] * 3 + [Role.SERVER] * 2
    here = next_contract(deployer)
    registry = load("registry", [founder(key, role, here) for key, role in zip(keys, roles, strict=True)])
    controller, stranger = boa.env.generate_address("controller"), boa.env.generate_address("stranger")
    boa.env.set_balance(controller, RICH_WEI)
    addresses = [key.address for key in keys]
    return Escrow(
        load("escrow", registry.address, controller), controller, addresses[:3], addresses[3:], stranger
    )


@pytest.fixture
def escrow() -> Escrow:
    """An escrow with one deal of 100 wei."""
    made = make_escrow()
    made.contract.fund(DEAL, made.funders[0], sender=made.controller, value=100)
    return made


def share(escrow: Escrow, *shares_wei: int) -> None:
    members = escrow.members[: len(shares_wei)]
    escrow.contract.share(DEAL, members, list(shares_wei), sender=escrow.controller)


def the_event(escrow: Escrow) -> tuple[Any, ...]:
    (event,) = escrow.contract.get_logs()
    return (type(event).__name__, *(getattr(event, f) for f in event._fields if f != "address"))


def test_fund_opens_a_deal_once(escrow: Escrow) -> None:
    contract = escrow.contract
    assert the_event(escrow) == ("Funded", DEAL, escrow.funders[0], 100)
    assert tuple(contract.pool(DEAL)) == (escrow.funders[0], 100, 0, 0, 0)
    for again in (0, 5):
        with boa.reverts("escrow: deal already funded"):
            contract.fund(DEAL, escrow.funders[1], sender=escrow.controller, value=again)
    with boa.reverts("escrow: no funder"):
        contract.fund(8, "0x" + "00" * 20, sender=escrow.controller, value=5)
    assert contract.open_wei() == 100 == boa.env.get_balance(contract.address)


def test_only_the_controller_decides(escrow: Escrow) -> None:
    contract = escrow.contract
    boa.env.set_balance(escrow.funders[0], RICH_WEI)
    with boa.reverts("escrow: not the controller"):
        contract.fund(8, escrow.funders[0], sender=escrow.funders[0], value=5)
    with boa.reverts("escrow: not the controller"):
        contract.share(DEAL, escrow.members[:1], [1], sender=escrow.members[0])
    with boa.reverts("escrow: not the controller"):
        contract.release(DEAL, 1, sender=escrow.funders[0])


def test_wei_do_not_come_in_by_another_door(escrow: Escrow) -> None:
    with pytest.raises(Revert):
        boa.env.raw_call(escrow.contract.address, sender=escrow.controller, value=1)
    with boa.reverts():
        escrow.contract.release(DEAL, 1, sender=escrow.controller, value=1)


def test_a_member_claims_its_share_once(escrow: Escrow) -> None:
    share(escrow, 60, 30)
    assert the_event(escrow) == ("SharesSet", DEAL, escrow.members[:2], [60, 30])
    escrow.contract.claim(DEAL, sender=escrow.members[0])
    assert the_event(escrow) == ("Claimed", DEAL, escrow.members[0], 60)
    assert boa.env.get_balance(escrow.members[0]) == 60
    with boa.reverts("escrow: nothing to claim"):
        escrow.contract.claim(DEAL, sender=escrow.members[0])
    with boa.reverts("escrow: nothing to claim"):
        escrow.contract.claim(DEAL, sender=escrow.members[2])
    assert escrow.contract.has_share(DEAL, escrow.members[0])
    assert not escrow.contract.has_share(DEAL, escrow.members[2])


def test_shares_are_set_once_within_the_pool(escrow: Escrow) -> None:
    first, second, _ = escrow.members
    with boa.reverts("escrow: lengths differ"):
        escrow.contract.share(DEAL, [first], [1, 2], sender=escrow.controller)
    with boa.reverts("escrow: share already set"):
        escrow.contract.share(DEAL, [first, first], [1, 1], sender=escrow.controller)
    with boa.reverts("escrow: shares exceed the pool"):
        share(escrow, 60, 41)
    with boa.reverts("escrow: shares exceed the pool"):
        escrow.contract.share(8, [first], [1], sender=escrow.controller)  # never another deal's money
    share(escrow, 60)
    with boa.reverts("escrow: share already set"):
        share(escrow, 1)
    with boa.reverts("escrow: shares exceed the pool"):
        escrow.contract.share(DEAL, [second], [41], sender=escrow.controller)


def test_the_funder_fetches_what_was_released(escrow: Escrow) -> None:
    contract, funder_ = escrow.contract, escrow.funders[0]
    with boa.reverts("escrow: nothing to refund"):
        contract.refund(DEAL, sender=funder_)
    with boa.reverts("escrow: release exceeds the pool"):
        contract.release(DEAL, 101, sender=escrow.controller)
    contract.release(DEAL, 40, sender=escrow.controller)
    assert the_event(escrow) == ("Released", DEAL, 40)
    with boa.reverts("escrow: not the funder"):
        contract.refund(DEAL, sender=escrow.funders[1])
    contract.refund(DEAL, sender=funder_)
    assert the_event(escrow) == ("Refunded", DEAL, funder_, 40)
    with boa.reverts("escrow: nothing to refund"):
        contract.refund(DEAL, sender=funder_)
    assert boa.env.get_balance(funder_) == 40
    with boa.reverts("escrow: shares exceed the pool"):
        share(escrow, 61)


def test_the_funder_withdraws_what_nobody_claimed_in_time(escrow: Escrow) -> None:
    contract, funder_ = escrow.contract, escrow.funders[0]
    share(escrow, 60, 40)
    contract.claim(DEAL, sender=escrow.members[0])
    boa.env.evm.patch.timestamp += CLAIM_SECONDS - 1
    with boa.reverts("escrow: claim period still runs"):
        contract.withdraw_unclaimed(DEAL, sender=funder_)
    boa.env.evm.patch.timestamp += 1
    with boa.reverts("escrow: not the funder"):
        contract.withdraw_unclaimed(DEAL, sender=escrow.funders[1])
    contract.withdraw_unclaimed(DEAL, sender=funder_)
    assert the_event(escrow) == ("UnclaimedWithdrawn", DEAL, funder_, 40)
    with boa.reverts("escrow: nothing to withdraw"):
        contract.withdraw_unclaimed(DEAL, sender=funder_)
    with boa.reverts("escrow: withdrawn by the funder"):
        contract.claim(DEAL, sender=escrow.members[1])
    assert contract.share_wei(DEAL, escrow.members[1]) == 0
    assert boa.env.get_balance(funder_) == 40


def test_a_late_member_still_claims_what_is_there(escrow: Escrow) -> None:
    share(escrow, 60, 40)
    boa.env.evm.patch.timestamp += 2 * CLAIM_SECONDS
    escrow.contract.claim(DEAL, sender=escrow.members[1])
    assert boa.env.get_balance(escrow.members[1]) == 40


def test_an_underpaying_funder_gains_nothing(escrow: Escrow) -> None:
    share(escrow, 1)
    boa.env.evm.patch.timestamp += CLAIM_SECONDS
    with boa.reverts("escrow: pool not wholly shared"):
        escrow.contract.withdraw_unclaimed(DEAL, sender=escrow.funders[0])


def test_money_waits_while_its_receiver_is_not_active(escrow: Escrow) -> None:
    escrow.contract.share(DEAL, [escrow.stranger, escrow.members[0]], [50, 10], sender=escrow.controller)
    escrow.contract.release(DEAL, 40, sender=escrow.controller)
    with boa.reverts("escrow: not an active member"):
        escrow.contract.claim(DEAL, sender=escrow.stranger)
    with boa.env.anchor():
        boa.env.evm.patch.timestamp = VALID_TO
        with boa.reverts("escrow: not an active member"):
            escrow.contract.claim(DEAL, sender=escrow.members[0])
        with boa.reverts("escrow: not an active member"):
            escrow.contract.refund(DEAL, sender=escrow.funders[0])
    assert escrow.contract.share_wei(DEAL, escrow.members[0]) == 10


THIEF = """
# pragma evm-version london
interface Escrow:
    def claim(deal_id: uint256): nonpayable

ESCROW: immutable(Escrow)
calls: public(uint256)

@deploy
def __init__(escrow: address):
    ESCROW = Escrow(escrow)

@external
def claim(deal_id: uint256):
    extcall ESCROW.claim(deal_id)

@external
@payable
def __default__():
    self.calls += 1
    again: Bytes[36] = abi_encode(convert(7, uint256), method_id=method_id("claim(uint256)"))
    success: bool = raw_call(ESCROW.address, again, revert_on_failure=False)
    assert not success, "paid twice"
"""
ANYBODY = """
# pragma evm-version london
@external
@view
def in_good_standing(account: address) -> bool:
    return True
"""


def test_a_receiver_that_claims_again_while_it_is_paid_gets_nothing_more() -> None:
    controller = boa.env.generate_address("controller")
    boa.env.set_balance(controller, RICH_WEI)
    contract = load("escrow", boa.loads(ANYBODY).address, controller)
    thief = boa.loads(THIEF, contract.address)
    contract.fund(DEAL, controller, sender=controller, value=100)
    contract.share(DEAL, [thief.address], [50], sender=controller)
    thief.claim(DEAL)
    assert thief.calls() == 1  # it did try
    assert boa.env.get_balance(thief.address) == 50
    assert contract.open_wei() == 50 == boa.env.get_balance(contract.address)


@dataclass
class Deal:
    """What the description of the escrow promises for one deal; the machine compares it with the contract."""

    funder: str
    unshared_wei: int
    refundable_wei: int = 0
    shares_wei: dict[str, int] = field(default_factory=dict)
    ever_shared: set[str] = field(default_factory=set)
    claim_deadline: int = 0

    @property
    def owed_wei(self) -> int:
        return self.unshared_wei + self.refundable_wei + sum(self.shares_wei.values())


class EscrowMachine(RuleBasedStateMachine):
    """Calls in any order, lawful or not."""

    def __init__(self) -> None:
        super().__init__()
        self._env = boa.swap_env(boa.Env())
        self._env.__enter__()
        self.deals: dict[int, Deal] = {}
        self.funded_wei = 0
        self.received_wei: dict[str, int] = {}

    def teardown(self) -> None:
        self._env.__exit__(None, None, None)

    @initialize()
    def deploy(self) -> None:
        self.escrow = make_escrow()
        self.contract = self.escrow.contract

    @rule(deal_id=st.integers(1, 3), funder=st.integers(0, 1), wei=st.integers(0, 1000))
    def fund(self, deal_id: int, funder: int, wei: int) -> None:
        address = self.escrow.funders[funder]
        expected = "escrow: deal already funded" if deal_id in self.deals else None
        call = lambda: self.contract.fund(deal_id, address, sender=self.escrow.controller, value=wei)  # noqa: E731
        if self.expect(call, expected):
            self.deals[deal_id] = Deal(address, wei)
            self.funded_wei += wei

    @precondition(lambda self: self.deals)
    @rule(data=st.data(), amounts=st.lists(st.integers(0, 700), min_size=1, max_size=3))
    def share(self, data: st.DataObject, amounts: list[int]) -> None:
        deal_id, deal = self.any_deal(data)
        members = data.draw(st.permutations(self.escrow.members))[: len(amounts)]
        expected = None
        if deal.ever_shared & set(members):
            expected = "escrow: share already set"
        elif sum(amounts) > deal.unshared_wei:
            expected = "escrow: shares exceed the pool"
        call = lambda: self.contract.share(deal_id, members, amounts, sender=self.escrow.controller)  # noqa: E731
        if self.expect(call, expected):
            deal.shares_wei.update(zip(members, amounts, strict=True))
            deal.ever_shared.update(members)
            deal.unshared_wei -= sum(amounts)
            deal.claim_deadline = boa.env.evm.patch.timestamp + CLAIM_SECONDS

    @precondition(lambda self: self.deals)
    @rule(data=st.data(), wei=st.integers(0, 1000))
    def release(self, data: st.DataObject, wei: int) -> None:
        deal_id, deal = self.any_deal(data)
        expected = "escrow: release exceeds the pool" if wei > deal.unshared_wei else None
        if self.expect(lambda: self.contract.release(deal_id, wei, sender=self.escrow.controller), expected):
            deal.unshared_wei -= wei
            deal.refundable_wei += wei

    @precondition(lambda self: self.deals)
    @rule(data=st.data(), member=st.integers(0, 2))
    def claim(self, data: st.DataObject, member: int) -> None:
        deal_id, deal = self.any_deal(data)
        address = self.escrow.members[member]
        share_wei = deal.shares_wei.get(address, 0)
        if self.pays(lambda: self.contract.claim(deal_id, sender=address), address, share_wei):
            deal.shares_wei[address] = 0

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        if self.pays(
            lambda: self.contract.refund(deal_id, sender=deal.funder), deal.funder, deal.refundable_wei
        ):
            deal.refundable_wei = 0

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def withdraw_unclaimed(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        lawful = deal.unshared_wei == 0 and boa.env.evm.patch.timestamp >= deal.claim_deadline
        wei = sum(deal.shares_wei.values()) if lawful else 0
        if self.pays(lambda: self.contract.withdraw_unclaimed(deal_id, sender=deal.funder), deal.funder, wei):
            deal.shares_wei.clear()

    @rule(seconds=st.sampled_from([1, CLAIM_SECONDS // 2, CLAIM_SECONDS]))
    def wait(self, seconds: int) -> None:
        boa.env.evm.patch.timestamp += seconds

    @invariant()
    def the_balance_is_what_is_owed(self) -> None:
        if not hasattr(self, "contract"):
            return
        balance_wei = boa.env.get_balance(self.contract.address)
        assert balance_wei == self.contract.open_wei() == sum(deal.owed_wei for deal in self.deals.values())
        assert balance_wei + sum(self.received_wei.values()) == self.funded_wei

    @invariant()
    def each_pool_is_as_described(self) -> None:
        for deal_id, deal in self.deals.items():
            pool = self.contract.pool(deal_id)
            expected = (deal.funder, deal.unshared_wei, deal.refundable_wei, sum(deal.shares_wei.values()))
            assert tuple(pool)[:4] == expected

    def any_deal(self, data: st.DataObject) -> tuple[int, Deal]:
        deal_id = data.draw(st.sampled_from(sorted(self.deals)))
        return deal_id, self.deals[deal_id]

    def expect(self, call: Any, reason: str | None) -> bool:
        if reason is None:
            call()
            return True
        with boa.reverts(reason):
            call()
        return False

    def pays(self, call: Any, receiver: str, wei: int) -> bool:
        """Exactly what is owed is paid, or nothing at all."""
        before_wei = boa.env.get_balance(receiver)
        if wei == 0:
            with boa.reverts():
                call()
            assert boa.env.get_balance(receiver) == before_wei
            return False
        call()
        assert boa.env.get_balance(receiver) == before_wei + wei
        self.received_wei[receiver] = self.received_wei.get(receiver, 0) + wei
        return True


TestEscrowMachine = EscrowMachine.TestCase
TestEscrowMachine.settings = settings(
    max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
