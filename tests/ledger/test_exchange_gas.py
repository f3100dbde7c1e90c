"""What each step of an exchange costs on a real chain, below its limit; docs/contracts.md has the table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from eth_hash.auto import keccak

from consilia.crypto.blinding import point_of
from consilia.crypto.typed_data import address_of_point, sign_with_secret
from consilia.ledger.exchange import ExchangeContract
from consilia.ledger.exchange_events import EXCHANGE_EVENTS
from consilia.protocols.card import MAX_CARD_BYTES
from consilia.protocols.exchange import (
    DealState,
    Request,
    Verdict,
    attestation_digest,
    exchange_domain,
    offer_digest,
)
from consilia.values import ArtifactKind, Digest
from tests.ledger.gas_page import assert_as_told, table_after
from tests.ledger.test_client_gas import Meter

if TYPE_CHECKING:
    import pytest

    from tests.ledger.conftest import Consortium

SIGMA, T = b"\x11" * 32, b"\x22" * 32
ROOT, KEY_HASH = Digest.of(b"root"), Digest(keccak(point_of(SIGMA)))
PRICE_WEI, BOND_WEI = 10**15, 10**14
MESSAGE = b"\x0a" * 208


class Dealers:
    """A seller, a buyer and an arbiter on a chain; `deal` runs one as far as is asked."""

    def __init__(self, consortium: Consortium) -> None:
        self.accounts = consortium.hospital_accounts
        self.seller, self.buyer, *_ = (ExchangeContract(ledger) for ledger in consortium.hospitals)
        self.arbiter = ExchangeContract(consortium.server)
        self.arbiter_address = consortium.server_account.address
        deployment = consortium.deployment
        self.domain = exchange_domain(deployment.chain_id, deployment.exchange)
        self.count = 0

    def register(self, key: str, card: bytes) -> None:
        self.seller.register(
            key,
            kind=ArtifactKind.DATASET,
            root=Digest.of(card) if card else ROOT,
            key_hash=KEY_HASH,
            size=10**9,
            recipient_key=b"\x05" * 32,
            task_id=0,
            round_index=0,
            price_wei=PRICE_WEI,
            card=card,
        )

    def deal(self, *steps: str) -> Digest:
        """Request and offer, then each named step."""
        self.count += 1
        seller, buyer = self.accounts[:2]
        asked = Request(
            seller.address,
            ROOT,
            KEY_HASH,
            0,
            0,
            self.arbiter_address,
            PRICE_WEI,
            BOND_WEI,
            b"\x07" * 32,
            self.buyer.nonce(buyer.address),
            int(time.time()) + 3600,
        )
        deal_id = asked.deal_id(self.domain)
        self.buyer.request(
            f"request/{self.count}", buyer.address, asked, sign_with_secret(deal_id, bytes(buyer.key))
        )
        if "deny" not in steps:
            t_address = address_of_point(point_of(T))
            signature = sign_with_secret(
                offer_digest(self.domain, deal_id, t_address, MESSAGE), bytes(seller.key)
            )
            self.seller.offer(f"offer/{self.count}", deal_id, t_address, MESSAGE, signature, BOND_WEI)
        for step in steps:
            self._take(step, deal_id)
        return deal_id

    def _take(self, step: str, deal_id: Digest) -> None:
        key = f"{step}/{self.count}"
        match step:
            case "deny":
                self.seller.deny(key, deal_id, "x" * 128)
            case "decline":
                self.buyer.decline(key, deal_id, "x" * 128)
            case "confirm":
                self.buyer.confirm(key, deal_id)
            case "reveal":
                self.seller.reveal(key, deal_id, T)
            case "settle":
                self.buyer.settle(key, deal_id)
            case "dispute":
                self.buyer.dispute(key, deal_id, b"\x0b" * 80, BOND_WEI)
            case "rule":
                self.arbiter.rule(key, deal_id, True, "x" * 128)


def test_each_step_leaves_room_below_its_limit(
    on_embedded: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    dealers = Dealers(on_embedded)
    meter = Meter(monkeypatch)
    dealers.register("register, no card/1", b"")
    dealers.register("register, 8 KiB card/1", b"\xff" * MAX_CARD_BYTES)
    for _ in range(2):
        deal_id = dealers.deal("confirm", "reveal", "settle")
        dealers.seller.claim(f"claim/{dealers.count}")
    dealers.deal("confirm", "reveal", "dispute", "rule")
    dealers.deal("decline")
    dealers.deal("deny")
    attester = on_embedded.hospital_accounts[1].address
    place = (on_embedded.hospital_accounts[0].address, ROOT, KEY_HASH)
    digest = attestation_digest(dealers.domain, attester, *place, Verdict.AS_REGISTERED, "x" * 256)
    dealers.buyer.attest(
        "attest/1",
        owner=place[0],
        root=ROOT,
        key_hash=KEY_HASH,
        verdict=Verdict.AS_REGISTERED,
        note="x" * 256,
        signature=sign_with_secret(digest, SIGMA),
    )
    dealers.seller.withdraw("withdraw/1", ROOT)
    assert_as_told(table_after("contracts.md", "by `tests/ledger/test_exchange_gas.py`"), meter.table())
    tight = {name: rows for name, rows in meter.rows.items() for gas, limit in rows if gas * 1.5 > limit}
    assert not tight
    record = dealers.buyer.deal(deal_id)
    assert record is not None and record.state is DealState.PAID
    assert dealers.buyer.deal(Digest.of(b"none")) is None


def test_every_event_is_told_by_the_log(on_embedded: Consortium) -> None:
    dealers = Dealers(on_embedded)
    dealers.register("register/1", b"")
    dealers.deal("confirm", "reveal", "dispute", "rule")
    dealers.buyer.claim("claim/1")
    dealers.seller.withdraw("withdraw/1", ROOT)
    told = {type(event) for event in on_embedded.ledger().events()}
    missing = {kind.__name__ for kind in EXCHANGE_EVENTS if kind not in told}
    assert missing == {"Attested"}  # the only one that nothing here does
