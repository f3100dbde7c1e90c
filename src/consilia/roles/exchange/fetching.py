"""The end of an exchange at the buyer: wait for the delivery, and put it where training uses it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from consilia.errors import InputError, NotYetError, TaskFailedError
from consilia.protocols.exchange import Deal
from consilia.protocols.task_spec import TaskSpec
from consilia.roles.exchange.datasets import add_to_training
from consilia.roles.exchange.deals import Exchange
from consilia.roles.exchange.examination import UPDATE_FILE
from consilia.roles.progress import Report
from consilia.roles.training.task_log import fold
from consilia.settings import HospitalSettings, load
from consilia.settings.sections import DataSection
from consilia.values import ArtifactKind

LOCAL_MODEL = "local.safetensors"
LOCAL_NOTES = "local.json"


def await_delivery(exchange: Exchange, id_prefix: str, wait_seconds: float) -> Deal:
    """Take the buyer's steps until a deal is delivered.

    Raises:
        InputError: it is not this hospital's.
        NotYetError: it is not delivered in this time.
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
            raise NotYetError(
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
    spec = fold(exchange.party.events())[listing.task_id].spec
    return advance_local_model(home, spec, settings.data, delivered, exchange.party.report)


def advance_local_model(
    home: Path, spec: TaskSpec, data: DataSection, delivered: Path, report: Report
) -> Path:
    """One round of this hospital's own model: the first from a delivered update, each later one from the last.

    Another update starts another model; whose update it was, and how many rounds it has had, stands beside it.

    Raises:
        WeightsError, DatasetError: the update and this hospital's data do not go together.
    """
    from consilia.roles.training.local_training import train_local_model

    provenance = json.loads((delivered / "provenance.json").read_text())
    models = home / "models"
    models.mkdir(exist_ok=True)
    out, notes = models / LOCAL_MODEL, models / LOCAL_NOTES
    known = json.loads(notes.read_text()) if out.exists() and notes.exists() else {}
    done = int(known["rounds"]) if known.get("started_from") == provenance else 0
    start = out if done else delivered / UPDATE_FILE
    loss = train_local_model(spec, data, start, out, done, report)
    notes.write_text(json.dumps({"started_from": provenance, "rounds": done + 1}, indent=1) + "\n")
    report("local model trained", deal=provenance["deal"], file=str(out), rounds=done + 1, loss=loss)
    return out
