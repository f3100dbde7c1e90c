"""`consilia data`: a party's own artifacts, and what it has for others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli import holdings, images
from consilia.cli.output import Format, Output

if TYPE_CHECKING:
    from consilia.roles.exchange.deals import Exchange
    from consilia.values import Digest

app = typer.Typer(help="Look after this party's own artifacts.", no_args_is_help=True)

WARNING = """This takes the artifact {root} off the exchange, and destroys, for good, on this machine and in the store:
  - the secret that opens it, and what was kept under its name
  - its envelope, with the stanzas that its recipients open it by
It cannot undo what others did before. It cannot reach:
  - what a recipient has opened, or can still open from a copy of the envelope
  - copies and backups of the store or of this home, and earlier versions that the store keeps
  - spare blocks of flash disks, which are overwritten when the disk likes
  - the ledger: root, size, owner and times stay there
An update that entered a model stays in that model; the audit of its round can no longer be repeated."""


@app.callback()
def _group() -> None:
    """Look after this party's own artifacts."""


@app.command()
def erase(
    root: str = typer.Argument(help="The artifact's root, 64 hex digits."),
    home: Path = typer.Option(..., help="The home that sealed it, with its consilia.toml."),
    reason: str = typer.Option("", help="Goes into the tombstone, in clear: name no patient."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    force: bool = typer.Option(
        False, "--force", help="Also where a deal on it is open, or the ledger does not answer."
    ),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report."),
) -> None:
    """Destroy the keys and salts of an artifact and its envelope, and write a tombstone. There is no way back."""
    from consilia.errors import InputError
    from consilia.roles.erasure import erase as erase_artifact
    from consilia.roles.exchange.deals import Exchange
    from consilia.roles.party import Party
    from consilia.settings import HospitalSettings, load_party
    from consilia.values import Digest

    try:
        digest = Digest.from_hex(root)
    except ValueError as error:
        raise InputError(f"expected a root, 64 hex digits, got {root}") from error
    settings, say = load_party(home), Output("data", output)
    party = Party(home, settings, say)
    exchange = Exchange(party, settings.exchange) if isinstance(settings, HospitalSettings) else None
    if exchange is not None:
        _check_sales(exchange, digest, force, say)
    typer.echo(WARNING.format(root=digest), err=True)
    if not yes:
        typer.confirm("Erase it?", abort=True, err=True)
    if exchange is not None:
        _withdraw(exchange, digest, force, say)
    tombstone = erase_artifact(party.state, party.store, home, party.account, digest, reason)
    say("erased", root=str(digest), tombstone=f"tombstones/{digest}.json", erased_at=tombstone.erased_at)


def _check_sales(exchange: Exchange, root: Digest, force: bool, say: Output) -> None:
    """Somebody has paid, or is about to: an artifact that is owed to it is not erased without a word."""
    from consilia.errors import LedgerUnreachableError, PolicyError
    from consilia.roles.exchange.withdrawal import sales

    try:
        open_deals = sales(exchange, root)
    except LedgerUnreachableError:
        if not force:
            raise
        return
    for deal in open_deals:
        say("owed to a buyer", deal=str(deal.deal_id), buyer=deal.buyer, state=deal.state.name.lower())
    if open_deals and not force:
        raise PolicyError(
            f"{len(open_deals)} deals on {root} are open: deny them or let them end, or say --force: who has not "
            "confirmed yet has its money back when the time is over, or at once when `hospital run` denies it"
        )


def _withdraw(exchange: Exchange, root: Digest, force: bool, say: Output) -> None:
    from consilia.errors import LedgerError
    from consilia.roles.exchange.withdrawal import withdraw

    try:
        withdraw(exchange, root)
    except LedgerError as error:
        if not force:
            raise
        say("still on offer", reason=str(error), hint=f"later: consilia exchange withdraw {root}")


@app.command()
def register(
    home: Path = typer.Option(..., help="The hospital's home, with its consilia.toml."),
    name: str = typer.Option(..., help="Your own name for it; the same name again goes on after a crash."),
    title: str = typer.Option(..., help="One line for the card, which everybody reads on the ledger."),
    description: str = typer.Option("", help="More for the card; no word about a patient."),
    price_wei: int = typer.Option(0, min=0, help="What you ask for it."),
    data: Path | None = typer.Option(
        None,
        exists=True,
        file_okay=False,
        help="A folder of images with COCO or VOC boxes; default: [data] path.",
    ),
    update: str = typer.Option("", help="TASK/ROUND: an update that you handed in, in place of a data set."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report."),
) -> None:
    """Pack, de-identify, seal and register a data set, or put a price on an update of yours."""
    from consilia.cli.exchange import open_exchange
    from consilia.errors import InputError
    from consilia.roles.exchange.datasets import Offering, register_dataset, register_update
    from consilia.settings import HospitalSettings, load

    offering = Offering(name, title, description, price_wei)
    handed_in = re.fullmatch("([0-9]{1,18})/([0-9]{1,9})", update)
    if update and not handed_in:
        raise InputError(f"expected --update TASK/ROUND, such as 1/0, got {update!r}")
    exchange = open_exchange(home, output)
    if handed_in:
        register_update(exchange, int(handed_in[1]), int(handed_in[2]), offering)
        return
    from consilia.imaging.readers import read_dataset

    dataset = read_dataset(data or load(HospitalSettings, home).data.path)
    Output("data", output)("read", images=len(dataset), skipped=len(dataset.skipped))
    register_dataset(exchange, dataset, offering)


app.command("import")(images.import_images)
for command in (holdings.ls, holdings.check, holdings.split, holdings.preview):
    app.command(command.__name__)(command)
