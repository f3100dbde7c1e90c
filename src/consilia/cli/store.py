"""`consilia store`: look after the store of sealed artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format, Output

if TYPE_CHECKING:
    from consilia.settings import HospitalSettings, ServerSettings

app = typer.Typer(help="Look after the store of sealed artifacts.", no_args_is_help=True)

HOME = typer.Option(..., help="The home of a hospital or a server, with its consilia.toml.")
FORMAT = typer.Option(Format.TEXT, "--format", help="How to report.")
HOUR_SECONDS = 3600.0


@app.callback()
def _group() -> None:
    """Look after the store of sealed artifacts."""


@app.command()
def status(home: Path = HOME, output: Format = FORMAT) -> None:
    """Whether the store answers, and how much is in it."""
    from consilia.roles.stores import find_store

    settings, say = _settings(home), Output("store", output)
    store = find_store(settings.store)
    ages = sorted(found.modified_seconds for found in store.objects())
    say(
        "status",
        place=settings.store.url or str(settings.store.path),
        objects=len(ages),
        unfinished_uploads_older_than_a_day=len(store.abandoned(24 * HOUR_SECONDS)),
    )


@app.command()
def fsck(
    home: Path = HOME,
    everything: bool = typer.Option(
        False, "--everything", help="Read objects too that the ledger does not name."
    ),
    remove_damaged: bool = typer.Option(
        False, "--remove-damaged", help="Delete what is damaged, so that a good copy can take its place."
    ),
    output: Format = FORMAT,
) -> None:
    """Read every object that the ledger names. Exit code 0, or 5 when one that is needed is missing or damaged.

    Needed is what training used, what is sold in a confirmed deal, what this party offers to others, and what its own
    open deals and queries are about. The rest is told.
    """
    from consilia.errors import VerificationError
    from consilia.roles.erasure import tombstones
    from consilia.roles.keys import show_keys
    from consilia.roles.storekeeping import Claim, Condition, examine, read_claims
    from consilia.roles.stores import find_store

    settings, say = _settings(home), Output("store", output)
    store = find_store(settings.store)
    claims = read_claims(settings.ledger, show_keys(settings.keys).address)
    stones, refused = tombstones(home)
    for error in refused:
        say("no tombstone, and no excuse", reason=str(error))
    erased = {(stone.root, stone.owner) for stone in stones}
    named = {claim.root for claim in claims}
    if everything:
        strays = [root for root in store.roots() if root not in named]
        claims += [
            Claim(root, "an object that the ledger does not name", None, None, True) for root in strays
        ]
    failures, good = 0, 0
    for claim in claims:
        finding = examine(store, claim, erased)
        failures += finding.is_failure
        good += finding.condition is Condition.GOOD
        if remove_damaged and finding.condition is Condition.DAMAGED:
            store.delete(claim.root)
        if finding.condition is not Condition.GOOD:
            say(
                finding.condition.value,
                root=str(claim.root),
                what=claim.what,
                needed=claim.needed,
                reason=finding.reason,
            )
    say("checked", good=good, missing_or_damaged=failures, of=len(claims))
    if failures:
        raise VerificationError(
            f"{failures} of {len(claims)} objects are needed and missing or damaged; take damaged ones away with "
            "--remove-damaged, then fetch them with `consilia store copy --from` a store that has them"
        )


@app.command()
def gc(
    home: Path = HOME,
    older_than_hours: float = typer.Option(
        24.0, help="Leave what is younger: it may be registered in a moment."
    ),
    delete: bool = typer.Option(False, "--delete", help="Really delete; otherwise only say what would go."),
    output: Format = FORMAT,
) -> None:
    """Delete what neither the ledger nor this party needs: envelopes never registered, uploads never finished."""
    from consilia.roles.storekeeping import collect, find_garbage, own_roots, read_claims
    from consilia.roles.stores import find_store

    settings, say = _settings(home), Output("store", output)
    store = find_store(settings.store)
    kept = {claim.root for claim in read_claims(settings.ledger)} | own_roots(home)
    garbage = find_garbage(store, kept, older_than_hours * HOUR_SECONDS)
    for found in garbage.objects:
        say("not needed", object=str(found.root))
    for upload in garbage.uploads:
        say("not finished", upload=upload)
    gone = list(collect(store, garbage, settings.ledger)) if delete else []
    say(
        "deleted" if delete else "would be deleted; run again with --delete",
        objects=sum(name.startswith("object") for name in gone) if delete else len(garbage.objects),
        uploads=sum(name.startswith("upload") for name in gone) if delete else len(garbage.uploads),
    )


@app.command()
def copy(
    home: Path = HOME,
    to: Path | None = typer.Option(None, help="Copy into this store: a TOML file with a [store] section."),
    source: Path | None = typer.Option(None, "--from", help="Copy out of this store into the home's."),
    output: Format = FORMAT,
) -> None:
    """Copy every object between the home's store and another, each checked on its way; run again, it goes on."""
    from consilia.errors import ObjectDamagedError, VerificationError
    from consilia.roles.stores import find_store, open_store
    from consilia.settings import load_store
    from consilia.store.verified import copy_object

    other = to or source
    if other is None or (to and source):
        raise typer.BadParameter("expected either --to or --from")
    own, section = _settings(home).store, load_store(other)
    origin, target = (find_store(own), open_store(section)) if to else (find_store(section), open_store(own))
    say = Output("store", output)
    copied, there, copied_bytes, damaged = 0, 0, 0, 0
    for root in origin.roots():
        try:
            size = copy_object(origin, target, root)
        except ObjectDamagedError as error:
            damaged += 1
            say("not copied", root=str(root), reason=str(error))
            continue
        copied, there, copied_bytes = copied + bool(size), there + (not size), copied_bytes + size
    say("copied", objects=copied, bytes=copied_bytes, already_there=there, damaged=damaged)
    if damaged:
        raise VerificationError(f"{damaged} objects are damaged here and were not copied")


def _settings(home: Path) -> HospitalSettings | ServerSettings:
    from consilia.settings import load_party

    return load_party(home)
