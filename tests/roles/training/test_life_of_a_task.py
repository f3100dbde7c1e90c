"""A task from its publication to the last claim, on the real contracts, with real envelopes and a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilia.ledger.events import Claimed
from consilia.protocols.task_spec import parse_toml
from tests.consortium import REWARD_WEI, SHAPES, Consortium, consortium, read_weights, spec_toml


def test_four_hospitals_train_and_are_paid(four: Consortium) -> None:
    four.start_server(rounds=2)
    task = four.finish()
    assert task.finished and [len(current.updates) for current in task.rounds] == [4, 4]
    # examples 10, 20, 30, 40 and steps 1, 2, 3, 4: each round adds (10 + 40 + 90 + 160) / 100 to every weight
    for index in range(3):
        weights = read_weights(
            next((four.home / "server" / "models").glob(f"*/round-{index:03d}.safetensors"))
        )
        assert {name: tensor.shape for name, tensor in weights.items()} == SHAPES
        assert all((tensor == np.float32(0.5 + 3 * index)).all() for tensor in weights.values())
    shares = [task.shares_wei[address] for address in four.addresses]
    assert sum(shares) == REWARD_WEI
    assert [share - share % 10 for share in shares] == [10**17, 2 * 10**17, 3 * 10**17, 4 * 10**17]
    assert task.claimed == set(four.addresses)


def test_nobody_is_paid_twice(three: Consortium) -> None:
    three.start_server()
    task = three.finish()
    for index in range(3):
        three.restart_hospital(index)
    three.step()
    events = three.hospitals[0].ledger.events()
    claims = {event.member: event.amount_wei for event in events if isinstance(event, Claimed)}
    assert sum(isinstance(event, Claimed) for event in events) == 3
    assert claims == task.shares_wei
    assert three.hospitals[0].ledger.open_wei() == 0


def test_the_same_spec_again_is_the_same_task(three: Consortium) -> None:
    three.start_server()
    task = three.finish()
    three.server = three.new_server()
    again = three.start_server().result()
    assert [again.task_id] == [task.task_id] == list(three.tasks())


def test_the_same_hospitals_in_a_new_consortium_train_by_the_same_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, seeds = parse_toml(spec_toml(2)), []
    for name in ("one", "other"):
        with consortium(tmp_path / name, monkeypatch, 2) as made:  # with accounts of its own
            seeds.append([hospital._seed(spec) for hospital in made.hospitals])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 2
