"""The exchange as the ledger tells it: artifacts on offer, what was attested of them, and every deal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from consilia.errors import InputError, VerificationError
from consilia.ledger.event import Event
from consilia.ledger.events import UpdateRegistered
from consilia.ledger.exchange_events import (
    ArtifactRegistered,
    ArtifactWithdrawn,
    Attested,
    Confirmed,
    CreditPaid,
    DealClosed,
    Disputed,
    Offered,
    Requested,
    Revealed,
)
from consilia.protocols.card import Card, parse_card
from consilia.protocols.exchange import Deal, DealState, Request
from consilia.roles.credits import Credits
from consilia.roles.short_ids import first_digits, one_that_begins
from consilia.values import Address, ArtifactKind, Digest


@dataclass(frozen=True)
class Listing:
    """An artifact that can be asked for: registered at the exchange, or an update that training took."""

    owner: Address
    root: Digest
    key_hash: Digest
    size: int
    kind: ArtifactKind
    task_id: int
    round_index: int
    recipient_key: bytes = b""
    """What a data set is sealed to."""
    price_wei: int | None = None
    """None: the owner has named none."""
    card: bytes = b""
    withdrawn: bool = False
    genuine: bool = True
    """False for an update that its owner registered, but that training never took so."""
    attestations: tuple[Attested, ...] = ()

    @property
    def described(self) -> Card | None:
        """The card; None where there is none, or one that is malformed."""
        try:
            return parse_card(self.card) if self.card else None
        except VerificationError:
            return None


@dataclass
class ExchangeLog(Credits):
    """Everything that the ledger says of the exchange."""

    listings: dict[tuple[Address, Digest], Listing] = field(default_factory=dict)
    deals: dict[Digest, Deal] = field(default_factory=dict)

    def find(self, root_prefix: str, owner: Address = "") -> Listing:
        """The artifact whose root begins so, in hex; with an owner, that one's.

        A root is public, and anybody may register a copy of another's: without an owner the first one is meant.

        Raises:
            InputError: there is none, or several, or hardly a digit of it.
        """
        wanted = first_digits(root_prefix)
        found = [
            item
            for (account, root), item in self.listings.items()
            if str(root).startswith(wanted) and owner in ("", account)
        ]
        if len({item.root for item in found}) != 1:
            raise InputError(
                f"expected the root of one artifact, {root_prefix!r} begins that of {len(found)}"
            )
        return found[0]

    def find_deal(self, id_prefix: str) -> Deal:
        """The deal whose id begins so, in hex.

        Raises:
            InputError: there is none, or several, or hardly a digit of it.
        """
        return one_that_begins(self.deals, id_prefix, "deal")

    def listing_of(self, deal: Deal) -> Listing | None:
        """The artifact of a deal, if it is what the request says; None if nobody registered such a one."""
        found = self.listings.get((deal.seller, deal.request.root))
        fits = found and (found.key_hash, found.task_id, found.round_index) == (
            deal.request.key_hash,
            deal.request.task_id,
            deal.request.round_index,
        )
        return found if fits else None


def fold_exchange(events: Iterable[Event]) -> ExchangeLog:
    """The exchange in a list of events. The contract keeps the order lawful; this only collects."""
    log = ExchangeLog()
    for event in events:
        if isinstance(event, UpdateRegistered | ArtifactRegistered):
            _list(log, event)
        elif isinstance(event, ArtifactWithdrawn | Attested):
            _annotate(log, event)
        elif isinstance(event, Requested):
            log.deals[event.deal_id] = _opened(event)
            log.open_wei += event.price_wei
        elif isinstance(event, Offered | Confirmed | Revealed | Disputed | DealClosed):
            log.deals[event.deal_id] = _moved(log.deals[event.deal_id], event)
            if isinstance(event, Offered | Disputed):
                log.open_wei += log.deals[event.deal_id].request.bond_wei
            elif isinstance(event, DealClosed):
                log.credit(log.deals[event.deal_id].buyer, event.buyer_wei)
                log.credit(log.deals[event.deal_id].seller, event.seller_wei)
        elif isinstance(event, CreditPaid):
            log.fetch(event.account, event.amount_wei)
    return log


def _list(log: ExchangeLog, event: UpdateRegistered | ArtifactRegistered) -> None:
    if isinstance(event, UpdateRegistered):
        place = (event.hospital, event.root)
        listing = Listing(
            event.hospital,
            event.root,
            event.key_hash,
            event.size,
            ArtifactKind.UPDATE,
            event.task_id,
            event.round_index,
        )
        log.listings.setdefault(place, listing)  # who registers the same root in two rounds sells the first
        return
    place = (event.owner, event.root)
    known = log.listings.get(place)
    listing = Listing(
        event.owner,
        event.root,
        event.key_hash,
        event.size,
        ArtifactKind(event.kind),
        event.task_id,
        event.round_index,
        event.recipient_key,
        event.price_wei,
        event.card,
    )
    # The contract cannot look into training's events: that an update is one of them is seen here.
    told = known and (known.key_hash, known.size, known.task_id, known.round_index) == (
        event.key_hash,
        event.size,
        event.task_id,
        event.round_index,
    )
    log.listings[place] = replace(listing, genuine=listing.kind is ArtifactKind.DATASET or bool(told))


def _annotate(log: ExchangeLog, event: ArtifactWithdrawn | Attested) -> None:
    place = (event.owner, event.root)
    listing = log.listings.get(place)
    if listing is None:
        return
    if isinstance(event, ArtifactWithdrawn):
        log.listings[place] = replace(listing, withdrawn=True)
    elif event.key_hash == listing.key_hash:  # else somebody attests with a secret that it made up
        others = tuple(item for item in listing.attestations if item.attester != event.attester)
        log.listings[place] = replace(listing, attestations=(*others, event))


def _opened(event: Requested) -> Deal:
    request = Request(
        event.owner,
        event.root,
        event.key_hash,
        event.task_id,
        event.round_index,
        event.arbiter,
        event.price_wei,
        event.bond_wei,
        event.recipient_key,
        event.nonce,
        event.deadline,
    )
    return Deal(event.deal_id, request, event.buyer, event.signature, DealState.OPEN, event.deadline)


def _moved(deal: Deal, event: Offered | Confirmed | Revealed | Disputed | DealClosed) -> Deal:
    match event:
        case Offered():
            return replace(
                deal,
                state=DealState.OFFERED,
                deadline=event.deadline,
                t_address=event.t_address,
                message=event.message,
                offer_signature=event.signature,
            )
        case Confirmed():
            return replace(deal, state=DealState.CONFIRMED, deadline=event.deadline)
        case Revealed():
            return replace(deal, state=DealState.REVEALED, deadline=event.deadline, t=event.t)
        case Disputed():
            return replace(deal, state=DealState.DISPUTED, deadline=event.deadline, evidence=event.evidence)
        case DealClosed():
            return replace(
                deal,
                state=DealState(event.state),
                buyer_wei=event.buyer_wei,
                seller_wei=event.seller_wei,
                reason=event.reason,
            )
