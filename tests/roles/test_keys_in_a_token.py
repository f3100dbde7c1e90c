"""A hospital whose two keys never leave a PKCS#11 token takes part like any other; and keys are replaced on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from consilia.crypto.keys import load_account, load_identity
from consilia.crypto.token import TokenIdentity, TokenSigner
from consilia.errors import LedgerError, LedgerUnreachableError
from consilia.roles.audit.home import audit
from consilia.roles.membership import rotation
from consilia.roles.membership.home import make_member
from consilia.roles.membership.rotation import rotate_identity
from consilia.settings import HospitalSettings, load
from tests.consortium import PASSWORD, REWARD_WEI, Consortium, Steps, consortium, read_weights
from tests.secret_words import spellings
from tests.softhsm import SoftHsm


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, softhsm: SoftHsm) -> Iterator[Consortium]:
    """Three hospitals; the second has its account and its identity in SoftHSM."""
    with consortium(tmp_path, monkeypatch, 3, softhsm) as made:
        yield made


def test_a_hospital_with_its_keys_in_a_token_trains_and_is_paid(town: Consortium, tmp_path: Path) -> None:
    hospital = town.hospitals[1]
    assert isinstance(hospital.account, TokenSigner) and isinstance(hospital.identity, TokenIdentity)
    assert not (town.home / "hospital-2" / "keys").exists()
    town.start_server(rounds=2)
    task = town.finish()
    assert task.finished and all(current.update_of(hospital.address) for current in task.rounds)
    last = read_weights(next((town.home / "server" / "models").glob("*/round-002.safetensors")))
    # examples 10, 20, 30 and steps 1, 2, 3: each round adds (10 + 40 + 90) / 60 to every weight
    assert np.allclose(last["head.bias"], 0.5 + 2 * 140 / 60)
    assert hospital.address in task.claimed and sum(task.shares_wei.values()) == REWARD_WEI
    heard = Steps()
    assert audit(town.home, heard).models_rederived == 2
    said = json.dumps([steps.said for steps in (*town.steps.values(), heard)]) + repr(vars(hospital))
    assert str(task.rounds[0].updates[0].hospital) in said
    assert [text for text in secrets_of(town, task.task_id) if text in said] == []


def secrets_of(town: Consortium, task_id: int) -> list[str]:
    """Every spelling of what nobody may say: passwords, accounts, identities, task keys, envelopes' secrets."""
    secrets = [*town.server.state.task_keys(task_id).values()]
    for name in ("hospital-1", "hospital-3", "server"):
        keys = town.home / name / "keys"
        secrets.append(bytes(load_account(keys / "account.json", PASSWORD).key))
        secrets.append(load_identity(keys / "identity.key", PASSWORD).secret_bytes)
    for index in (0, 1):
        for hospital in town.hospitals:
            artifact = hospital.state.artifact(f"update/{task_id}/{index}")
            assert artifact is not None
            secrets.append(artifact.secret)
    assert len(secrets) == 3 + 6 + 6
    return [PASSWORD, town_pin(town), *(text for secret in secrets for text in spellings(secret))]


def town_pin(town: Consortium) -> str:
    """The token's PIN."""
    section = town.hospitals[1].settings.keys.pkcs11
    assert section is not None
    return section.pin()


def test_a_replaced_identity_in_a_token_goes_on_in_the_task_and_into_the_next(town: Consortium) -> None:
    rotates_in_the_middle(town, 1)


def test_a_replaced_identity_in_a_file_goes_on_in_the_task_and_into_the_next(town: Consortium) -> None:
    rotates_in_the_middle(town, 0)


def rotate(town: Consortium, home: Path, settings: HospitalSettings) -> bytes:
    """Propose a new identity, let the others agree, adopt it."""
    proposal, recipient = rotate_identity(home, settings.keys, settings.ledger)
    assert proposal is not None and (proposal.approvals, proposal.enacted) == (1, False)
    again, same = rotate_identity(home, settings.keys, settings.ledger)
    assert again is not None and (again.proposal_id, same) == (proposal.proposal_id, recipient)
    town.agree()
    cut_off = settings.ledger.model_copy(update={"witnesses": ("http://127.0.0.1:9",)})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LedgerError, match="not confirmed yet"):
        patch.setattr(rotation, "CONFIRM_SECONDS", 0.0)
        rotate_identity(home, settings.keys, cut_off)  # one node's word is not the consortium's
    assert rotate_identity(home, settings.keys, settings.ledger) == (None, recipient)
    return recipient


def rotates_in_the_middle(town: Consortium, index: int) -> None:
    town.start_server(rounds=2)
    town.enrol(0, 1, 2)
    town.train(0)
    old = town.hospitals[index].identity.recipient
    home = town.home / town.names[index]
    settings = load(HospitalSettings, home)
    recipient = rotate(town, home, settings)
    hospital = town.restart_hospital(index)
    assert hospital.identity.recipients == (recipient, old)
    assert hospital.ledger.member(hospital.address).recipient_key == recipient
    first = town.finish()  # its key string is sealed to the old identity
    assert all(current.update_of(hospital.address) for current in first.rounds)
    assert first.recipients[hospital.address] == old
    town.start_server(rounds=1, reward_wei=REWARD_WEI + 1)
    town.until(lambda tasks: len(tasks) == 2)
    second = town.finish()
    assert second.rounds[0].update_of(hospital.address) and second.recipients[hospital.address] == recipient


def test_a_server_that_replaces_its_identity_still_opens_the_running_tasks_updates(town: Consortium) -> None:
    town.start_server(rounds=2)
    town.enrol(0, 1, 2)
    town.train(0)
    town.silence_the_server()
    settings = load(HospitalSettings, town.home / "hospital-1")
    home = town.home / "server"
    keys = settings.keys.model_copy(
        update={name: home / "keys" / getattr(settings.keys, name).name for name in ("account", "identity")}
    )
    rotate(town, home, settings.model_copy(update={"keys": keys}))
    town.server = town.new_server()
    town.start_server(rounds=2)
    task = town.finish()
    assert [len(current.updates) for current in task.rounds] == [3, 3] and not town.server_said(
        "update rejected"
    )
    assert audit(town.home, Steps()).models_rederived == 2


def test_a_rotation_that_the_ledger_never_heard_of_changes_no_key(town: Consortium) -> None:
    home = town.home / "hospital-1"
    settings = load(HospitalSettings, home)
    nowhere = settings.ledger.model_copy(update={"url": "http://127.0.0.1:9"})
    old = town.hospitals[0].identity.recipient
    with pytest.raises(LedgerUnreachableError):
        rotate_identity(home, settings.keys, nowhere)
    waiting = town.restart_hospital(0).identity.recipients
    assert waiting[0] == old and len(waiting) == 2
    recipient = rotate(town, home, settings)
    assert recipient == waiting[1], "the key that was made is taken, not a third one"


def test_a_newcomer_whose_settings_name_a_token_gets_its_keys_there(tmp_path: Path, softhsm: SoftHsm) -> None:
    home = tmp_path / "newcomer"
    home.mkdir()
    (home / "consilia.toml").write_text('name = "newcomer"\n[keys]\n' + softhsm.toml(str(home)))
    first, again = make_member(home, "newcomer"), make_member(home, "newcomer")
    assert isinstance(first.account, TokenSigner) and isinstance(first.identity, TokenIdentity)
    assert (again.account.address, again.identity.recipient) == (
        first.account.address,
        first.identity.recipient,
    )
    assert [path.name for path in home.iterdir()] == ["consilia.toml"]
