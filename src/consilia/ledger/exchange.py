"""The exchange contract for a member: each step of docs/protocols/exchange.md is a typed call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consilia.ledger.client import Ledger, Receipt
from consilia.protocols.exchange import DealState, Request
from consilia.values import Address, ArtifactKind, Digest

# Gas limits: about twice what tests/ledger/test_exchange_gas.py measures (docs/contracts.md, section 7).
REGISTER_GAS, CARD_BYTE_GAS = 250_000, 60
WITHDRAW_GAS = 120_000
ATTEST_GAS = 200_000
REQUEST_GAS = 650_000
OFFER_GAS = 300_000
STEP_GAS = 200_000
CLOSE_GAS = 300_000
CLAIM_GAS = 150_000


@dataclass(frozen=True)
class DealRecord:
    """A deal in exchange.vy; `deadline` (Unix seconds) ends the step that it waits for."""

    buyer: Address
    seller: Address
    arbiter: Address
    state: DealState
    deadline: int
    price_wei: int
    bond_wei: int
    t_address: Address


class ExchangeContract:
    """Reads and writes of exchange.vy. A write's `key` and what it raises are as in `Ledger`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def register(
        self,
        key: str,
        *,
        kind: ArtifactKind,
        root: Digest,
        key_hash: Digest,
        size: int,
        recipient_key: bytes,
        task_id: int,
        round_index: int,
        price_wei: int,
        card: bytes,
    ) -> Receipt:
        """Step 0: name an artifact of one's own that others may ask for."""
        identity = (int(kind), root, key_hash, size, recipient_key)
        arguments = (*identity, task_id, round_index, price_wei, card)
        return self._write(key, "register", arguments, REGISTER_GAS + CARD_BYTE_GAS * len(card))

    def withdraw(self, key: str, root: Digest) -> Receipt:
        """Take no more requests for an artifact, for good."""
        return self._write(key, "withdraw", (root,), WITHDRAW_GAS)

    def attest(
        self,
        key: str,
        *,
        owner: Address,
        root: Digest,
        key_hash: Digest,
        verdict: int,
        note: str,
        signature: bytes,
    ) -> Receipt:
        """Say what one found in an artifact; `signature` is made with the envelope's secret."""
        return self._write(key, "attest", (owner, root, key_hash, verdict, note, signature), ATTEST_GAS)

    def request(self, key: str, buyer: Address, request: Request, signature: bytes) -> Receipt:
        """Step 1: bring a signed request, with its price."""
        arguments = (buyer, request.values(), signature)
        return self._write(key, "request", arguments, REQUEST_GAS, request.price_wei)

    def deny(self, key: str, deal_id: Digest, reason: str) -> Receipt:
        """Step 2: the seller does not want to."""
        return self._write(key, "deny", (deal_id, reason), CLOSE_GAS)

    def offer(
        self, key: str, deal_id: Digest, t_address: Address, message: bytes, signature: bytes, bond_wei: int
    ) -> Receipt:
        """Step 2: the seller's sealed s^ and its bond."""
        return self._write(key, "offer", (deal_id, t_address, message, signature), OFFER_GAS, bond_wei)

    def decline(self, key: str, deal_id: Digest, reason: str) -> Receipt:
        """Step 3: the buyer steps back from an offer."""
        return self._write(key, "decline", (deal_id, reason), CLOSE_GAS)

    def confirm(self, key: str, deal_id: Digest) -> Receipt:
        """Step 3: the buyer has checked the offer."""
        return self._write(key, "confirm", (deal_id,), STEP_GAS)

    def reveal(self, key: str, deal_id: Digest, t: bytes) -> Receipt:
        """Step 4: the seller opens t (32 bytes)."""
        return self._write(key, "reveal", (deal_id, int.from_bytes(t, "big")), STEP_GAS)

    def settle(self, key: str, deal_id: Digest) -> Receipt:
        """Step 5: the seller is paid."""
        return self._write(key, "settle", (deal_id,), CLOSE_GAS)

    def dispute(self, key: str, deal_id: Digest, evidence: bytes, bond_wei: int) -> Receipt:
        """Step 5: the buyer complains to the arbiter."""
        return self._write(key, "dispute", (deal_id, evidence), STEP_GAS, bond_wei)

    def rule(self, key: str, deal_id: Digest, for_buyer: bool, reason: str) -> Receipt:
        """Step 5: the arbiter decides."""
        return self._write(key, "rule", (deal_id, for_buyer, reason), CLOSE_GAS)

    def refund(self, key: str, deal_id: Digest) -> Receipt:
        """End a deal that went no further in time."""
        return self._write(key, "refund", (deal_id,), CLOSE_GAS)

    def claim(self, key: str) -> Receipt:
        """Fetch all that is credited to one."""
        return self._write(key, "claim", (), CLAIM_GAS)

    def deal(self, deal_id: Digest) -> DealRecord | None:
        """A deal at the head; None if there is none of this id."""
        record = self._ledger.read("exchange", "deal", deal_id)
        if record["state"] == 0:
            return None
        return DealRecord(**{**record, "state": DealState(record["state"])})

    def nonce(self, buyer: Address) -> int:
        """The nonce of a buyer's next request."""
        return int(self._ledger.read("exchange", "nonces", buyer))

    def credit_wei(self, account: Address) -> int:
        """What an account can claim now."""
        return int(self._ledger.read("exchange", "credit_wei", account))

    def open_wei(self) -> int:
        """What the contract owes altogether; its balance."""
        return int(self._ledger.read("exchange", "open_wei"))

    def _write(
        self, key: str, function: str, arguments: tuple[Any, ...], gas: int, value_wei: int = 0
    ) -> Receipt:
        return self._ledger.write(key, "exchange", function, arguments, gas, value_wei)
