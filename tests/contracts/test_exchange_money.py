"""Whatever is called in what order: a wei of the exchange is held for one deal or credited to one account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import boa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consilia.ledger.registry import Kind
from consilia.protocols.exchange import DealState
from consilia.values import Digest
from tests.contracts.conftest import make_contracts
from tests.contracts.dealing import (
    CONFIRM_SECONDS,
    DAY,
    DISPUTE_SECONDS,
    REVEAL_SECONDS,
    RULING_SECONDS,
    Dealing,
)

OPEN, OFFERED, CONFIRMED, REVEALED, DISPUTED, PAID, REFUNDED = DealState


@dataclass
class Promise:
    """What docs/protocols/exchange.md promises of one deal: its state, its deadline, its money."""

    price_wei: int
    bond_wei: int
    deadline: int
    state: DealState = OPEN

    @property
    def held_wei(self) -> int:
        """The price, and a bond of each side that has put one up; nothing once the deal is over."""
        if self.state in (PAID, REFUNDED):
            return 0
        bonds = (self.state >= OFFERED) + (self.state is DISPUTED)
        return self.price_wei + self.bond_wei * bonds


class ExchangeMachine(RuleBasedStateMachine):
    """Several deals, calls in any order, lawful or not."""

    def __init__(self) -> None:
        super().__init__()
        self._env = boa.swap_env(boa.Env())
        self._env.__enter__()
        boa.env.evm.patch.code_size_limit = 24_576
        self.deals: dict[Digest, Promise] = {}
        self.credit_wei = {"buyer": 0, "seller": 0}
        self.fetched_wei = 0
        self.suspended: set[str] = set()
        self.paid_in_wei = 0

    def teardown(self) -> None:
        self._env.__exit__(None, None, None)

    @initialize()
    def deploy(self) -> None:
        self.dealing = Dealing(make_contracts())
        self.dealing.register()

    @rule(price_wei=st.integers(0, 1000), bond_wei=st.integers(0, 100), seconds=st.sampled_from([1, DAY]))
    def request(self, price_wei: int, bond_wei: int, seconds: int) -> None:
        if self.suspended:
            with boa.reverts():
                self.dealing.request()
            return
        deadline = self.dealing.now + seconds
        wanted = self.dealing.wish(price_wei=price_wei, bond_wei=bond_wei, deadline=deadline)
        self.deals[self.dealing.request(wanted)] = Promise(price_wei, bond_wei, deadline)
        self.paid_in_wei += price_wei

    @rule(seller=st.booleans())
    def suspend_or_lift(self, seller: bool) -> None:
        """The members suspend one party at a time: two of five could not be decided on by the rest."""
        name = next(iter(self.suspended), "seller" if seller else "buyer")
        kind = Kind.LIFTING if name in self.suspended else Kind.SUSPENSION
        self.dealing.decide(kind, getattr(self.dealing, name))
        self.suspended ^= {name}

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def offer(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        if self.goes(
            deal,
            deal.state is OPEN and not self.late(deal) and not self.suspended,
            lambda: self.dealing.offer(deal_id, value=deal.bond_wei),
        ):
            self.paid_in_wei += deal.bond_wei
            self.move(deal, OFFERED, CONFIRM_SECONDS)

    @precondition(lambda self: self.deals)
    @rule(data=st.data(), by_seller=st.booleans())
    def step_back(self, data: st.DataObject, by_seller: bool) -> None:
        deal_id, deal = self.any_deal(data)
        contract, party = self.dealing.exchange, self.dealing.seller if by_seller else self.dealing.buyer
        call = contract.deny if by_seller else contract.decline
        lawful = deal.state is (OPEN if by_seller else OFFERED)
        if self.goes(deal, lawful, lambda: call(deal_id, "", sender=party)):
            self.close(deal, REFUNDED, deal.price_wei, 0 if by_seller else deal.bond_wei)

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        lawful = deal.state is OFFERED and not self.late(deal) and not self.suspended
        if self.goes(deal, lawful, lambda: self.dealing.confirm(deal_id)):
            self.move(deal, CONFIRMED, REVEAL_SECONDS)

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def reveal(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        lawful = deal.state is CONFIRMED and not self.late(deal) and not self.suspended
        if self.goes(deal, lawful, lambda: self.dealing.reveal(deal_id)):
            self.move(deal, REVEALED, DISPUTE_SECONDS)

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def dispute(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        lawful = deal.state is REVEALED and not self.late(deal)
        if self.goes(deal, lawful, lambda: self.dealing.dispute(deal_id, value=deal.bond_wei)):
            self.paid_in_wei += deal.bond_wei
            self.move(deal, DISPUTED, RULING_SECONDS)

    @precondition(lambda self: self.deals)
    @rule(data=st.data(), for_buyer=st.booleans())
    def rule_on(self, data: st.DataObject, for_buyer: bool) -> None:
        deal_id, deal = self.any_deal(data)
        everything = deal.price_wei + 2 * deal.bond_wei
        lawful = deal.state is DISPUTED and not self.late(deal)
        if self.goes(deal, lawful, lambda: self.dealing.rule(deal_id, for_buyer)):
            shares = (everything, 0) if for_buyer else (0, everything)
            self.close(deal, REFUNDED if for_buyer else PAID, *shares)

    @precondition(lambda self: self.deals)
    @rule(data=st.data(), by_buyer=st.booleans())
    def settle(self, data: st.DataObject, by_buyer: bool) -> None:
        deal_id, deal = self.any_deal(data)
        sender = self.dealing.buyer if by_buyer else self.dealing.contracts.stranger
        lawful = deal.state is REVEALED and (by_buyer or self.late(deal))
        lawful |= deal.state is DISPUTED and self.late(deal)
        returned = deal.bond_wei if deal.state is DISPUTED else 0
        if self.goes(deal, lawful, lambda: self.dealing.exchange.settle(deal_id, sender=sender)):
            self.close(deal, PAID, returned, deal.price_wei + deal.bond_wei)

    @precondition(lambda self: self.deals)
    @rule(data=st.data())
    def refund(self, data: st.DataObject) -> None:
        deal_id, deal = self.any_deal(data)
        lawful = deal.state in (OPEN, OFFERED, CONFIRMED) and (bool(self.suspended) or self.late(deal))
        bond_wei = 0 if deal.state is OPEN else deal.bond_wei
        slashed = deal.state is CONFIRMED and not self.suspended
        if self.goes(deal, lawful, lambda: self.dealing.exchange.refund(deal_id)):
            self.close(
                deal, REFUNDED, deal.price_wei + (bond_wei if slashed else 0), 0 if slashed else bond_wei
            )

    @rule(name=st.sampled_from(["buyer", "seller"]))
    def claim(self, name: str) -> None:
        address = getattr(self.dealing, name)
        before = boa.env.get_balance(address)
        if self.credit_wei[name] == 0:
            with boa.reverts("exchange: nothing to claim"):
                self.dealing.exchange.claim(sender=address)
            return
        if name in self.suspended:
            with boa.reverts("exchange: not an active member"):
                self.dealing.exchange.claim(sender=address)
            return
        self.dealing.exchange.claim(sender=address)
        assert boa.env.get_balance(address) == before + self.credit_wei[name]
        self.fetched_wei += self.credit_wei[name]
        self.credit_wei[name] = 0

    @rule(seconds=st.sampled_from([1, DAY - 1, DISPUTE_SECONDS, RULING_SECONDS]))
    def wait(self, seconds: int) -> None:
        self.dealing.let_pass(seconds)

    @invariant()
    def every_wei_has_one_place(self) -> None:
        if not hasattr(self, "dealing"):
            return
        held_wei = sum(deal.held_wei for deal in self.deals.values())
        owed_wei = held_wei + sum(self.credit_wei.values())
        assert owed_wei == self.dealing.exchange.open_wei() == self.dealing.balance()
        assert owed_wei + self.fetched_wei == self.paid_in_wei
        assert self.dealing.credits() == (self.credit_wei["buyer"], self.credit_wei["seller"])

    @invariant()
    def every_deal_stands_where_it_was_promised(self) -> None:
        for deal_id, deal in self.deals.items():
            record = self.dealing.exchange.deal(deal_id)
            assert record.state == deal.state
            assert deal.state in (PAID, REFUNDED) or record.deadline == deal.deadline

    def any_deal(self, data: st.DataObject) -> tuple[Digest, Promise]:
        deal_id = data.draw(st.sampled_from(sorted(self.deals)))
        return deal_id, self.deals[deal_id]

    def late(self, deal: Promise) -> bool:
        return self.dealing.now >= deal.deadline

    def goes(self, deal: Promise, lawful: bool, call: Callable[[], None]) -> bool:
        if lawful:
            call()
            return True
        with boa.reverts():
            call()
        return False

    def move(self, deal: Promise, state: DealState, seconds: int) -> None:
        assert state > deal.state
        deal.state, deal.deadline = state, self.dealing.now + seconds

    def close(self, deal: Promise, state: DealState, buyer_wei: int, seller_wei: int) -> None:
        assert buyer_wei + seller_wei == deal.held_wei
        deal.state = state
        self.credit_wei["buyer"] += buyer_wei
        self.credit_wei["seller"] += seller_wei


TestExchangeMachine = ExchangeMachine.TestCase
TestExchangeMachine.settings = settings(
    max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
