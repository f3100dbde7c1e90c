"""Saying on the ledger what one found in an artifact: a buyer in what it bought, a server in its hospitals' updates."""

from __future__ import annotations

import shutil

from consilia.crypto.envelope import read_secret
from consilia.crypto.typed_data import sign_with_secret
from consilia.errors import InputError, PolicyError
from consilia.ledger.exchange import ExchangeContract
from consilia.protocols.exchange import Verdict, attestation_digest, exchange_domain
from consilia.roles.exchange.deal_log import Listing, fold_exchange
from consilia.roles.exchange.examination import examine, place_of
from consilia.roles.party import Party
from consilia.roles.training.task_log import fold
from consilia.values import ArtifactKind

MAX_NOTE_BYTES = 256


def attest(party: Party, listing: Listing, secret: bytes, verdict: Verdict, note: str) -> None:
    """Put an attestation onto the ledger, signed with the artifact's secret.

    Raises:
        PolicyError: the note is longer than the contract takes.
        TransactionRevertedError: it is not the secret, or not this party's to say.
    """
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise PolicyError(f"a note has at most {MAX_NOTE_BYTES} bytes, this one {len(note.encode())}")
    deployment = party.ledger.deployment
    domain = exchange_domain(deployment.chain_id, deployment.exchange)
    place = (listing.owner, listing.root, listing.key_hash)
    digest = attestation_digest(domain, party.address, *place, verdict, note)
    ExchangeContract(party.ledger).attest(
        _next_key(party, listing, f"{int(verdict)} {note}"),
        owner=listing.owner,
        root=listing.root,
        key_hash=listing.key_hash,
        verdict=verdict,
        note=note,
        signature=sign_with_secret(digest, secret),
    )


def _next_key(party: Party, listing: Listing, words: str) -> str:
    """A key of its own for each change of mind, so that the ledger has what was said last; the same for the same."""
    name = f"exchange/attest/{listing.owner}/{listing.root}"
    count, _, last = (party.state.fact(name) or "0 ").partition(" ")
    if last != words:
        count = str(int(count) + 1)
        party.state.remember(name, f"{count} {words}")
    return f"{name}/{count}"


def attest_update(server: Party, root_prefix: str, note: str) -> Verdict:
    """As a server: open an update of a task of one's own by the steps of a buyer, and attest what is in it.

    Raises:
        InputError: no update of such a root, or of another server's task.
        EnvelopeError: it holds no secret for this server, so there is nothing to sign with.
        StoreError: the store lacks it.
    """
    events = server.events()
    listing, tasks = fold_exchange(events).find(root_prefix), fold(events)
    task = tasks.get(listing.task_id)
    if listing.kind is not ArtifactKind.UPDATE or task is None or task.published.server != server.address:
        raise InputError(f"artifact {listing.root} is no update of a task of this server: it cannot open it")
    place = place_of(listing, server.ledger.deployment, tasks)
    copy, folder = server.work(f"attested-{listing.root}"), server.work(f"attested-{listing.root}.d")
    try:
        server.store.get(listing.root, copy)
        with copy.open("rb") as ciphertext:
            secret = read_secret(ciphertext, server.identity, place.recipients, place.context)
        verdict = examine(copy, secret, listing, place, tasks, folder).verdict
    finally:
        copy.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    attest(server, listing, secret, verdict, note)
    return verdict
