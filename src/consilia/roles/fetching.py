"""The end of an exchange at the buyer: wait for the delivery, and put it where training uses it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from consilia.errors import InputError, TaskFailedError
from consilia.protocols.exchange import Deal
from consilia.roles.datasets import add_to_training
from consilia.roles.examination import UPDATE_FILE
from consilia.roles.exchange import Exchange
from consilia.roles.task_log import fold
from consilia.settings import HospitalSettings, load
from consilia.values import ArtifactKind

LOCAL_MODEL = "local.safetensors"


def await_delivery(exchange: Exchange, id_prefix: str, wait_seconds: float) -> Deal:
    """Take the buyer's steps until a deal is delivered.

    Raises:
        InputError: it is not this hospital's, or not delivered in this time.
        TaskFailedError: it ended without a delivery.
    """
    until = time.monotonic() + wait_seconds
    head = 0
    while True:
        deal = exchange.advance().find_deal(id_prefix)
        if deal.buyer != exchange.party.address:
            raise InputError(f"deal {deal.deal_id} is {deal.buyer}'s")
        if exchange.party.state.fact(f"exchange/found/{deal.deal_id}") is not None:
            return deal
        if deal.state.over:
            raise TaskFailedError(f"deal {deal.deal_id} ended: {deal.reason or deal.state.name.lower()}")
        left = until - time.monotonic()
        if left <= 0:
            raise InputError(
                f"deal {deal.deal_id} is {deal.state.name.lower()}: the owner has to act, try later"
            )
        head = exchange.party.ledger.wait(head, min(left, 5.0))


def take_in(exchange: Exchange, home: Path, deal: Deal, train: bool) -> Path:
    """Add a delivered data set to the training data, or start the local model from a delivered update.

    Raises:
        TaskFailedError: what was delivered is not what was registered.
        WeightsError, DatasetError: the update and this hospital's data do not go together.
    """
    settings = load(HospitalSettings, home)
    listing = exchange.log().listing_of(deal)
    assert listing is not None, "checked before the deal was confirmed"
    target = settings.data.exchanged / str(deal.deal_id)
    delivered = exchange.delivered(deal)
    if not delivered.exists() and not target.exists():
        found = exchange.party.state.fact(f"exchange/found/{deal.deal_id}")
        raise TaskFailedError(f"deal {deal.deal_id} brought nothing to use: {found}")
    if listing.kind is ArtifactKind.DATASET:
        add_to_training(delivered, target)
        exchange.party.report("added to the training data", deal=str(deal.deal_id), folder=str(target))
        return target
    if not train:
        exchange.party.report("update delivered", deal=str(deal.deal_id), file=str(delivered / UPDATE_FILE))
        return delivered
    from consilia.roles.local_training import train_from_update

    spec = fold(exchange.party.events())[listing.task_id].spec
    models = home / "models"
    models.mkdir(exist_ok=True)
    out = models / LOCAL_MODEL
    loss = train_from_update(spec, settings.data, delivered / UPDATE_FILE, out, exchange.party.report)
    provenance = json.loads((delivered / "provenance.json").read_text())
    out.with_suffix(".json").write_text(json.dumps({"started_from": provenance}, indent=1) + "\n")
    exchange.party.report("local model started", deal=str(deal.deal_id), file=str(out), loss=loss)
    return out
