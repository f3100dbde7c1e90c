"""The end of an exchange at the buyer: wait for the delivery, and put it where training uses it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from consilia.errors import InputError, NotYetError, TaskFailedError
from consilia.protocols.exchange import Deal, DealState, Verdict
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
    deal_id = exchange.log().find_deal(id_prefix).deal_id
    while True:
        deal = exchange.log().deals[deal_id]
        if deal.buyer != exchange.party.address:
            raise InputError(f"deal {deal.deal_id} is {deal.buyer}'s")
        exchange.advance()
        log = exchange.log()
        deal = log.deals[deal_id]
        if (
            deal.t and deal.state.over
        ):  # it was settled while this hospital was away: what it paid for is its own
            exchange.deliver(deal, log)
        if exchange.found(deal) is not None:
            return deal
        if deal.state.over:
            raise TaskFailedError(f"deal {deal.deal_id} ended: {deal.reason or deal.state.name.lower()}")
        left = until - time.monotonic()
        if left <= 0:
            raise NotYetError(
                f"deal {deal.deal_id} is {deal.state.name.lower()}: the owner has to act, try later"
            )
        head = exchange.party.ledger.wait(head, min(left, 5.0))


def take_in(exchange: Exchange, home: Path, deal: Deal, train: bool, *, as_it_is: bool = False) -> Path:
    """Add a delivered data set to the training data, or start the local model from a delivered update.

    What was delivered before and is not there any more is opened again, out of store and ledger.

    Args:
        as_it_is: take, and pay for, a data set that is another than its card promises.

    Raises:
        TaskFailedError: what was delivered is not what was registered.
        StoreError: it is to be opened again, and the store lacks it.
        WeightsError, DatasetError: the update and this hospital's data do not go together.
    """
    settings = load(HospitalSettings, home)
    log = exchange.log()
    listing = log.listing_of(deal)
    assert listing is not None, "checked before the deal was confirmed"
    target = settings.data.exchanged / str(deal.deal_id)
    delivered = exchange.delivered(deal)
    with exchange.at_delivery(deal):
        if not delivered.exists() and not target.exists():
            if exchange.found(deal) is Verdict.AS_REGISTERED or as_it_is:
                exchange.open_bought(deal, log, as_it_is=as_it_is)
            if not delivered.exists():
                found = exchange.found(deal)
                raise TaskFailedError(f"deal {deal.deal_id} brought nothing to use: {_words(found)}")
        if listing.kind is ArtifactKind.DATASET:
            add_to_training(delivered, target)
    if as_it_is and deal.state is DealState.REVEALED:
        exchange.accept(deal)
    if listing.kind is ArtifactKind.DATASET:
        exchange.party.report("added to the training data", deal=str(deal.deal_id), folder=str(target))
        return target
    if not train:
        exchange.party.report("update delivered", deal=str(deal.deal_id), file=str(delivered / UPDATE_FILE))
        return delivered
    spec = fold(exchange.party.events())[listing.task_id].spec
    return advance_local_model(home, spec, settings.data, delivered, exchange.party.report)


def _words(found: Verdict | None) -> str:
    if found is Verdict.NOT_AS_DESCRIBED:
        return "it is not what its card promises; dispute it, or take it --as-it-is and pay"
    return "nothing was opened" if found is None else found.name.lower().replace("_", " ")


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
