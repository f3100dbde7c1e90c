"""`consilia network invite|join`: from the invite that a member writes to a newcomer's home and signed request."""

from __future__ import annotations

from pathlib import Path

import typer

from consilia.cli.founding import FORMAT, IMAGES, MOST_DAYS, PASSWORD_FILE, tell_password
from consilia.cli.output import Format, Output, make_room


def invite(
    home: Path = typer.Option(..., help="The member's own home."),
    to: Path = typer.Option(Path("invite.json"), help="Where to write the invite."),
    role: str = typer.Option("hospital", help="The role that is offered."),
    output: Format = FORMAT,
) -> None:
    """Write the one file with which somebody can join. It gives no right by itself: the members vote."""
    from consilia.roles.membership.joining import make_invite

    make_room(to)
    made = make_invite(home.resolve(), role)
    made.save(to)
    Output("network", output)(
        "invite written", file=str(to), fingerprint=made.fingerprint, members=len(made.verifiers)
    )


def join(
    invite_file: Path | None = typer.Argument(None, metavar="INVITE", help="The invite that a member sent."),
    home: Path = typer.Option(..., help="The newcomer's home; it is made where it is missing."),
    name: str = typer.Option("", help="Its name; default: the name of its home."),
    role: str = typer.Option("", help="Its role; default: what the invite offers."),
    data: Path | None = IMAGES,
    certificate: Path | None = typer.Option(None, exists=True, dir_okay=False, help="Its legal certificate."),
    days: int = typer.Option(
        0, min=0, max=MOST_DAYS, help="How long its record is valid; 365 for a newcomer."
    ),
    port: int = typer.Option(0, min=0, max=65535, help="Its node's port; 0 takes a free one."),
    store: Path | None = typer.Option(
        None, help="Where it reaches the store; default: what the invite says."
    ),
    password_file: Path | None = PASSWORD_FILE,
    change: bool = typer.Option(False, help="A member asks for another record instead."),
    new_account: bool = typer.Option(False, help="With --change: a new ledger account."),
    output: Format = FORMAT,
) -> None:
    """Make keys, settings and a signed join request from an invite; or, with --change, ask for a new record."""
    from consilia.errors import InputError
    from consilia.roles.membership import joining
    from consilia.roles.membership.requests import Invite
    from consilia.settings import store_at

    say, home = Output("network", output), home.resolve()
    content = certificate.read_bytes() if certificate else b""
    if change:
        request = joining.change(home, new_account=new_account, certificate=content, days=days)
        say("change requested", request=str(home / joining.CHANGE_FILE), account=request.account)
        return
    if invite_file is None:
        raise InputError("expected INVITE, the file that a member wrote with `consilia network invite`")
    invitation = Invite.load(invite_file)
    make_room(home, folder=True)
    with tell_password(home, say):
        request = joining.join(
            invitation,
            home,
            name=name or home.name,
            role=role,
            data=data,
            certificate=content,
            days=days or 365,
            port=port,
            store=store_at(store) if store else None,
            password_file=password_file,
        )
    say(
        "ready to join",
        request=str(home / joining.REQUEST_FILE),
        account=request.account,
        invite_fingerprint=invitation.fingerprint,
    )
    if output is Format.TEXT:
        say("next", send="the request to a member, who runs `consilia network vote --request`")
