"""A server on a new disk: its backup holds keys and databases, and the global models come back from the store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from consilia.crypto.keys import ScryptCost
from consilia.errors import WeightsError
from consilia.ledger.events import UpdateRegistered
from consilia.roles.audit.home import audit
from consilia.roles.backup import restore_backup, take_backup
from consilia.settings.sections import DiagnosisSection, OfferSection
from tests.consortium import PASSWORD, Consortium, newest

FEDADAM = 'aggregation = "fedadam"'


def lose_the_disk_in_round_1(town: Consortium, **terms: object) -> Path:
    """Where the lost home is found again. The backup is of the time after the task's start, as the manual says."""
    town.start_server(rounds=2, **terms)
    town.enrol(0, 1, 2)
    home, settings = town.home / "server", town.server.settings
    backup = take_backup(home, "server", settings.keys, PASSWORD, 0)
    town.train(0)
    town.until(lambda tasks: len(newest(tasks).rounds) > 1)
    town.silence_the_server()
    lost = home.rename(town.home / "lost")
    (home / "keys").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    for name in ("consilia.toml", "keys/password"):
        shutil.copy(lost / name, home / name)
    restore_backup(home, settings.keys, backup, PASSWORD, ScryptCost.TESTS)
    town.server = town.new_server()
    return lost


def test_a_task_goes_on_from_a_backup_and_its_model_is_offered(three: Consortium) -> None:
    lost = lose_the_disk_in_round_1(three)
    three.start_server(rounds=2)
    task = three.finish()
    events = three.hospitals[0].ledger.events()
    assert sum(isinstance(event, UpdateRegistered) for event in events) == 6, "nobody trained a round twice"
    assert audit(three.home, lambda step, **facts: None).models_rederived == 2
    (folder,) = (three.home / "server" / "models").iterdir()
    for name in ("round-000.safetensors", "round-001.safetensors"):
        assert (folder / name).read_bytes() == (lost / "models" / folder.name / name).read_bytes()

    # and to serve the model one need not have trained it on this disk
    last = folder / "round-002.safetensors"
    weights = last.read_bytes()
    shutil.rmtree(folder)
    offers = (OfferSection(task=task.task_id, price_wei=1, bond_wei=1),)
    section = DiagnosisSection(offers=offers)
    three.server.settings = three.server.settings.model_copy(update={"diagnosis": section})
    three.server.offer_models()
    assert last.read_bytes() == weights


def test_moments_are_asked_for_and_not_begun_afresh(three: Consortium) -> None:
    lost = lose_the_disk_in_round_1(three, training=FEDADAM)
    with pytest.raises(WeightsError, match=r"moments of fedadam are missing.*copy round-001\.moments"):
        three.start_server(rounds=2, training=FEDADAM).result()
    (folder,) = (lost / "models").iterdir()
    shutil.copy(folder / "round-001.moments", three.home / "server" / "models" / folder.name)
    three.start_server(rounds=2, training=FEDADAM)
    three.finish()
    assert audit(three.home, lambda step, **facts: None).models_rederived == 2
