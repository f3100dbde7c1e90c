"""Step 5 of an exchange, for the buyer and for an arbiter: open what was sold, and say what was found."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consilia.artifact import artifact_root
from consilia.crypto.envelope import open_with_secret, reseal_root
from consilia.errors import EnvelopeError, ObjectDamagedError, VerificationError
from consilia.federation.tensors import TensorFile
from consilia.imaging.package import unpack
from consilia.ledger.contracts import Deployment
from consilia.protocols.card import Counts
from consilia.protocols.exchange import Verdict
from consilia.protocols.training import TaskContexts
from consilia.roles.exchange.deal_log import Listing
from consilia.roles.training.rounds import read_metrics
from consilia.roles.training.task_log import TaskLog
from consilia.values import Address, ArtifactContext, ArtifactKind, Digest

UPDATE_FILE = "update.safetensors"


@dataclass(frozen=True)
class Place:
    """What an artifact's envelope is bound to: its context, and the keys that it is sealed for."""

    context: ArtifactContext
    recipients: Sequence[bytes]


def dataset_context(deployment: Deployment, owner: Address) -> ArtifactContext:
    """The context of a data set that a hospital offers at the exchange."""
    return ArtifactContext(deployment.chain_id, deployment.exchange, 0, 0, owner, ArtifactKind.DATASET)


def place_of(listing: Listing, deployment: Deployment, tasks: dict[int, TaskLog]) -> Place:
    """Where an artifact belongs, by the ledger.

    Raises:
        VerificationError: an update of a task or round that the ledger does not know.
    """
    if listing.kind is ArtifactKind.DATASET:
        return Place(dataset_context(deployment, listing.owner), (listing.recipient_key,))
    task = tasks.get(listing.task_id)
    if task is None or not listing.genuine:
        raise VerificationError(f"the ledger knows no such update of task {listing.task_id}")
    server = task.published.server
    contexts = TaskContexts(deployment.chain_id, deployment.training, task.task_id, server)
    recipients = (task.task_keys[listing.owner], task.recipients[server])
    return Place(contexts.update(listing.round_index, listing.owner), recipients)


@dataclass(frozen=True)
class Finding:
    """What an opening found; `folder` holds the contents, where there are any."""

    verdict: Verdict
    reason: str
    folder: Path | None


def examine(
    envelope: Path,
    secret: bytes,
    listing: Listing,
    place: Place,
    tasks: dict[int, TaskLog],
    folder: Path,
    *,
    as_it_is: bool = False,
) -> Finding:
    """Open an envelope with a secret that is the registered one, encrypt again, compare, look inside.

    Args:
        envelope: a copy of the object, whose bytes had the registered root.
        folder: where the contents go; what is there from an earlier attempt is replaced.
        as_it_is: put them there also where a data set is another than its card promises.

    Raises:
        ObjectDamagedError: the copy has changed since.
    """
    plaintext = folder.with_name(folder.name + ".plain")
    try:
        try:
            _open_and_compare(envelope, secret, listing, place, plaintext)
        except EnvelopeError as error:
            _require_root(envelope, listing.root)
            return Finding(Verdict.DOES_NOT_OPEN, str(error), None)
        try:
            against = _look_inside(plaintext, listing, tasks, folder)
        except VerificationError as error:
            return Finding(Verdict.NOT_AS_DESCRIBED, str(error), None)
        if not against:
            return Finding(Verdict.AS_REGISTERED, "", folder)
        if not as_it_is:
            shutil.rmtree(folder)
        return Finding(Verdict.NOT_AS_DESCRIBED, against, folder if as_it_is else None)
    finally:
        plaintext.unlink(missing_ok=True)


def _open_and_compare(envelope: Path, secret: bytes, listing: Listing, place: Place, plaintext: Path) -> None:
    with envelope.open("rb") as source, plaintext.open("wb") as target:
        open_with_secret(source, target, secret, place.recipients, place.context, listing.root)
        target.flush()
        os.fsync(target.fileno())
    # the paper's check: encrypted again under the owner's keys it is what the owner registered
    with plaintext.open("rb") as source:
        again = reseal_root(source, secret, place.recipients, place.context)
    if again != listing.root:
        raise EnvelopeError(f"encrypted again it has the root {again}, registered is {listing.root}")


def _require_root(envelope: Path, root: Digest) -> None:
    with envelope.open("rb") as source:
        found = artifact_root(source)
    if found != root:
        raise ObjectDamagedError(f"the copy of object {root} has the root {found}: fetch it again")


def _look_inside(plaintext: Path, listing: Listing, tasks: dict[int, TaskLog], folder: Path) -> str:
    """Put the contents into the folder; what the card promises otherwise, or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    if listing.kind is ArtifactKind.UPDATE:
        _check_update(plaintext, listing, tasks)
        folder.mkdir(parents=True)
        plaintext.replace(folder / UPDATE_FILE)
        return ""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with plaintext.open("rb") as source:
            contents = unpack(source, partial)
    except VerificationError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.replace(folder)
    card = listing.described
    if card is None or card.dataset is None:
        return "the data set was registered without a card that says what is in it"
    promised = card.dataset
    found = Counts(
        images=contents.images,
        images_with_boxes=contents.images_with_boxes,
        patients=contents.patients,
        studies=contents.studies,
        modality=promised.modality,
        boxes_by_category=contents.boxes_by_category,
        members_digest=str(contents.members_digest),
    )
    return "" if found == promised else f"the card promises {promised}, inside is {found}"


def _check_update(plaintext: Path, listing: Listing, tasks: dict[int, TaskLog]) -> None:
    registered = tasks[listing.task_id].rounds[listing.round_index].update_of(listing.owner)
    if registered is None:
        raise VerificationError("the owner registered no update in this round")
    read_metrics(plaintext, registered)
    with TensorFile(plaintext) as file:
        for name in file.tensors:
            file.read(name)
