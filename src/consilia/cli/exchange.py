"""`consilia exchange`: ask for another hospital's artifact, decide about requests, and prove what was delivered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.accounts import parse_account
from consilia.cli.output import Format, Output, printable

if TYPE_CHECKING:
    from consilia.protocols.exchange import Deal
    from consilia.roles.exchange.deal_log import ExchangeLog, Listing
    from consilia.roles.exchange.deals import Exchange

app = typer.Typer(help="Exchange data sets and updates against proof.", no_args_is_help=True)

HOME = typer.Option(..., help="The hospital's home, with its consilia.toml.")
FORMAT = typer.Option(Format.TEXT, "--format", help="How to report.")
DEAL = typer.Argument(..., help="The deal's id, or its first digits.")
ROOT = typer.Argument(..., help="The artifact's root, or its first digits.")


@app.callback()
def _group() -> None:
    """Exchange data sets and updates against proof."""


def open_exchange(home: Path, output: Format) -> Exchange:
    """A party's part in exchanges, on its home; its `hospital run` may be at work beside it.

    Deals are between hospitals; a server or an auditor looks, and judges.
    """
    from consilia.roles.exchange.deals import Exchange
    from consilia.roles.party import Party
    from consilia.settings import HospitalSettings, load_party
    from consilia.settings.sections import ExchangeSection

    settings = load_party(home)
    policy = settings.exchange if isinstance(settings, HospitalSettings) else ExchangeSection()
    return Exchange(Party(home, settings, Output(settings.name, output)), policy)


@app.command()
def offers(home: Path = HOME, output: Format = FORMAT) -> None:
    """What can be asked for: price, size, description, and what others attest who have opened it."""
    exchange = open_exchange(home, output)
    listed = [item for item in exchange.log().listings.values() if not item.withdrawn and item.genuine]
    for listing in listed:
        exchange.party.report("on offer", **_facts(listing))
    if not listed:
        exchange.party.report("nothing on offer")


@app.command()
def request(
    root: str = ROOT,
    home: Path = HOME,
    owner: str = typer.Option("", help="Whose; default: who registered this root first."),
    price_wei: int | None = typer.Option(None, min=0, help="Default: what the owner asks, or 0."),
    bond_wei: int | None = typer.Option(
        None, min=0, help="At stake on each side; default: a tenth of the price."
    ),
    arbiter: str = typer.Option(
        "", help="The account that would judge; default: the first active auditor or server."
    ),
    output: Format = FORMAT,
) -> None:
    """Ask for an artifact: a signed request, with the price in escrow until it is delivered or refunded."""
    from consilia.roles.exchange.deals import Terms

    exchange = open_exchange(home, output)
    listing = exchange.log().find(root, parse_account(owner) if owner else "")
    price = price_wei if price_wei is not None else listing.price_wei or 0
    bond = bond_wei if bond_wei is not None else price // 10
    exchange.request(
        listing, Terms(price, bond, parse_account(arbiter) if arbiter else _first_arbiter(exchange))
    )


@app.command()
def inbox(home: Path = HOME, output: Format = FORMAT) -> None:
    """Requests that wait for this hospital's decision; at an arbiter's, the disputes that wait for its ruling."""
    from consilia.cli.ledger.words import time_text
    from consilia.protocols.exchange import DealState, objections

    exchange = open_exchange(home, output)
    log, own, waiting = exchange.log(), exchange.party.address, False
    for deal in log.deals.values():
        if deal.request.arbiter == own and deal.state is DealState.DISPUTED:
            waiting = True
            facts = _deal_facts(deal, exchange, log)
            exchange.party.report("to judge", **facts, until=time_text(deal.deadline))
        elif deal.seller == own and deal.state is DealState.OPEN:
            waiting = True
            listing = log.listing_of(deal)
            listed_wei = (listing.price_wei if listing else None) or 0
            against = objections(deal.request, deal.buyer, listed_wei, exchange.policy)
            facts = _deal_facts(deal, exchange, log)
            exchange.party.report("asked for", **facts, policy="; ".join(against) or "admits it")
    if not waiting:
        exchange.party.report("nothing waits")


@app.command()
def grant(deal: str = DEAL, home: Path = HOME, output: Format = FORMAT) -> None:
    """Say yes to a request: the offer and the bond go onto the ledger; `hospital run` does the rest."""
    exchange = open_exchange(home, output)
    log = exchange.log()
    exchange.grant(log.find_deal(deal), log)


@app.command()
def deny(
    deal: str = DEAL,
    home: Path = HOME,
    reason: str = typer.Option("", help="Up to 128 bytes; everybody reads it."),
    output: Format = FORMAT,
) -> None:
    """Say no to a request: the buyer has its money back."""
    exchange = open_exchange(home, output)
    log = exchange.log()
    exchange.deny(log.find_deal(deal), log, reason)


@app.command()
def fetch(
    deal: str = DEAL,
    home: Path = HOME,
    wait_seconds: float = typer.Option(0.0, min=0, help="Wait that long for the owner's next step."),
    train: bool = typer.Option(
        False, help="An update: train this hospital's own model from it for one round; again for one more."
    ),
    as_it_is: bool = typer.Option(
        False, "--as-it-is", help="Take, and pay for, a data set that is not what its card promises."
    ),
    output: Format = FORMAT,
) -> None:
    """Take all steps that are up to the buyer; what is delivered joins the data that training uses."""
    from consilia.roles.exchange.fetching import await_delivery, take_in

    exchange = open_exchange(home, output)
    delivered = await_delivery(exchange, deal, wait_seconds)
    take_in(exchange, home, delivered, train, as_it_is=as_it_is)


@app.command()
def withdraw(root: str = ROOT, home: Path = HOME, output: Format = FORMAT) -> None:
    """Take no more requests for an artifact of yours, for good; open deals go on."""
    from consilia.errors import InputError
    from consilia.roles.exchange.withdrawal import withdraw as withdraw_artifact

    exchange = open_exchange(home, output)
    listing = exchange.log().find(root, exchange.party.address)
    if not withdraw_artifact(exchange, listing.root):
        raise InputError(
            f"artifact {listing.root} is withdrawn already, or an update that was never registered for exchange"
        )


@app.command()
def receipt(
    deal: str = typer.Argument("", help="The deal's id, or its first digits; none with --verify."),
    home: Path | None = typer.Option(None, help="The buyer's home; none with --verify."),
    verify: Path | None = typer.Option(
        None, dir_okay=False, help="Check this receipt: no ledger, no home needed."
    ),
    output: Format = FORMAT,
) -> None:
    """Print where a deal's receipt is, or check one offline. Exit code 0, or 5 and what is wrong."""
    from consilia.errors import InputError

    if verify is not None:
        _verify(verify, output)
        return
    if not deal or home is None:
        raise InputError("expected a deal and --home, or --verify FILE")
    exchange = open_exchange(home, output)
    log = exchange.log()
    found = log.find_deal(deal)
    file = exchange.receipt(found, log)
    if file is None:
        raise InputError(f"deal {found.deal_id} has no receipt here: it is {found.state.name.lower()}")
    exchange.party.report("receipt", deal=str(found.deal_id), file=str(file))


def _verify(file: Path, output: Format) -> None:
    from consilia.errors import InputError
    from consilia.protocols.receipt import verify_receipt

    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"expected a receipt in {file}; {error.strerror}") from error
    proven = verify_receipt(data)
    Output("receipt", output)(
        "receipt is good",
        deal=str(proven.deal_id),
        buyer=proven.buyer,
        owner=proven.owner,
        root=str(proven.root),
        price_wei=str(proven.price_wei),
        verdict=proven.verdict.name.lower(),
    )


@app.command()
def dispute(deal: str = DEAL, home: Path = HOME, output: Format = FORMAT) -> None:
    """Complain to the arbiter that what was delivered is not what was registered; the bond is at stake."""
    exchange = open_exchange(home, output)
    exchange.dispute(exchange.log().find_deal(deal))


@app.command()
def rule(
    home: Path = HOME,
    look: bool = typer.Option(False, "--look", help="Only say what you would rule, and why."),
    output: Format = FORMAT,
) -> None:
    """As the arbiter: open every disputed artifact that is yours to judge, by the buyer's steps, and rule."""
    from consilia.roles.exchange.arbiter import Arbiter
    from consilia.roles.party import Party
    from consilia.settings import ServerSettings, load

    settings = load(ServerSettings, home)
    party = Party(home, settings, Output(settings.name, output))
    if not Arbiter(party).advance(only_look=look):
        party.report("nothing to judge")


@app.command()
def attest(
    what: str = typer.Argument(
        ..., help="A buyer: the deal's id. A server: the root of an update of its task. Or the first digits."
    ),
    home: Path = typer.Option(..., help="The home of the buyer or of the server."),
    note: str = typer.Option("", help="Up to 256 bytes; everybody reads it."),
    output: Format = FORMAT,
) -> None:
    """Say on the ledger what you found in an artifact that you opened: only its secret can sign that."""
    from consilia.errors import InputError
    from consilia.roles.exchange.attestation import attest as put_on_ledger
    from consilia.roles.exchange.attestation import attest_update
    from consilia.roles.party import Party
    from consilia.settings import ServerSettings, load_party

    settings = load_party(home)
    if isinstance(settings, ServerSettings):
        party = Party(home, settings, Output(settings.name, output))
        party.report("attested", verdict=attest_update(party, what, note).name.lower())
        return
    exchange = open_exchange(home, output)
    log = exchange.log()
    found = log.find_deal(what)
    verdict, listing = exchange.found(found), log.listing_of(found)
    if verdict is None or listing is None:
        raise InputError(f"deal {found.deal_id} is not opened in this home: fetch it first")
    put_on_ledger(exchange.party, listing, exchange.secret_of(found), verdict, note)
    exchange.party.report("attested", verdict=verdict.name.lower())


@app.command("ls")
def list_deals(home: Path = HOME, output: Format = FORMAT) -> None:
    """All deals of this party, as buyer, seller or arbiter."""
    exchange = open_exchange(home, output)
    log = exchange.log()
    mine = [
        deal
        for deal in log.deals.values()
        if exchange.party.address in (deal.buyer, deal.seller, deal.request.arbiter)
    ]
    for deal in mine:
        exchange.party.report("deal", **_deal_facts(deal, exchange, log))
    if not mine:
        exchange.party.report("no deals")


def _facts(listing: Listing) -> dict[str, str]:
    from consilia.protocols.exchange import Verdict

    card = listing.described
    # one a line, and no note has two: else it could say what another member found
    attested = [
        f"{Verdict(item.verdict).name.lower()} ({item.attester}): {printable(item.note)}".removesuffix(": ")
        for item in listing.attestations
    ]
    return {
        "root": str(listing.root),
        "kind": listing.kind.name.lower(),
        "owner": listing.owner,
        "price_wei": "make a proposal" if listing.price_wei is None else str(listing.price_wei),
        "bytes": str(listing.size),
        "attested": "\n".join(attested) or "by nobody",
        "description": card.text if card else f"task {listing.task_id}, round {listing.round_index}",
    }


def _deal_facts(deal: Deal, exchange: Exchange, log: ExchangeLog) -> dict[str, str]:
    listing = log.listing_of(deal)
    card = listing.described if listing else None
    sides = {deal.request.arbiter: "arbiter", deal.seller: "seller", deal.buyer: "buyer"}
    side = sides[exchange.party.address]
    others = {"other": deal.seller if side == "buyer" else deal.buyer}
    return {
        "deal": str(deal.deal_id),
        "side": side,
        "state": deal.state.name.lower(),
        **({"buyer": deal.buyer, "seller": deal.seller} if side == "arbiter" else others),
        "root": str(deal.request.root),
        "title": card.title if card else "",
        "price_wei": str(deal.request.price_wei),
        "bond_wei": str(deal.request.bond_wei),
        "reason": deal.reason,
    }


def _first_arbiter(exchange: Exchange) -> str:
    from consilia.errors import InputError
    from consilia.values import Role

    ledger = exchange.party.ledger
    now = ledger.confirmed_block().timestamp
    members = [member for member in ledger.members() if member.in_good_standing(now)]
    for role in (Role.AUDITOR, Role.SERVER):
        for member in members:
            if member.role is role:
                return member.account
    raise InputError("the registry has no active auditor or server that could judge: name an arbiter")
