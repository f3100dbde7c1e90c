"""exchange.vy: what is registered, withdrawn and attested, and by whom."""

from __future__ import annotations

from typing import Any

import boa
import pytest

from consilia.crypto.typed_data import sign_with_secret
from consilia.protocols.exchange import Verdict, attestation_digest
from consilia.values import ArtifactKind, Digest
from tests.contracts.conftest import Contracts
from tests.contracts.dealing import (
    CARD,
    KEY_HASH,
    PRICE_WEI,
    ROOT,
    SIGMA,
    Dealing,
    high_s,
)

OTHER = Digest.of(b"another")


@pytest.fixture
def dealing(contracts: Contracts) -> Dealing:
    """Fresh contracts with a seller, a buyer and an arbiter."""
    return Dealing(contracts)


# Step 0


def test_an_owner_registers_an_artifact_once(dealing: Dealing) -> None:
    dealing.register()
    assert dealing.event() == {
        "event": "ArtifactRegistered",
        "owner": dealing.seller,
        "root": ROOT,
        "kind": ArtifactKind.DATASET,
        "key_hash": KEY_HASH,
        "size": 4096,
        "recipient_key": b"\x05" * 32,
        "task_id": 0,
        "round_index": 0,
        "price_wei": PRICE_WEI,
        "card": CARD,
    }
    assert tuple(dealing.exchange.artifact(dealing.seller, ROOT)) == (KEY_HASH, False)
    with boa.reverts("exchange: already registered"):
        dealing.register(key_hash=OTHER)
    dealing.register(sender=dealing.buyer)  # the same root of another owner is another artifact


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": ArtifactKind.MODEL}, "exchange: unknown kind"),
        ({"task_id": 1}, "exchange: kind and task differ"),
        ({"kind": ArtifactKind.UPDATE}, "exchange: kind and task differ"),
        ({"kind": ArtifactKind.UPDATE, "task_id": 1}, "exchange: kind and recipient differ"),
        ({"recipient_key": bytes(32)}, "exchange: kind and recipient differ"),
        ({"root": bytes(32)}, "exchange: empty root or key hash"),
        ({"key_hash": bytes(32)}, "exchange: empty root or key hash"),
    ],
)
def test_what_cannot_be_registered(dealing: Dealing, changes: dict[str, Any], reason: str) -> None:
    with boa.reverts(reason):
        dealing.register(**changes)


def test_only_hospitals_register(dealing: Dealing) -> None:
    for sender in (dealing.contracts.server, dealing.contracts.auditor, dealing.contracts.stranger):
        with boa.reverts("exchange: not an active hospital"):
            dealing.register(sender=sender)
    dealing.register()


def test_an_update_is_registered_only_by_who_handed_one_in(dealing: Dealing) -> None:
    task_id = dealing.contracts.training_task()
    update = {"kind": ArtifactKind.UPDATE, "recipient_key": bytes(32), "task_id": task_id}
    with boa.reverts("exchange: no update in this task"):
        dealing.register(**update)
    dealing.contracts.register(task_id, 0, dealing.seller)
    dealing.register(**update)
    with boa.reverts("exchange: no update in this task"):
        dealing.register(sender=dealing.buyer, **update)


def test_an_owner_withdraws_its_artifact_once(dealing: Dealing) -> None:
    with boa.reverts("exchange: not your artifact"):
        dealing.exchange.withdraw(ROOT, sender=dealing.seller)
    dealing.register()
    deal_id = dealing.request()
    with boa.reverts("exchange: not your artifact"):
        dealing.exchange.withdraw(ROOT, sender=dealing.buyer)
    dealing.exchange.withdraw(ROOT, sender=dealing.seller)
    assert dealing.event() == {"event": "ArtifactWithdrawn", "owner": dealing.seller, "root": ROOT}
    with boa.reverts("exchange: already withdrawn"):
        dealing.exchange.withdraw(ROOT, sender=dealing.seller)
    with boa.reverts("exchange: artifact withdrawn"):
        dealing.request()
    with boa.reverts("exchange: already registered"):
        dealing.register()
    dealing.offer(deal_id)  # what was open goes on


# Attestations


def test_who_holds_the_secret_attests(dealing: Dealing) -> None:
    dealing.register()
    dealing.attest()
    assert dealing.event() == {
        "event": "Attested",
        "owner": dealing.seller,
        "root": ROOT,
        "attester": dealing.third,
        "key_hash": KEY_HASH,
        "verdict": Verdict.AS_REGISTERED,
        "note": "fine",
    }
    dealing.attest(
        sender=dealing.contracts.server
    )  # whoever opened it: a server its updates, a buyer its data


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret": b"\x12" * 32}, "exchange: not the secret's signature"),
        ({"signature": bytes(65)}, "exchange: not the secret's signature"),
        ({"verdict": 0}, "exchange: unknown verdict"),
        ({"verdict": 4}, "exchange: unknown verdict"),
        ({"key_hash": OTHER}, "exchange: another key hash is registered"),
        ({"sender": "the owner"}, "exchange: the owner cannot attest"),
        ({"sender": "a stranger"}, "exchange: not an active member"),
        ({"signed_as": "another"}, "exchange: not the secret's signature"),
    ],
)
def test_attestations_that_must_not_pass(dealing: Dealing, changes: dict[str, Any], reason: str) -> None:
    dealing.register()
    names = {"the owner": dealing.seller, "a stranger": dealing.contracts.stranger, "another": dealing.buyer}
    changes = {k: names.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with boa.reverts(reason):
        dealing.attest(**changes)


def test_an_attestation_with_the_higher_s_is_none(dealing: Dealing) -> None:
    digest = attestation_digest(
        dealing.domain, dealing.third, dealing.seller, ROOT, KEY_HASH, Verdict.AS_REGISTERED, "fine"
    )
    with boa.reverts("exchange: not the secret's signature"):
        dealing.attest(signature=high_s(sign_with_secret(digest, SIGMA)))
