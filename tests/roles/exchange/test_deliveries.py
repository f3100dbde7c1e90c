"""What was bought reaches its buyer: once, also late, again where it was lost, and as it is where that is wanted."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consilia.errors import InputError, TaskFailedError
from consilia.imaging.readers import read_dataset
from consilia.protocols.exchange import DealState, Verdict, objections
from consilia.protocols.receipt import verify_receipt
from consilia.roles.exchange import datasets, deals
from consilia.roles.exchange.deals import Exchange, Terms
from consilia.roles.exchange.fetching import await_delivery, take_in
from consilia.settings.sections import ExchangeSection
from tests.consortium import Consortium, consortium
from tests.roles.trading import BOND_WEI, PRICE_WEI, Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer and an arbiter."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


def fetch(trade: Trade, deal_id: object, **how: Any) -> Path:
    """`consilia exchange fetch`."""
    deal = await_delivery(trade.buyer, str(deal_id), 0)
    return take_in(trade.buyer, trade.town.home / "hospital-2", deal, train=False, **how)


def test_two_processes_of_a_home_open_an_artifact_once(trade: Trade, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hospital run` beside `exchange fetch`: each would find the other's half-written files, and complain of them."""
    deal_id = trade.deal_in(DealState.REVEALED)
    opened = []
    honest = deals.examine

    def examine(*arguments: Any, **named: Any) -> Any:
        opened.append(arguments)
        time.sleep(0.3)  # long enough for the other to come
        return honest(*arguments, **named)

    monkeypatch.setattr(deals, "examine", examine)
    processes = [trade.buyer, Exchange(trade.town.new_hospital(1), trade.buyer.policy)]
    threads = [threading.Thread(target=process.advance) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert trade.deal(deal_id).state is DealState.PAID
    assert len(read_dataset(fetch(trade, deal_id))) == 4
    assert not trade.said(1, "exchange step failed")


def test_a_full_disk_says_nothing_of_what_was_delivered(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/path/of/this/host")

    deal_id = trade.deal_in(DealState.REVEALED)
    with monkeypatch.context() as patch:
        patch.setattr(deals, "examine", full)
        trade.buyer.advance()
    assert trade.said(1, "exchange step failed") == [
        {"deal": str(deal_id), "reason": "No space left on device"}
    ]
    assert trade.deal(deal_id).state is DealState.REVEALED
    trade.buyer.advance()
    assert trade.deal(deal_id).state is DealState.PAID


def test_a_buyer_that_was_away_until_the_deal_was_settled_has_what_it_paid_for(trade: Trade) -> None:
    deal_id = trade.deal_in(DealState.REVEALED)
    trade.let_pass(4)
    trade.seller.advance()
    assert trade.deal(deal_id).state is DealState.PAID
    assert len(read_dataset(fetch(trade, deal_id))) == 4
    receipt = trade.buyer.receipt(trade.deal(deal_id), trade.buyer.log())
    assert receipt is not None and verify_receipt(receipt.read_bytes()).verdict is Verdict.AS_REGISTERED


def test_what_was_delivered_and_lost_is_opened_again(trade: Trade) -> None:
    """A home that was restored from its backup has neither data nor receipts; store and ledger have."""
    deal = trade.run(trade.request(trade.register()))
    target = fetch(trade, deal.deal_id)
    before = sorted(path.name for path in (target / "images").iterdir())
    shutil.rmtree(target)
    receipt = trade.buyer.receipt_file(deal)
    proven = verify_receipt(receipt.read_bytes())
    receipt.unlink()
    again = trade.buyer.receipt(deal, trade.buyer.log())
    assert again is not None and verify_receipt(again.read_bytes()) == proven
    assert sorted(path.name for path in (fetch(trade, deal.deal_id) / "images").iterdir()) == before


def test_only_a_buyer_writes_a_receipt_and_only_of_what_was_revealed(trade: Trade) -> None:
    deal_id = trade.deal_in(DealState.CONFIRMED)
    assert trade.buyer.receipt(trade.deal(deal_id), trade.buyer.log()) is None
    trade.seller.advance()
    assert trade.seller.receipt(trade.deal(deal_id), trade.seller.log()) is None


def test_the_training_data_may_be_on_another_file_system(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal = trade.run(trade.request(trade.register()))
    delivered = trade.buyer.delivered(deal)
    rename = Path.rename

    def across(self: Path, target: Path) -> Path:
        if self == delivered:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", across)
    target = fetch(trade, deal.deal_id)
    assert len(read_dataset(target)) == 4 and not delivered.exists()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_buyer_may_take_what_is_not_as_described_and_pays_for_it(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = datasets.pack
    monkeypatch.setattr(datasets, "pack", lambda *arguments: replace(honest(*arguments), images=5))
    deal = trade.run(trade.request(trade.register()))
    assert trade.buyer.found(deal) is Verdict.NOT_AS_DESCRIBED
    with pytest.raises(TaskFailedError, match="as-it-is"):
        fetch(trade, deal.deal_id)
    assert not [path for path in trade.buyer.delivered(deal).parent.iterdir() if path.is_dir()]
    target = fetch(trade, deal.deal_id, as_it_is=True)
    assert len(read_dataset(target)) == 4
    assert json.loads((target / "provenance.json").read_text())["found"] == "not_as_described"
    assert trade.deal(deal.deal_id).state is DealState.PAID
    receipt = trade.buyer.receipt_file(deal).read_bytes()
    assert verify_receipt(receipt).verdict is Verdict.NOT_AS_DESCRIBED


def test_a_copy_of_a_public_root_stands_in_nobodys_way(three: Consortium) -> None:
    """Anybody may register another's root, key hash and card as its own; it could never deliver."""
    trade = Trade(three)
    root = trade.register()
    original = trade.buyer.log().find(str(root))
    Exchange(three.hospitals[2], ExchangeSection()).contract.register(
        "a copy",
        kind=original.kind,
        root=root,
        key_hash=original.key_hash,
        size=original.size,
        recipient_key=original.recipient_key,
        task_id=0,
        round_index=0,
        price_wei=1,
        card=original.card,
    )
    log = trade.buyer.log()
    assert log.find(str(root)[:8]).owner == three.addresses[0]
    assert log.find(str(root)[:8], three.addresses[2]).price_wei == 1
    assert trade.run(trade.request(root)).state is DealState.PAID


def test_a_request_that_was_signed_and_never_posted_binds_nobody(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = trade.register()
    listing = trade.buyer.log().find(str(root))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trade.buyer.contract, "request", dies)
        patch.setattr(trade.buyer, "_check_terms", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            trade.buyer.request(listing, Terms(PRICE_WEI, BOND_WEI, trade.town.addresses[0]))
    deal = trade.deal(trade.buyer.request(listing, trade.terms))
    assert deal.request.arbiter == trade.town.server_address


@pytest.mark.parametrize(
    ("bond_wei", "least_wei", "admitted"), [(0, None, False), (0, 0, True), (9, 10, False)]
)
def test_a_false_complaint_must_cost_something(
    trade: Trade, bond_wei: int, least_wei: int | None, admitted: bool
) -> None:
    """Without a bond a buyer could hold back the price for two weeks, for nothing."""
    trade.terms = Terms(PRICE_WEI, bond_wei, trade.town.server_address)
    deal = trade.deal(trade.request(trade.register()))
    policy = ExchangeSection(decide="policy", minimum_bond_wei=least_wei)
    against = objections(deal.request, deal.buyer, PRICE_WEI, policy)
    assert (against == []) is admitted and all("bond" in reason for reason in against)


def test_fetching_what_is_no_deal_takes_no_step(trade: Trade) -> None:
    deal_id = trade.deal_in(DealState.OFFERED)
    with pytest.raises(InputError, match="the id of one deal"):
        await_delivery(trade.buyer, "0bad0bad", 0)
    assert trade.deal(deal_id).state is DealState.OFFERED
