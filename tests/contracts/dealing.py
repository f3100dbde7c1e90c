"""A buyer, a seller and an arbiter with one artifact, for the tests of exchange.vy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import boa
from eth_account.signers.local import LocalAccount
from eth_hash.auto import keccak

from consilia.crypto.blinding import point_of
from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.crypto.typed_data import Domain, address_of_point, sign_with_secret
from consilia.ledger.registry import Kind
from consilia.protocols.exchange import (
    Request,
    Verdict,
    attestation_digest,
    exchange_domain,
    offer_digest,
)
from consilia.values import ArtifactKind, Digest
from tests.contracts.conftest import Contracts, account

SIGMA = b"\x11" * 32
T = b"\x22" * 32
ROOT = Digest.of(b"the envelope")
KEY_HASH = Digest(keccak(point_of(SIGMA)))
MESSAGE = b"\x0a" * 208
CARD = b'{"title":"CT heads"}'
PRICE_WEI, BOND_WEI = 1_000, 100
DAY = 86_400
CONFIRM_SECONDS = REVEAL_SECONDS = DAY
DISPUTE_SECONDS, RULING_SECONDS = 3 * DAY, 14 * DAY
SERVER_KEY, SELLER_KEY, BUYER_KEY, THIRD_KEY = account(1), account(2), account(3), account(4)


def number(value: bytes) -> int:
    return int.from_bytes(value, "big")


def high_s(signature: bytes) -> bytes:
    """The other signature of the same words, which a stranger can compute."""
    s = SECP256K1_ORDER - number(signature[32:64])
    return signature[:32] + s.to_bytes(32, "big") + bytes((55 - signature[64],))


@dataclass
class Dealing:
    """The contracts, and the steps of a deal as methods; each has the lawful caller unless told otherwise."""

    contracts: Contracts
    keys: dict[str, LocalAccount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exchange = self.contracts.exchange
        self.seller, self.buyer, self.third = self.contracts.hospitals[:3]
        self.arbiter = self.contracts.auditor

    @property
    def domain(self) -> Domain:
        return exchange_domain(boa.env.evm.patch.chain_id, self.exchange.address)

    @property
    def now(self) -> int:
        return int(boa.env.evm.patch.timestamp)

    def let_pass(self, seconds: int) -> None:
        boa.env.evm.patch.timestamp += seconds

    def register(self, sender: str | None = None, **changes: Any) -> None:
        record: dict[str, Any] = {
            "kind": ArtifactKind.DATASET,
            "root": ROOT,
            "key_hash": KEY_HASH,
            "size": 4096,
            "recipient_key": b"\x05" * 32,
            "task_id": 0,
            "round_index": 0,
            "price_wei": PRICE_WEI,
            "card": CARD,
        }
        self.exchange.register(*(record | changes).values(), sender=sender or self.seller)

    def wish(self, **changes: Any) -> Request:
        """The buyer's request for the artifact."""
        nonce = changes.pop("nonce", self.exchange.nonces(self.buyer))
        plain = Request(
            owner=self.seller,
            root=ROOT,
            key_hash=KEY_HASH,
            task_id=0,
            round_index=0,
            arbiter=self.arbiter,
            price_wei=PRICE_WEI,
            bond_wei=BOND_WEI,
            recipient_key=b"\x07" * 32,
            nonce=nonce,
            deadline=self.now + DAY,
        )
        return replace(plain, **changes)

    def request(self, wanted: Request | None = None, **options: Any) -> Digest:
        wanted = wanted or self.wish()
        domain = options.pop("domain", self.domain)
        signed = sign_with_secret(wanted.deal_id(domain), bytes(options.pop("key", BUYER_KEY).key))
        signature = options.pop("signature", signed)
        call = {"sender": self.contracts.stranger, "value": wanted.price_wei} | options
        buyer = call.pop("buyer", self.buyer)
        return Digest(self.exchange.request(buyer, wanted.values(), signature, **call))

    def offer(self, deal_id: Digest, **options: Any) -> None:
        t_address = options.pop("t_address", address_of_point(point_of(T)))
        digest = offer_digest(options.pop("domain", self.domain), deal_id, t_address, MESSAGE)
        signature = sign_with_secret(digest, bytes(options.pop("key", SELLER_KEY).key))
        signature = options.pop("signature", signature)
        call = {"sender": self.seller, "value": BOND_WEI} | options
        self.exchange.offer(deal_id, t_address, MESSAGE, signature, **call)

    def confirm(self, deal_id: Digest, sender: str | None = None) -> None:
        self.exchange.confirm(deal_id, sender=sender or self.buyer)

    def reveal(self, deal_id: Digest, t: int = number(T), sender: str | None = None) -> None:
        self.exchange.reveal(deal_id, t, sender=sender or self.seller)

    def dispute(self, deal_id: Digest, sender: str | None = None, value: int = BOND_WEI) -> None:
        self.exchange.dispute(deal_id, b"\x0b" * 80, sender=sender or self.buyer, value=value)

    def rule(self, deal_id: Digest, for_buyer: bool, sender: str | None = None) -> None:
        self.exchange.rule(deal_id, for_buyer, "looked", sender=sender or self.arbiter)

    def attest(self, sender: str | None = None, **changes: Any) -> None:
        sender = sender or self.third
        key = changes.pop("secret", SIGMA)
        spoken: dict[str, Any] = {"owner": self.seller, "root": ROOT, "key_hash": KEY_HASH}
        spoken |= {"verdict": Verdict.AS_REGISTERED, "note": "fine"} | changes
        signature = spoken.pop("signature", None)
        signed = attestation_digest(self.domain, spoken.pop("signed_as", sender), **spoken)
        signature = signature or sign_with_secret(signed, key)
        self.exchange.attest(*spoken.values(), signature, sender=sender)

    def decide(self, kind: Kind, subject: str) -> None:
        """The other members suspend one, or lift that."""
        registry, members = self.contracts.registry, [self.contracts.server, *self.contracts.hospitals]
        voters = [item for item in members if item != subject and registry.may_vote(item)]
        proposal_id = registry.propose(int(kind), subject, sender=voters[0])
        for voter in voters[1:]:
            if not registry.proposal(proposal_id).enacted:
                registry.vote(proposal_id, sender=voter)
        assert registry.in_good_standing(subject) == (kind is Kind.LIFTING)

    def deal_in(self, state: int) -> Digest:
        """A deal that has gone as far as a state, whatever is registered already."""
        if self.exchange.artifact(self.seller, ROOT).key_hash == bytes(32):
            self.register()
        deal_id = self.request()
        for reached, step in enumerate((self.offer, self.confirm, self.reveal, self.dispute), start=1):
            if reached < state:
                step(deal_id)
        return deal_id

    def event(self) -> dict[str, Any]:
        """The one event of the last call, with its name."""
        (event,) = self.exchange.get_logs()
        named = {name: getattr(event, name) for name in event._fields if name != "address"}
        return {"event": type(event).__name__, **named}

    def credits(self) -> tuple[int, int]:
        """What buyer and seller can claim."""
        return self.exchange.credit_wei(self.buyer), self.exchange.credit_wei(self.seller)

    def state(self, deal_id: Digest) -> int:
        return int(self.exchange.deal(deal_id).state)

    def balance(self) -> int:
        return int(boa.env.get_balance(self.exchange.address))
