"""A price and a card on an update that training took: said once, and for good."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.errors import InputError
from consilia.roles.exchange.datasets import Offering, register_update
from consilia.roles.exchange.withdrawal import withdraw
from tests.consortium import consortium
from tests.roles.trading import Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer and an arbiter."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


def test_an_updates_price_and_card_stay_as_they_were_registered(trade: Trade) -> None:
    trade.town.start_server(max_hospitals=2)
    task = trade.town.finish()
    offering = Offering("update", "of 7 epochs", "", 9)
    root = register_update(trade.seller, task.task_id, 0, offering)
    listing = trade.buyer.log().find(str(root), trade.town.addresses[0])
    assert listing.price_wei == 9 and listing.described is not None
    assert listing.described.title == "of 7 epochs" and listing.genuine
    assert register_update(trade.seller, task.task_id, 0, offering) == root  # again changes nothing
    for other in (replace(offering, title="of 8 epochs"), replace(offering, price_wei=10)):
        with pytest.raises(InputError, match="registered already, for 9 wei under the title 'of 7 epochs'"):
            register_update(trade.seller, task.task_id, 0, other)
    assert withdraw(trade.seller, root)
    with pytest.raises(InputError, match="withdrawn"):
        register_update(trade.seller, task.task_id, 0, offering)
