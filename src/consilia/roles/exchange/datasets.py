"""An owner's artifacts: pack, seal and register a data set, or name an update of one's own, for others to ask for."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import InputError
from consilia.imaging.cases import Dataset
from consilia.imaging.package import Contents, pack
from consilia.protocols.card import DEIDENTIFICATION, MAX_DESCRIPTION, MAX_TITLE, Card, Counts, parse_card
from consilia.protocols.exchange import MAX_WEI
from consilia.roles.artifacts import plaintext_name, publish_artifact
from consilia.roles.exchange.deal_log import Listing
from consilia.roles.exchange.deals import Exchange
from consilia.roles.exchange.examination import dataset_context
from consilia.roles.party import Party
from consilia.values import ArtifactKind, Digest


@dataclass(frozen=True)
class Offering:
    """What the owner says of an artifact; `name` is its own, unique in its home, and stays there.

    Raises:
        InputError: no card can say this, or nobody could ever pay the price.
    """

    name: str
    title: str
    description: str
    price_wei: int

    def __post_init__(self) -> None:
        _require_length("name", self.name, 1, MAX_TITLE)
        _require_length("title", self.title, 1, MAX_TITLE)
        _require_length("description", self.description, 0, MAX_DESCRIPTION)
        if not 0 <= self.price_wei < MAX_WEI:
            raise InputError(f"expected a price from 0 to less than {MAX_WEI} wei, got {self.price_wei}")
        self.card(None).to_bytes()

    def card(self, counts: Counts | None) -> Card:
        """The card of a data set with these counts, or of an update."""
        stated = DEIDENTIFICATION if counts else ""
        return Card(title=self.title, description=self.description, dataset=counts, deidentification=stated)


def register_dataset(exchange: Exchange, dataset: Dataset, offering: Offering) -> Digest:
    """Step 0: pack a data set, seal it to its owner alone, register it. Returns the root.

    Called again after a crash under the same name it goes on with what was sealed.

    Raises:
        UnusableImageError: an image changed since the data set was read.
        InputError: the name stands for other data, or is registered with other words or price, or withdrawn.
    """
    party, name = exchange.party, f"dataset/{offering.name}"
    salt = bytes.fromhex(party.state.remember_once(f"salt/{name}", secrets.token_hex(32)))
    # the key it was sealed to must be the key that is registered, also if it is rotated in between
    recipient = bytes.fromhex(party.state.remember_once(f"key/{name}", party.identity.recipient.hex()))
    artifact, kept = party.state.artifact(name), party.state.fact(f"card/{name}")
    listing = exchange.log().listings.get((party.address, artifact.root)) if artifact else None
    if listing is not None:
        _require_offered(listing)
    if artifact is None or kept is None or (listing is None and not party.store.has(artifact.root)):
        card = _seal(party, dataset, offering, salt, recipient)
        artifact = party.state.artifact(name)
        assert artifact is not None
    else:
        party.state.forget_draft(name)
        party.work(plaintext_name(name)).unlink(missing_ok=True)  # of a process that was killed
        card = _card_again(dataset, offering, salt, parse_card(kept.encode()), artifact.root)
    if listing is None:
        exchange.contract.register(
            f"{name}/{artifact.root}",
            kind=ArtifactKind.DATASET,
            root=artifact.root,
            key_hash=artifact.key_hash,
            size=artifact.size,
            recipient_key=recipient,
            task_id=0,
            round_index=0,
            price_wei=offering.price_wei,
            card=card.to_bytes(),
        )
    else:
        _require_same_terms(listing, offering, card)
    party.report("data set registered", root=str(artifact.root), bytes=artifact.size, title=offering.title)
    return artifact.root


def register_update(exchange: Exchange, task_id: int, round_index: int, offering: Offering) -> Digest:
    """Step 0: name a price and a card for an update that training took from this hospital. Returns the root.

    Raises:
        InputError: this hospital handed in no such update, or it is registered with other words or price, or withdrawn.
    """
    party = exchange.party
    listing = next(
        (
            item
            for item in exchange.log().listings.values()
            if (item.owner, item.task_id, item.round_index) == (party.address, task_id, round_index)
        ),
        None,
    )
    if listing is None or listing.kind is not ArtifactKind.UPDATE:
        raise InputError(f"this hospital handed in no update in round {round_index} of task {task_id}")
    card = offering.card(None)
    if listing.price_wei is None:
        exchange.contract.register(
            f"update/{task_id}/{round_index}/offered",
            kind=ArtifactKind.UPDATE,
            root=listing.root,
            key_hash=listing.key_hash,
            size=listing.size,
            recipient_key=bytes(32),
            task_id=task_id,
            round_index=round_index,
            price_wei=offering.price_wei,
            card=card.to_bytes(),
        )
    else:
        _require_same_terms(listing, offering, card)
    party.report("update registered for exchange", root=str(listing.root), title=offering.title)
    return listing.root


def _seal(party: Party, dataset: Dataset, offering: Offering, salt: bytes, recipient: bytes) -> Card:
    """Pack and seal; the package is readable, so it is its owner's alone, and gone whatever happens."""
    name = f"dataset/{offering.name}"
    package = party.work(plaintext_name(name))
    package.unlink(missing_ok=True)
    package.touch(mode=0o600)
    try:
        with package.open("wb") as target:
            card = offering.card(_counts(pack(dataset, salt, target)))
        party.state.remember(f"card/{name}", card.to_bytes().decode())
        context = dataset_context(party.ledger.deployment, party.address)
        publish_artifact(party.store, party.state, name, package, [recipient], context)
    finally:
        package.unlink(missing_ok=True)
    return card


def _card_again(dataset: Dataset, offering: Offering, salt: bytes, kept: Card, root: Digest) -> Card:
    """The card of a data set that is sealed already; its words may change until they are on the ledger."""
    with Path(os.devnull).open("wb") as nowhere:
        counts = _counts(pack(dataset, salt, nowhere))
    if counts != kept.dataset:
        raise InputError(
            f"the name {offering.name!r} stands for other data, sealed as {root}: take another name for these"
        )
    return kept.model_copy(update={"title": offering.title, "description": offering.description})


def _counts(contents: Contents) -> Counts:
    return Counts(
        images=contents.images,
        images_with_boxes=contents.images_with_boxes,
        patients=contents.patients,
        studies=contents.studies,
        modality=contents.modality,
        boxes_by_category=contents.boxes_by_category,
        members_digest=str(contents.members_digest),
    )


def _require_same_terms(listing: Listing, offering: Offering, card: Card) -> None:
    """What is registered stays so: to say "registered" of other words would be a lie."""
    _require_offered(listing)
    if (listing.price_wei, listing.card) != (offering.price_wei, card.to_bytes()):
        title = listing.described.title if listing.described else ""
        raise InputError(
            f"artifact {listing.root} is registered already, for {listing.price_wei} wei under the title {title!r}: "
            "price, title and description stay as they are; withdraw it, and take another name for other ones"
        )


def _require_offered(listing: Listing) -> None:
    if listing.withdrawn:
        raise InputError(
            f"artifact {listing.root} was withdrawn from the exchange, for good; data can be offered again under "
            "another name"
        )


def _require_length(what: str, text: str, least: int, most: int) -> None:
    if not least <= len(text) <= most:
        raise InputError(f"expected a {what} of {least} to {most} characters, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"expected a {what} in Unicode, got bytes that are none") from error


def add_to_training(delivered: Path, target: Path) -> Path:
    """Put a delivered artifact where training finds it, whole or not at all.

    Args:
        delivered: the folder with the contents and their provenance.
        target: where to; its parent is made.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        delivered.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = target.with_name(f".{target.name}.partial")  # on the other file system, and no data set yet
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(delivered, partial)
        partial.rename(target)
        shutil.rmtree(delivered)
    return target
