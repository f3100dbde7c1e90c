"""`consilia network`: found a consortium, invite, join, vote, leave, and see who belongs to it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.accounts import parse_account
from consilia.cli.founding import FORMAT, create
from consilia.cli.joining import invite, join
from consilia.cli.output import Format, Output

if TYPE_CHECKING:
    from consilia.ledger.views import Member
    from consilia.roles.membership.voter import Outcome, Voter

app = typer.Typer(help="Found a consortium, join one, and decide who belongs to it.", no_args_is_help=True)

HOME = typer.Option(..., help="The member's own home.")
GIFT_WEI = 10**18
"""What a newcomer to an embedded chain gets for its first gas: a thousand tasks' worth of play money."""


def _wei(amount: int) -> int:
    if amount >= 2**256:
        raise typer.BadParameter("expected an amount that a ledger can hold, below 2^256 wei")
    return amount


@app.callback()
def _group() -> None:
    """Found a consortium, join one, and decide who belongs to it."""


for command in (create, invite, join):
    app.command()(command)


@app.command()
def members(home: Path = HOME, output: Format = FORMAT) -> None:
    """Show who belongs to the consortium, and how each one stands."""
    from consilia.roles.membership.voter import Voter

    voter = Voter(home.resolve())
    _show_members(voter.registry.members(), output)


@app.command()
def vote(
    proposal_id: int | None = typer.Argument(None, metavar="NUMBER", help="The open proposal to approve."),
    home: Path = HOME,
    request: Path | None = typer.Option(None, help="Propose what a join or change request asks for."),
    suspend: str = typer.Option("", help="Propose to suspend this account until that is lifted."),
    emergency: str = typer.Option("", help="Propose to suspend this account at once, for 14 days."),
    lift: str = typer.Option("", help="Propose to lift this account's suspension."),
    remove: str = typer.Option("", help="Propose to remove this account."),
    quorum: int = typer.Option(0, min=0, max=99, help="Propose: decide with more than this per cent."),
    emergency_quorum: int | None = typer.Option(
        None, min=0, max=99, help="With --quorum: the per cent for emergencies; default: 25."
    ),
    gift_wei: int = typer.Option(
        -1, callback=_wei, help="What a newcomer gets for gas; default: 1 coin on an embedded chain."
    ),
    output: Format = FORMAT,
) -> None:
    """Show what can be voted on; approve a proposal by its number; or propose something."""
    from consilia.errors import InputError
    from consilia.ledger.registry import Kind
    from consilia.roles.membership.requests import JoinRequest
    from consilia.roles.membership.voter import Voter

    voter, say = Voter(home.resolve()), Output("network", output)
    subjects = {
        Kind.SUSPENSION: suspend,
        Kind.EMERGENCY: emergency,
        Kind.LIFTING: lift,
        Kind.REMOVAL: remove,
    }
    asked = [(kind, subject) for kind, subject in subjects.items() if subject]
    if len(asked) + (proposal_id is not None) + (request is not None) + bool(quorum) > 1:
        raise InputError("vote on one thing at a time: a NUMBER, or one proposal")
    if emergency_quorum is not None and not quorum:
        raise InputError("--emergency-quorum goes with --quorum: one proposal says both")
    if request is not None:
        outcome = voter.propose_request(JoinRequest.load(request))
    elif quorum:
        outcome = voter.propose_quorum(quorum, 25 if emergency_quorum is None else emergency_quorum)
    elif asked:
        outcome = voter.propose(asked[0][0], parse_account(asked[0][1]))
    elif proposal_id is not None:
        outcome = voter.vote(proposal_id)
    else:
        _show_open(voter, say)
        return
    _tell_outcome(voter, outcome, say)
    if request is not None and (node := JoinRequest.load(request).node):
        _name_node(node, say)
    _give_gift(voter, outcome, gift_wei, say)


@app.command()
def leave(
    home: Path = HOME,
    yes: bool = typer.Option(False, "--yes", help="Leave without being asked."),
    output: Format = FORMAT,
) -> None:
    """Leave the consortium, at once and for good: only a new vote brings this account back."""
    from consilia.errors import InputError
    from consilia.roles.membership.voter import Voter

    if not yes:
        raise InputError(
            "leaving takes effect at once: money not yet claimed is lost, and a bond goes to whoever still waits for "
            "a step of yours in a deal or a second opinion; say --yes"
        )
    voter = Voter(home.resolve())
    voter.leave()
    Output("network", output)("left", account=voter.address)


@app.command()
def show(home: Path = HOME, output: Format = FORMAT) -> None:
    """Show what the consortium stands on: ledger, contracts, quorum, members, open proposals."""
    from consilia.roles.membership.voter import Voter

    voter = Voter(home.resolve())
    now, deployment, registry = int(time.time()), voter.deployment, voter.registry
    percent, emergency_percent = registry.quorum_percent()
    listed = registry.members()
    Output("network", output)(
        "consortium",
        url=voter.settings.ledger.url,
        chain_id=deployment.chain_id,
        registry=deployment.registry,
        training=deployment.training,
        escrow=deployment.escrow,
        head=voter.reading.confirmed_block().number,
        members=sum(member.is_listed for member in listed),
        in_good_standing=sum(member.in_good_standing(now) for member in listed),
        electorate=registry.electorate(),
        decides=f"more than {percent} %",
        suspends_at_once=f"more than {emergency_percent} %, at least 2",
        open_proposals=len(voter.open_proposals()),
    )


def _show_members(listed: list[Member], output: Format) -> None:
    from consilia.ledger.views import FOR_GOOD
    from consilia.roles.membership.voter import day

    now, say = int(time.time()), Output("network", output)
    for member in listed:
        facts = {
            "account": member.account,
            "role": member.role.name.lower(),
            "standing": member.standing(now),
            "valid_from": day(member.valid_from),
            "valid_to": day(member.valid_to),
            "recipient_key": member.recipient_key.hex(),
            "certificate_digest": member.certificate_digest.hex(),
        }
        if now < member.suspended_until:
            facts["until"] = "lifted" if member.suspended_until == FOR_GOOD else day(member.suspended_until)
        if output is Format.JSON:
            say("member", **facts)
        else:
            _show_member(facts)


def _show_member(facts: dict[str, str]) -> None:
    """A member in lines of 80 columns at most, none of them cut: people compare these digits, and copy them."""
    standing = facts["standing"] + (f" until {facts['until']}" if "until" in facts else "")
    typer.echo(f"{facts['account']}  {facts['role']}, {standing}")
    typer.echo(f"  valid        {facts['valid_from']} to {facts['valid_to']}")
    typer.echo(f"  key          {facts['recipient_key']}")
    typer.echo(f"  certificate  {facts['certificate_digest']}")


def _show_open(voter: Voter, say: Output) -> None:
    from consilia.roles.membership.voter import day

    proposals = voter.open_proposals()
    if not proposals:
        say("nothing to vote on")
    for proposal in proposals:
        say(
            "open",
            proposal=proposal.proposal_id,
            would=voter.describe(proposal),
            proposer=proposal.proposer,
            approvals=proposal.approvals,
            needed=proposal.needed,
            expires=day(proposal.expires_at),
            **voter.particulars(proposal),
        )


def _tell_outcome(voter: Voter, outcome: Outcome, say: Output) -> None:
    from consilia.roles.membership.voter import day

    proposal = outcome.proposal
    say(
        "voted" if outcome.was_new else "had voted already",
        proposal=proposal.proposal_id,
        to=voter.describe(proposal),
        by=voter.address,
        approvals=proposal.approvals,
        **voter.particulars(proposal),
    )
    if proposal.enacted:  # how many were needed is not told any more: who was admitted counts by now
        say("decided", proposal=proposal.proposal_id, kind=proposal.kind.name.lower())
    else:
        missing = max(0, proposal.needed - proposal.approvals)
        say("waiting", needed=proposal.needed, still_needed=missing, expires=day(proposal.expires_at))


def _name_node(node: str, say: Output) -> None:
    """What members had better write into their settings of a newcomer's node."""
    from urllib.parse import urlsplit

    from consilia.ledger.embedded.genesis import LOOPBACK_HOSTS

    answers = (
        urlsplit(node).hostname in LOOPBACK_HOSTS
    )  # elsewhere a node tells other members' programs nothing
    places = "peers of [node]" + (" and to witnesses of [ledger]" if answers else "")
    say("its node", address=node, hint=f"in consilia.toml add it to {places}")


def _give_gift(voter: Voter, outcome: Outcome, gift_wei: int, say: Output) -> None:
    """A newcomer on an embedded chain has no money before its first block; the deciding voter gives it some."""
    from consilia.ledger.registry import Kind
    from consilia.roles.membership.founding import GENESIS_FILE

    proposal = outcome.proposal
    if not (outcome.was_new and proposal.enacted and proposal.kind is Kind.ADMISSION):
        return
    amount_wei = gift_wei if gift_wei >= 0 else GIFT_WEI * (voter.home / GENESIS_FILE).exists()
    if amount_wei:
        voter.give(proposal, amount_wei)
        say("gave the newcomer money for gas", account=proposal.subject, wei=str(amount_wei))
