"""exchange.vy: a buyer's signed wish, the price that comes with it, and who may deal."""

from __future__ import annotations

from dataclasses import replace

import boa
import pytest

from consilia.crypto.typed_data import sign_with_secret
from consilia.protocols.exchange import DealState, exchange_domain
from consilia.values import Digest
from tests.contracts.conftest import Contracts
from tests.contracts.dealing import (
    BUYER_KEY,
    DAY,
    PRICE_WEI,
    SERVER_KEY,
    THIRD_KEY,
    Dealing,
    high_s,
)

OTHER = Digest.of(b"another")


@pytest.fixture
def dealing(contracts: Contracts) -> Dealing:
    """Fresh contracts with a seller, a buyer and an arbiter."""
    return Dealing(contracts)


# Step 1


def test_a_request_puts_the_price_into_escrow(dealing: Dealing) -> None:
    dealing.register()
    wanted = dealing.wish()
    deal_id = dealing.request(wanted)
    said = dealing.event()
    assert deal_id == wanted.deal_id(dealing.domain) == said["deal_id"]
    assert said["event"] == "Requested" and said["buyer"] == dealing.buyer
    assert tuple(said[name] for name in wanted.__dataclass_fields__) == wanted.values()
    assert dealing.exchange.nonces(dealing.buyer) == 1
    record = dealing.exchange.deal(deal_id)
    assert record.state == DealState.OPEN and record.deadline == wanted.deadline
    assert (record.buyer, record.seller, record.arbiter) == (dealing.buyer, dealing.seller, dealing.arbiter)
    assert dealing.balance() == dealing.exchange.open_wei() == PRICE_WEI


def test_a_request_is_good_once(dealing: Dealing) -> None:
    dealing.register()
    wanted = dealing.wish()
    dealing.request(wanted)
    with boa.reverts("exchange: nonce already used"):
        dealing.request(wanted)
    with boa.reverts("exchange: nonce already used"):
        dealing.request(dealing.wish(nonce=2))
    dealing.request()


def test_a_request_is_good_on_one_chain_and_contract(dealing: Dealing) -> None:
    dealing.register()
    chain_id = boa.env.evm.patch.chain_id
    for elsewhere in (
        exchange_domain(chain_id + 1, dealing.exchange.address),
        exchange_domain(chain_id, dealing.contracts.training.address),
        replace(dealing.domain, name="Consilia registry"),
    ):
        with boa.reverts("exchange: not the buyer's signature"):
            dealing.request(domain=elsewhere)
    dealing.request()


def test_every_field_of_a_request_is_signed(dealing: Dealing) -> None:
    dealing.register()
    honest = dealing.wish()
    signature = sign_with_secret(honest.deal_id(dealing.domain), bytes(BUYER_KEY.key))
    for changes in (
        {"owner": dealing.third},
        {"root": OTHER},
        {"key_hash": OTHER},
        {"task_id": 1},
        {"round_index": 1},
        {"arbiter": dealing.contracts.server},
        {"price_wei": PRICE_WEI - 1},
        {"bond_wei": 0},
        {"recipient_key": b"\x08" * 32},
        {"deadline": honest.deadline + 1},
    ):
        with boa.reverts("exchange: not the buyer's signature"):
            dealing.request(replace(honest, **changes), signature=signature)
    dealing.request(honest, signature=signature)


def test_signatures_that_must_not_pass(dealing: Dealing) -> None:
    dealing.register()
    wanted = dealing.wish()
    good = sign_with_secret(wanted.deal_id(dealing.domain), bytes(BUYER_KEY.key))
    bad = [high_s(good), good[:64], good[:64] + b"\x1d", bytes(64) + b"\x1b", good[:63] + b"\x00" + good[64:]]
    for signature in bad:
        with boa.reverts("exchange: not the buyer's signature"):
            dealing.request(wanted, signature=signature)
    with boa.reverts("exchange: not the buyer's signature"):
        dealing.request(wanted, key=THIRD_KEY)
    with boa.reverts("exchange: not the buyer's signature"):  # what a failed recovery gives is nobody
        dealing.request(dealing.wish(nonce=0), buyer="0x" + "00" * 20, signature=bytes(64) + b"\x1b")
    dealing.request(wanted, signature=good)


def test_the_price_paid_is_the_price_signed(dealing: Dealing) -> None:
    dealing.register()
    for value in (0, PRICE_WEI - 1, PRICE_WEI + 1):
        with boa.reverts("exchange: not the price signed"):
            dealing.request(value=value)
    boa.env.set_balance(dealing.contracts.stranger, 2**130)
    with boa.reverts("exchange: too much money"):
        dealing.request(dealing.wish(price_wei=2**128))
    with boa.reverts("exchange: too much money"):
        dealing.request(dealing.wish(bond_wei=2**128))
    dealing.request(dealing.wish(price_wei=0))


def test_deadlines_of_requests(dealing: Dealing) -> None:
    dealing.register()
    with boa.reverts("exchange: request out of date"):
        dealing.request(dealing.wish(deadline=dealing.now))
    with boa.reverts("exchange: deadline too far"):
        dealing.request(dealing.wish(deadline=dealing.now + 30 * DAY + 1))
    dealing.request(dealing.wish(deadline=dealing.now + 1))
    dealing.request(dealing.wish(deadline=dealing.now + 30 * DAY))


def test_who_may_deal(dealing: Dealing) -> None:
    dealing.register()
    server = dealing.contracts.server
    with boa.reverts("exchange: not an active hospital"):
        dealing.request(buyer=server, key=SERVER_KEY)
    with boa.reverts("exchange: seller not active"):
        dealing.request(dealing.wish(owner=server))
    with boa.reverts("exchange: buyer is the owner"):
        dealing.request(dealing.wish(owner=dealing.buyer))
    with boa.reverts("exchange: empty recipient key"):
        dealing.request(dealing.wish(recipient_key=bytes(32)))
    for party in (dealing.buyer, dealing.seller):
        with boa.reverts("exchange: arbiter is a party"):
            dealing.request(dealing.wish(arbiter=party))
    for nobody in (dealing.third, dealing.contracts.stranger, "0x" + "00" * 20):
        with boa.reverts("exchange: no such arbiter"):
            dealing.request(dealing.wish(arbiter=nobody))
    dealing.request(dealing.wish(arbiter=server))


def test_only_what_is_registered_can_be_asked_for(dealing: Dealing) -> None:
    with boa.reverts("exchange: no such artifact"):
        dealing.request()
    dealing.register()
    with boa.reverts("exchange: another key hash is registered"):
        dealing.request(dealing.wish(key_hash=OTHER))
    dealing.request()


def test_an_update_that_training_took_can_be_asked_for(dealing: Dealing) -> None:
    task_id = dealing.contracts.training_task()
    with boa.reverts("exchange: no update in this task"):
        dealing.request(dealing.wish(task_id=task_id))
    dealing.contracts.register(task_id, 0, dealing.seller)
    deal_id = dealing.request(dealing.wish(task_id=task_id))
    assert dealing.state(deal_id) == DealState.OPEN
