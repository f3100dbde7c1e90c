"""An artifact leaves the exchange: who still waits for it, and the end of its offer."""

from __future__ import annotations

from consilia.ledger.exchange_events import ArtifactRegistered
from consilia.protocols.exchange import Deal
from consilia.roles.exchange.deals import Exchange
from consilia.values import Digest


def sales(exchange: Exchange, root: Digest) -> list[Deal]:
    """The open deals in which this hospital owes an artifact to somebody."""
    address = exchange.party.address
    deals = exchange.log().deals.values()
    mine = [deal for deal in deals if (deal.seller, deal.request.root) == (address, root)]
    return [deal for deal in mine if not deal.state.over]


def withdraw(exchange: Exchange, root: Digest) -> bool:
    """Take no more requests for an artifact, for good; open deals go on. Whether there was anything to withdraw.

    An update that was never registered for exchange cannot be withdrawn: requests for it are denied once it is erased.
    """
    party = exchange.party
    registered = any(
        isinstance(event, ArtifactRegistered) and (event.owner, event.root) == (party.address, root)
        for event in party.events()
    )
    if not registered or exchange.log().listings[party.address, root].withdrawn:
        return False
    exchange.contract.withdraw(f"exchange/withdraw/{root}", root)
    party.report("withdrawn", root=str(root))
    return True
