"""Second opinions as the ledger tells them: models on offer, and every query from its asking to its end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from consilia.ledger.diagnosis_events import (
    Accepted,
    Answered,
    AnswersReleased,
    Asked,
    AuditOpened,
    Challenged,
    DiagnosisCreditPaid,
    ModelOffered,
    OfferWithdrawn,
    QueryClosed,
    Scored,
)
from consilia.ledger.event import Event
from consilia.protocols.consultation import Offer, Query
from consilia.protocols.diagnosis import QueryState
from consilia.roles.credits import Credits
from consilia.roles.short_ids import one_that_begins
from consilia.values import Digest

Moving = Answered | AuditOpened | Scored | Challenged | Accepted | AnswersReleased | QueryClosed


@dataclass
class DiagnosisLog(Credits):
    """Everything that the ledger says of second opinions."""

    offers: dict[int, Offer] = field(default_factory=dict)
    queries: dict[Digest, Query] = field(default_factory=dict)
    transactions: dict[Digest, dict[str, Digest]] = field(default_factory=dict)
    """Of each query: the transaction of each event, by the event's name (the last one of a kind)."""

    def find(self, id_prefix: str) -> Query:
        """The query whose id begins so, in hex.

        Raises:
            InputError: there is none, or several, or hardly a digit of it.
        """
        return one_that_begins(self.queries, id_prefix, "query")


def fold_diagnosis(events: Iterable[Event]) -> DiagnosisLog:
    """The second opinions in a list of events. The contract keeps the order lawful; this only collects."""
    log = DiagnosisLog()
    for event in events:
        if isinstance(event, ModelOffered):
            log.offers[event.offer_id] = _offered(event)
        elif isinstance(event, OfferWithdrawn):
            log.offers[event.offer_id] = replace(log.offers[event.offer_id], withdrawn=True)
        elif isinstance(event, Asked):
            log.queries[event.query_id] = _asked(event, log.offers[event.offer_id])
            log.open_wei += log.offers[event.offer_id].price_wei
            log.transactions[event.query_id] = {"Asked": event.transaction_hash}
        elif isinstance(event, Moving):
            _follow(log, event)
        elif isinstance(event, DiagnosisCreditPaid):
            log.fetch(event.account, event.amount_wei)
    return log


def _follow(log: DiagnosisLog, event: Moving) -> None:
    query = log.queries[event.query_id] = _moved(log.queries[event.query_id], event)
    log.transactions[event.query_id][type(event).__name__] = event.transaction_hash
    if isinstance(event, Answered):
        log.open_wei += query.offer.bond_wei
    elif isinstance(event, QueryClosed):
        log.credit(query.hospital, event.hospital_wei)
        log.credit(query.offer.server, event.server_wei)


def _offered(event: ModelOffered) -> Offer:
    return Offer(
        event.offer_id,
        event.server,
        event.model_digest,
        event.code_book,
        event.price_wei,
        event.bond_wei,
        bytes(event.recipient_key),
        bytes(event.card),
    )


def _asked(event: Asked, offer: Offer) -> Query:
    return Query(
        event.query_id,
        event.hospital,
        offer,
        event.images,
        event.audits,
        event.threshold,
        event.root,
        event.size,
        bytes(event.recipient_key),
        QueryState.ASKED,
        event.deadline,
    )


def _moved(query: Query, event: Moving) -> Query:
    match event:
        case Answered():
            return replace(
                query,
                state=QueryState.ANSWERED,
                deadline=event.deadline,
                reports=event.reports,
                reports_root=event.root,
                reports_size=event.size,
            )
        case AuditOpened():
            xs = tuple(Digest(x) for x in event.xs)
            return replace(query, state=QueryState.OPENED, deadline=event.deadline, roles=event.roles, xs=xs)
        case Scored():
            return replace(
                query,
                state=QueryState.PASSED,
                deadline=event.deadline,
                scored_matches=event.matches,
                matches=event.matches,
                matched=event.matched,
                answers=tuple(Digest(item) for item in event.answers),
                audit_openings=_openings(event.us, event.ys),
            )
        case Challenged():
            return replace(query, matches=event.matches, challenged=query.challenged | 1 << event.position)
        case Accepted():
            return replace(query, state=QueryState.ACCEPTED, deadline=event.deadline)
        case AnswersReleased():
            return replace(query, hidden_openings=_openings(event.us, event.ys))
        case QueryClosed():
            return replace(
                query,
                state=QueryState(event.state),
                ended_in=query.state,
                hospital_wei=event.hospital_wei,
                server_wei=event.server_wei,
                reason=event.reason,
            )


def _openings(us: Iterable[bytes], ys: Iterable[bytes]) -> tuple[tuple[bytes, Digest], ...]:
    return tuple((bytes(u), Digest(y)) for u, y in zip(us, ys, strict=True))
