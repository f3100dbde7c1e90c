"""Updates that the server opens before their block is confirmed: what it saw then counts only once it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.roles.training.opening import Opening
from consilia.values import Digest
from tests.consortium import Consortium, consortium, newest


@pytest.fixture
def handed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """One hospital of two has registered its update, and the server waits for the other."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        town.start_server()
        town.enrol()
        town.step(0)
        town.until(lambda tasks: newest(tasks).rounds[0].updates and town.server_said("update opened"))
        yield town


def test_only_what_is_confirmed_counts(handed_in: Consortium) -> None:
    server, task = handed_in.server, handed_in.task()
    (registered,) = task.rounds[0].updates
    opening = Opening(server, server._model_path)

    # the block that had it first lost; in the one that is confirmed the same update stands elsewhere
    elsewhere = {"block_number": 10**6, "position": 7, "trail": Digest.of(b"others")}
    opening.begin(task, replace(registered, **elsewhere))
    opening._begun[registered.hospital].outcome.result()
    there = handed_in.object_path(registered.root)
    there.rename(there.with_suffix(".away"))
    examined = opening.take(task, registered)
    assert examined is not None and not examined.refusal and examined.registered == registered

    # a refusal is never made of what was seen ahead: the object is back, and then it was another update
    opening.begin(task, registered)
    refused = opening._begun[registered.hospital].outcome.result()
    assert refused is not None and "no object" in refused.refusal
    there.with_suffix(".away").rename(there)
    examined = opening.take(task, registered)
    assert examined is not None and not examined.refusal
    opening.begin(task, replace(registered, root=Digest.of(b"of a branch that lost")))
    examined = opening.take(task, registered)
    assert examined is not None and not examined.refusal and examined.registered == registered
    refusals = [facts for step, facts in handed_in.steps["server"].said if step == "update rejected"]
    assert not refusals

    # and a good one ahead excuses no bad one that is confirmed
    opening.begin(task, registered)
    examined = opening.take(task, replace(registered, size=registered.size + 1))
    assert examined is not None and "its size is" in examined.refusal
