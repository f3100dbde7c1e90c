"""A hospital's deals, as buyer and as seller (steps: docs/protocols/exchange.md); it may be killed at any point.

What cannot be made again is on disk before it is posted: the secret that every t comes from, each sealed offer,
each signed request, each decision.
"""

from __future__ import annotations

import json
import secrets
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from consilia.crypto.blinding import derive_t
from consilia.errors import (
    EnvelopeError,
    InputError,
    StoreError,
    TransactionRevertedError,
    VerificationError,
    reason_of,
)
from consilia.ledger.exchange import ExchangeContract
from consilia.protocols.exchange import (
    MAX_WEI,
    Deal,
    DealState,
    ExchangePolicy,
    Request,
    SealedOffer,
    Step,
    Verdict,
    check_offer,
    exchange_domain,
    make_offer,
    next_step,
    objections,
    offer_digest,
    open_secret,
    seal_evidence,
)
from consilia.protocols.receipt import write_receipt
from consilia.roles.exchange.deal_log import ExchangeLog, Listing, fold_exchange
from consilia.roles.exchange.examination import Finding, examine, place_of
from consilia.roles.lock import alone
from consilia.roles.party import Party
from consilia.roles.training.task_log import fold
from consilia.values import Address, Digest, Role
from consilia.whole_file import whole_file

REQUEST_SECONDS = 7 * 86_400
"""How long an owner has to answer: it may have to ask a person."""


@dataclass(frozen=True)
class Terms:
    """What a buyer proposes."""

    price_wei: int
    bond_wei: int
    arbiter: Address


class Exchange:
    """One hospital's deals. Several processes of one home may work on them: each step is taken once."""

    def __init__(self, party: Party, policy: ExchangePolicy) -> None:
        self.party = party
        self.policy = policy
        deployment = party.ledger.deployment
        self.contract = ExchangeContract(party.ledger)
        self.domain = exchange_domain(deployment.chain_id, deployment.exchange)
        self._reported: set[tuple[Digest, str]] = set()

    def log(self) -> ExchangeLog:
        """The exchange as the ledger tells it now."""
        return fold_exchange(self.party.events())

    def advance(self) -> ExchangeLog:
        """Take every step that is up to this hospital, and fetch what it is owed."""
        log = self.log()
        for deal in log.deals.values():
            if self.party.address in (deal.buyer, deal.seller) and not deal.state.over:
                self._attempt(deal, log)
        self._claim(log)
        return log

    def _attempt(self, deal: Deal, log: ExchangeLog) -> None:
        step = next_step(deal, self.party.address, time.time(), self._both_bound(deal))
        try:
            self._take(step, deal, log)
        except TransactionRevertedError as error:
            self._say(deal, "exchange step refused", reason=error.reason)
        except (StoreError, VerificationError) as error:
            self._say(deal, "exchange step failed", reason=str(error))
        except OSError as error:  # a full disk says nothing of what was delivered
            self._say(deal, "exchange step failed", reason=reason_of(error))

    def _both_bound(self, deal: Deal) -> bool:
        """Whether each side may act; a seller that has left while its buyer waits for t owes it all the same."""
        if not self._is_active(deal.buyer):
            return False
        owes_t = deal.state is DealState.CONFIRMED and self.party.ledger.registry.has_left(deal.seller)
        return owes_t or self._is_active(deal.seller)

    def _is_active(self, account: Address) -> bool:
        return self.party.ledger.member(account).in_good_standing(int(time.time()))

    def _take(self, step: Step, deal: Deal, log: ExchangeLog) -> None:
        key = f"exchange/{step.value}/{deal.deal_id}"
        match step:
            case Step.CONSIDER:
                self._consider(deal, log)
            case Step.CHECK_OFFER:
                self._check_offer(deal, log)
            case Step.REVEAL if self._is_active(deal.seller):
                # the confirmation lies as deep as the settings ask, or this log would not tell of it
                t = derive_t(self._secret(), deal.deal_id)
                self.contract.reveal(key, deal.deal_id, t)
                self._say(deal, "t revealed")
            case Step.OPEN:
                self._open(deal, log)
            case Step.SETTLE:
                self.contract.settle(key, deal.deal_id)
                self._say(deal, "settled")
            case Step.REFUND if deal.buyer == self.party.address or deal.t_address:
                self.contract.refund(key, deal.deal_id)
                self._say(deal, "refunded")

    # The seller

    def grant(self, deal: Deal, log: ExchangeLog) -> None:
        """Step 2: a person says yes.

        Raises:
            InputError: the deal is over, another's, or was decided otherwise.
        """
        self._decide(deal, "grant")
        self._consider(deal, log)

    def deny(self, deal: Deal, log: ExchangeLog, reason: str) -> None:
        """Step 2: a person says no. Raises as `grant`."""
        self._decide(deal, f"deny {reason}")
        self._consider(deal, log)

    def _decide(self, deal: Deal, decision: str) -> None:
        if deal.seller != self.party.address:
            raise InputError(f"deal {deal.deal_id} is {deal.seller}'s to decide")
        if next_step(deal, self.party.address, time.time()) is not Step.CONSIDER:
            raise InputError(f"deal {deal.deal_id} is {deal.state.name.lower()}: there is nothing to decide")
        kept = self.party.state.remember_once(f"exchange/decision/{deal.deal_id}", decision)
        if kept != decision:
            raise InputError(f"deal {deal.deal_id} was decided before: {kept}")

    def _consider(self, deal: Deal, log: ExchangeLog) -> None:
        decision = self.party.state.fact(f"exchange/decision/{deal.deal_id}") or self._by_policy(deal, log)
        if (
            self.party.state.artifact_of_root(deal.request.root) is None
        ):  # erased: nobody could ever deliver it
            decision = "deny the owner does not have it any more"
        if decision == "grant":
            self._offer(deal, log)
        elif decision:
            reason = decision.removeprefix("deny ").encode()[:128].decode(errors="ignore")
            self.contract.deny(f"exchange/deny/{deal.deal_id}", deal.deal_id, reason)
            self._say(deal, "denied", reason=reason)
        else:
            self._say(deal, "request waits for a person", price_wei=str(deal.request.price_wei))

    def _by_policy(self, deal: Deal, log: ExchangeLog) -> str:
        if self.policy.decide != "policy":
            return ""
        listing = log.listing_of(deal)
        listed_wei = (listing.price_wei if listing else None) or 0
        against = objections(deal.request, deal.buyer, listed_wei, self.policy)
        decision = "deny " + "; ".join(against) if against else "grant"
        return self.party.state.remember_once(f"exchange/decision/{deal.deal_id}", decision)

    def _offer(self, deal: Deal, log: ExchangeLog) -> None:
        own = self.party.state.artifact_of_root(deal.request.root)
        if own is None or own.key_hash != deal.request.key_hash or log.listing_of(deal) is None:
            raise VerificationError("the request names an artifact whose secret is not in this home")
        offer = self._sealed_offer(deal, own.secret)
        digest = offer_digest(self.domain, deal.deal_id, offer.t_address, offer.message)
        self.contract.offer(
            f"exchange/offer/{deal.deal_id}",
            deal.deal_id,
            offer.t_address,
            offer.message,
            self.party.sign(digest),
            deal.request.bond_wei,
        )
        self._say(deal, "offered")

    def _sealed_offer(self, deal: Deal, secret: bytes) -> SealedOffer:
        """The one offer of a deal, on disk before anybody sees it."""
        made = make_offer(self._secret(), secret, deal.deal_id, deal.request.recipient_key)
        text = json.dumps([made.t_address, made.message.hex()])
        t_address, message = json.loads(
            self.party.state.remember_once(f"exchange/sealed/{deal.deal_id}", text)
        )
        return SealedOffer(t_address, bytes.fromhex(message))

    def _secret(self) -> bytes:
        """What every t of this hospital comes from; on disk before the first."""
        kept = self.party.state.remember_once("exchange/secret", secrets.token_hex(32))
        return bytes.fromhex(kept)

    # The buyer

    def request(self, listing: Listing, terms: Terms) -> Digest:
        """Step 1: sign a request and put the price into escrow. Returns the deal's id.

        Called again after a crash it goes on with the request that it signed; an open deal on the same artifact
        is not asked for twice.

        Raises:
            InputError: it is one's own, withdrawn, or an update that training never took; or the terms cannot be.
        """
        self._check_terms(terms, listing.owner)
        if listing.owner == self.party.address or listing.withdrawn or not listing.genuine:
            raise InputError(f"artifact {listing.root} is your own, withdrawn, or not what training took")
        for deal in self.log().deals.values():
            mine = deal.buyer == self.party.address and not deal.state.over
            if mine and (deal.seller, deal.request.root) == (listing.owner, listing.root):
                self._say(deal, "asked already", state=deal.state.name.lower(), arbiter=deal.request.arbiter)
                return deal.deal_id
        request = self._signed_request(listing, terms)
        deal_id = request.deal_id(self.domain)
        self.contract.request(
            f"exchange/request/{deal_id}", self.party.address, request, self.party.sign(deal_id)
        )
        self._say_id(deal_id, "requested", root=str(listing.root), price_wei=str(request.price_wei))
        return deal_id

    def _check_terms(self, terms: Terms, owner: Address) -> None:
        """What the contract would refuse, in words, before anything is signed."""
        if max(terms.price_wei, terms.bond_wei) >= MAX_WEI:
            raise InputError(f"expected a price and a bond of less than {MAX_WEI} wei")
        registry = self.party.ledger.registry
        judges = any(registry.is_active(terms.arbiter, role) for role in (Role.AUDITOR, Role.SERVER))
        if terms.arbiter in (self.party.address, owner) or not judges:
            raise InputError(f"expected an active auditor or server as the arbiter, got {terms.arbiter}")

    def _signed_request(self, listing: Listing, terms: Terms) -> Request:
        nonce = self.contract.nonce(self.party.address)
        made = Request(
            listing.owner,
            listing.root,
            listing.key_hash,
            listing.task_id,
            listing.round_index,
            terms.arbiter,
            terms.price_wei,
            terms.bond_wei,
            self.party.identity.recipient,
            nonce,
            int(time.time()) + REQUEST_SECONDS,
        )
        name = f"exchange/asked/{nonce}/{listing.owner}/{listing.root}"
        kept = Request.from_text(self.party.state.remember_once(name, made.to_text()))
        if kept.deadline <= time.time() or replace(kept, deadline=made.deadline) != made:
            self.party.state.remember(name, made.to_text())  # never posted, or the nonce would be another
            return made
        return kept

    def envelope_copy(self, deal: Deal) -> Path:
        """This buyer's own copy of the ciphertext: no store can lose or change it once the deal is confirmed."""
        copy = self.party.work(f"bought-{deal.request.root}")
        if not copy.exists():
            self.party.store.get(deal.request.root, copy)
        return copy

    def _blinded(self, deal: Deal) -> bytes:
        """s^ out of an offer, after all of step 3's checks."""
        return check_offer(deal.message, self.party.identity, deal.deal_id, deal.request, deal.t_address)

    def _check_offer(self, deal: Deal, log: ExchangeLog) -> None:
        listing = log.listing_of(deal)
        try:
            if listing is None:
                raise VerificationError("the deal is about an artifact that nobody registered so")
            self._blinded(deal)
        except (EnvelopeError, VerificationError) as error:
            reason = str(error).encode()[:128].decode(errors="ignore")
            self.contract.decline(f"exchange/decline/{deal.deal_id}", deal.deal_id, reason)
            self._say(deal, "declined", reason=reason)
            return
        with self.at_delivery(deal):
            self.envelope_copy(deal)
        self.contract.confirm(f"exchange/confirm/{deal.deal_id}", deal.deal_id)
        self._say(deal, "confirmed")

    def _open(self, deal: Deal, log: ExchangeLog) -> None:
        """Step 5: what opens as registered is paid for; what does not open is disputed; the rest a person decides."""
        found = self.deliver(deal, log)
        if found is Verdict.AS_REGISTERED:
            self.accept(deal)
        elif found is Verdict.DOES_NOT_OPEN:
            self.dispute(deal)

    def accept(self, deal: Deal) -> None:
        """Step 5: pay for what was delivered, without waiting for the time to complain to pass."""
        self.contract.settle(f"exchange/accept/{deal.deal_id}", deal.deal_id)
        self._say(deal, "accepted")

    def secret_of(self, deal: Deal) -> bytes:
        """The envelope's secret, from s^ and the revealed t.

        Raises:
            VerificationError: there is no t yet.
        """
        if not deal.t:
            raise VerificationError(f"deal {deal.deal_id} is {deal.state.name.lower()}: t is not revealed")
        return open_secret(self._blinded(deal), deal.t, deal.request.key_hash)

    def found(self, deal: Deal) -> Verdict | None:
        """What this buyer found in a deal's artifact; None before it was opened in this home."""
        kept = self.party.state.fact(f"exchange/found/{deal.deal_id}")
        return None if kept is None else Verdict[kept]

    def at_delivery(self, deal: Deal) -> AbstractContextManager[None]:
        """Held by who opens a deal's artifact or moves it: two that write one folder would find each other's halves."""
        folder = self.delivered(deal)
        folder.parent.mkdir(exist_ok=True)
        return alone(folder.with_name(f"{folder.name}.lock"))

    def deliver(self, deal: Deal, log: ExchangeLog) -> Verdict:
        """Open what was bought, once, whoever comes first. Raises as `open_bought`."""
        with self.at_delivery(deal):
            found = self.found(deal)
            if found is None:
                finding = self.open_bought(deal, log)
                found = finding.verdict
                self._say(deal, "opened", verdict=found.name.lower(), reason=finding.reason)
        return found

    def open_bought(self, deal: Deal, log: ExchangeLog, *, as_it_is: bool = False) -> Finding:
        """Open what was bought into `delivered/`, with its provenance and its receipt; see `at_delivery`.

        Args:
            as_it_is: take a data set also where its card promises another.

        Raises:
            VerificationError: t is not revealed.
            StoreError: the store lacks the object and there is no copy.
        """
        secret = self.secret_of(deal)
        listing = log.listing_of(deal)
        assert listing is not None, "checked before the deal was confirmed"
        folder = self.delivered(deal)
        tasks = fold(self.party.events())
        place = place_of(listing, self.party.ledger.deployment, tasks)
        copy = self.envelope_copy(deal)
        finding = examine(copy, secret, listing, place, tasks, folder, as_it_is=as_it_is)
        self._write_receipt(deal, listing, finding.verdict)
        if finding.folder is not None:
            provenance = {
                "owner": listing.owner,
                "root": str(listing.root),
                "deal": str(deal.deal_id),
                "kind": listing.kind.name.lower(),
                "task_id": listing.task_id,
                "round_index": listing.round_index,
                "price_wei": str(deal.request.price_wei),
                "title": listing.described.title if listing.described else "",
                "found": finding.verdict.name.lower(),
            }
            (folder / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
        # last: from here on the delivery is not made again
        self.party.state.remember(f"exchange/found/{deal.deal_id}", finding.verdict.name)
        copy.unlink(missing_ok=True)
        return finding

    def receipt(self, deal: Deal, log: ExchangeLog) -> Path | None:
        """The file of a deal's receipt, written again where it is lost; None while nothing was revealed.

        Raises as `open_bought`.
        """
        file, listing = self.receipt_file(deal), log.listing_of(deal)
        if not file.exists() and deal.buyer == self.party.address and deal.t and listing is not None:
            self._write_receipt(deal, listing, self.deliver(deal, log))
        return file if file.exists() else None

    def _write_receipt(self, deal: Deal, listing: Listing, verdict: Verdict) -> None:
        secret = self.secret_of(deal)
        receipt = write_receipt(self.domain, deal, listing.size, verdict, secret, self.party.sign)
        with whole_file(self.receipt_file(deal)) as file:
            file.write(receipt.to_bytes())

    def delivered(self, deal: Deal) -> Path:
        """Where the contents of a deal go when they were opened."""
        return self.party.home / "delivered" / str(deal.deal_id)

    def receipt_file(self, deal: Deal) -> Path:
        """Where the receipt of a deal is."""
        folder = self.party.home / "receipts"
        folder.mkdir(exist_ok=True)
        return folder / f"{deal.deal_id}.json"

    def dispute(self, deal: Deal) -> None:
        """Step 5: complain to the arbiter; the bond goes to who is right.

        Raises:
            InputError: the deal is another's, or there is nothing to complain of yet or any more.
        """
        if deal.buyer != self.party.address:
            raise InputError(f"deal {deal.deal_id} is {deal.buyer}'s: the buyer alone can complain")
        if deal.state is not DealState.REVEALED:
            raise InputError(
                f"deal {deal.deal_id} is {deal.state.name.lower()}: the buyer can complain after the reveal alone"
            )
        arbiter_key = self.party.ledger.member(deal.request.arbiter).recipient_key
        made = seal_evidence(arbiter_key, self._blinded(deal), deal.deal_id)
        evidence = bytes.fromhex(
            self.party.state.remember_once(f"exchange/evidence/{deal.deal_id}", made.hex())
        )
        key = f"exchange/dispute/{deal.deal_id}"
        self.contract.dispute(key, deal.deal_id, evidence, deal.request.bond_wei)
        self._say(deal, "disputed")

    # Both

    def _claim(self, log: ExchangeLog) -> None:
        owed_wei = log.owed_wei(self.party.address)
        if owed_wei == 0 or not self._is_active(self.party.address):  # what a suspended one is owed waits
            return
        try:
            self.contract.claim(f"exchange/claim/{log.claims.get(self.party.address, 0)}")
        except TransactionRevertedError as error:
            self.party.report("claim refused", reason=error.reason)
        else:
            self.party.report("claimed", amount_wei=str(owed_wei))

    def _say(self, deal: Deal, step: str, **facts: str) -> None:
        self._say_id(deal.deal_id, step, **facts)

    def _say_id(self, deal_id: Digest, step: str, **facts: str) -> None:
        if (deal_id, step) not in self._reported:  # each block asks again; a person reads it once
            self._reported.add((deal_id, step))
            self.party.report(step, deal=str(deal_id), **facts)
