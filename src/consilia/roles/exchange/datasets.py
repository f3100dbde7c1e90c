"""An owner's artifacts: pack, seal and register a data set, or name an update of one's own, for others to ask for."""

from __future__ import annotations

import errno
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import InputError
from consilia.imaging.cases import Dataset
from consilia.imaging.package import pack
from consilia.protocols.card import DEIDENTIFICATION, Card, Counts
from consilia.roles.artifacts import publish_artifact
from consilia.roles.exchange.deals import Exchange
from consilia.roles.exchange.examination import dataset_context
from consilia.values import ArtifactKind, Digest


@dataclass(frozen=True)
class Offering:
    """What the owner says of an artifact; `name` is its own, unique in its home, and stays there."""

    name: str
    title: str
    description: str
    price_wei: int


def register_dataset(exchange: Exchange, dataset: Dataset, offering: Offering) -> Digest:
    """Step 0: pack a data set, seal it to its owner alone, register it. Returns the root.

    Called again after a crash under the same name it goes on with the same package.

    Raises:
        UnusableImageError: an image changed since the data set was read.
    """
    party, name = exchange.party, f"dataset/{offering.name}"
    kept = party.state.remember_once(f"salt/{name}", secrets.token_hex(32))
    package = party.work(f"package-{Digest.of(offering.name.encode())}.tar")
    known = party.state.fact(f"card/{name}")
    artifact = party.state.artifact(name)
    if known is None or artifact is None or not party.store.has(artifact.root):
        with package.open("wb") as target:
            contents = pack(dataset, bytes.fromhex(kept), target)
        counts = Counts(
            images=contents.images,
            images_with_boxes=contents.images_with_boxes,
            patients=contents.patients,
            studies=contents.studies,
            modality=contents.modality,
            boxes_by_category=contents.boxes_by_category,
            members_digest=str(contents.members_digest),
        )
        card = Card(
            title=offering.title,
            description=offering.description,
            dataset=counts,
            deidentification=DEIDENTIFICATION,
        )
        known = card.to_bytes().decode()
        party.state.remember(f"card/{name}", known)
    # the key it was sealed to must be the key that is registered, also if it is rotated in between
    recipient = bytes.fromhex(party.state.remember_once(f"key/{name}", party.identity.recipient.hex()))
    context = dataset_context(party.ledger.deployment, party.address)
    artifact = publish_artifact(party.store, party.state, name, package, [recipient], context)
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
        card=known.encode(),
    )
    package.unlink(missing_ok=True)
    party.report("data set registered", root=str(artifact.root), bytes=artifact.size, title=offering.title)
    return artifact.root


def register_update(exchange: Exchange, task_id: int, round_index: int, offering: Offering) -> Digest:
    """Step 0: name a price and a card for an update that training took from this hospital. Returns the root.

    Raises:
        InputError: this hospital handed in no such update.
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
        card=Card(title=offering.title, description=offering.description).to_bytes(),
    )
    party.report("update registered for exchange", root=str(listing.root), title=offering.title)
    return listing.root


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
