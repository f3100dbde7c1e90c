"""fsck, gc and erasure after a real task: what the ledger needs is found missing, and never deleted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from eth_account import Account

from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.crypto.keys import Identity, load_account
from consilia.errors import HomeError, ObjectMissingError, PolicyError, VerificationError
from consilia.ledger.events import RoundClosed, UpdateRegistered
from consilia.roles import storekeeping
from consilia.roles.artifacts import fetch_artifact, plaintext_name, publish_artifact
from consilia.roles.erasure import erase, read_tombstone, tombstones
from consilia.roles.state import State
from consilia.roles.storekeeping import (
    Condition,
    claims_of,
    collect,
    examine,
    find_garbage,
    own_roots,
    read_claims,
)
from consilia.store.directory import DirectoryStore
from consilia.values import Digest, canonical_json
from tests.consortium import PASSWORD, Consortium, consortium, flip_bit
from tests.crypto.sealing import CONTEXT, seal_bytes

ENVELOPE, SEALED = seal_bytes(b"nobody registered this")
OWNER = Identity.generate()
TWO_DAYS = 2 * 86_400


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Three hospitals have trained one round; the third one's update was refused."""
    with (
        pytest.MonkeyPatch.context() as patch,
        consortium(tmp_path_factory.mktemp("done"), patch, 3) as town,
    ):
        town.send_nan(2)
        town.start_server(rounds=1)
        town.enrol()
        town.train(0)
        town.finish()
        yield town


@pytest.fixture
def store(done: Consortium) -> DirectoryStore:
    return DirectoryStore(done.home / "store")


def object_path(town: Consortium, root: Digest) -> Path:
    return town.home / "store" / root.hex()[:2] / root.hex()


def make_old(town: Consortium, *roots: Digest) -> None:
    for root in roots:
        os.utime(object_path(town, root), (time.time() - TWO_DAYS,) * 2)


def put(store: DirectoryStore) -> None:
    with store.writer() as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.commit(SEALED.root)


def test_everything_that_the_ledger_names_is_claimed_and_good(done, store):
    claims = read_claims(done.server_settings().ledger)
    assert {claim.root for claim in claims} == set(store.roots())
    assert [claim.what for claim in claims if not claim.needed] == [
        f"root of UpdateRegistered in block {refused_update(done).block_number}"
    ]
    assert {claim.owner for claim in claims} == {*done.addresses, done.server_address}
    findings = [examine(store, claim, ()) for claim in claims]
    assert {finding.condition for finding in findings} == {Condition.GOOD}


def refused_update(town: Consortium) -> UpdateRegistered:
    events = town.hospitals[0].ledger.events()
    included = next(e for e in events if isinstance(e, RoundClosed)).included
    return next(e for e in events if isinstance(e, UpdateRegistered) and not included[0] >> e.position & 1)


def test_what_is_missing_or_damaged_is_found(done, store):
    for claim in read_claims(done.server_settings().ledger):
        path = object_path(done, claim.root)
        whole = path.read_bytes()
        path.unlink()
        finding = examine(store, claim, ())
        assert finding.condition is Condition.MISSING and finding.is_failure is claim.needed
        assert not examine(store, claim, {(claim.root, claim.owner)}).is_failure
        stranger = Account.create().address
        assert examine(store, claim, {(claim.root, stranger)}).condition is Condition.MISSING
        path.write_bytes(whole)
        flip_bit(path, -20)
        finding = examine(store, claim, {(claim.root, claim.owner)})
        assert finding.condition is Condition.DAMAGED and str(claim.root) in finding.reason
        path.write_bytes(whole)
        if claim.size is not None:
            wrong = examine(store, replace(claim, size=claim.size + 1), ())
            assert wrong.condition is Condition.OTHER_SIZE and "registered were" in wrong.reason


def test_gc_takes_only_what_is_old_and_nobody_needs(done, store):
    section = done.server_settings().ledger
    named = {claim.root for claim in read_claims(section)}
    put(store)
    half = done.home / "store" / "incoming" / "half"
    half.write_bytes(b"half")
    make_old(done, *named)
    assert find_garbage(store, named, 3600) == storekeeping.Garbage((), ())  # both are young
    make_old(done, SEALED.root)
    garbage = find_garbage(store, named, 3600)
    assert [found.root for found in garbage.objects] == [SEALED.root]
    assert find_garbage(store, {*named, SEALED.root}, 3600).objects == ()  # somebody's own
    assert store.has(SEALED.root)  # nothing is deleted by looking
    assert list(collect(store, garbage, section)) == [f"object {SEALED.root}"]
    assert set(store.roots()) == named
    half.unlink()


def test_gc_asks_the_ledger_again_before_it_deletes(done, store):
    """An object registered between the look and the deletion stays."""
    section = done.server_settings().ledger
    claims = read_claims(section)
    late = claims[0].root
    make_old(done, late)
    garbage = find_garbage(store, {claim.root for claim in claims} - {late}, 3600)
    assert [found.root for found in garbage.objects] == [late]
    assert list(collect(store, garbage, section)) == []
    assert store.has(late)


def test_gc_takes_nothing_that_may_be_on_its_way(done, store):
    for seconds in (3599, -1, float("nan")):
        with pytest.raises(PolicyError, match="3600 seconds or more"):
            find_garbage(store, (), seconds)


def test_gc_trusts_no_ledger_that_knows_no_member(done, store, tmp_path):
    """A node that has only begun to catch up, or another chain, would make everything look unneeded."""
    section = done.server_settings().ledger
    deployment = json.loads(section.deployment.read_text())
    for name in ("registry", "training", "escrow"):
        deployment[name] = Account.create().address
    (tmp_path / "other.json").write_text(json.dumps(deployment))
    with pytest.raises(PolicyError, match="knows no member"):
        read_claims(section.model_copy(update={"deployment": tmp_path / "other.json"}))


def test_own_artifacts_count_as_needed_before_they_are_registered(done):
    mine = own_roots(done.home / "hospital-1")
    assert mine & {claim.root for claim in read_claims(done.server_settings().ledger)}
    assert own_roots(done.home) == set()


def test_every_root_of_every_event_is_a_claim(done):
    """A contract that comes later names its roots like this, or its artifacts would be garbage."""
    events = done.hospitals[0].ledger.events()
    roots = {
        value for event in events for name, value in vars(event).items() if name == "root" or "_root" in name
    }
    assert roots == {claim.root for claim in claims_of(events)} and len(roots) > 5


# Erasing


def sealed_alone(home: Path) -> tuple[State, DirectoryStore, Digest, bytes]:
    home.mkdir(exist_ok=True)
    state, store = State(home / "state.sqlite"), DirectoryStore(home / "store")
    (home / "plain").write_bytes(b"images")
    state.remember("salts/dataset/1", "salt-of-a-member")
    artifact = publish_artifact(store, state, "dataset/1", home / "plain", [OWNER.recipient], CONTEXT)
    other = publish_artifact(store, state, "dataset/11", home / "plain", [OWNER.recipient], CONTEXT)
    state.remember("salts/dataset/11", "another-salt")
    assert store.has(other.root)
    (home / "plain").unlink()
    return state, store, artifact.root, artifact.secret


def bytes_on_disk(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


def test_nothing_of_an_erased_artifact_is_left_on_the_disk(tmp_path):
    state, store, root, secret = sealed_alone(tmp_path / "home")
    envelope = (tmp_path / "home" / "store" / root.hex()[:2] / root.hex()).read_bytes()
    account = Account.create()
    plaintext, of_another = (tmp_path / "home" / "work" / plaintext_name(f"dataset/{n}") for n in (1, 11))
    plaintext.parent.mkdir()
    for left_by_the_killed in (plaintext, of_another):
        left_by_the_killed.write_bytes(b"images")
    assert secret in bytes_on_disk(tmp_path) and b"salt-of-a-member" in bytes_on_disk(tmp_path)
    stone = erase(state, store, tmp_path / "home", account, root, "asked for")
    left = bytes_on_disk(tmp_path)
    for gone in (secret, b"salt-of-a-member", envelope[100:200], envelope[-100:]):
        assert gone not in left
    assert not plaintext.exists() and of_another.exists()
    assert b"another-salt" in left and state.artifact("dataset/11") is not None
    with pytest.raises(ObjectMissingError):
        fetch_artifact(store, root, OWNER, [OWNER.recipient], CONTEXT, tmp_path / "out")
    assert tombstones(tmp_path / "home") == ([stone], []) and stone.reason == "asked for"
    # again, as after a crash in the middle
    assert erase(state, store, tmp_path / "home", account, root, "other") == stone


def test_what_erasing_cannot_undo(tmp_path):
    """A recipient who kept a copy of the envelope opens it still: the command says so, and here it is seen."""
    state, store, root, _ = sealed_alone(tmp_path / "home")
    copy = DirectoryStore(tmp_path / "copy")
    store.get(root, tmp_path / "kept")
    copy.put(root, tmp_path / "kept")
    erase(state, store, tmp_path / "home", Account.create(), root, "")
    fetch_artifact(copy, root, OWNER, [OWNER.recipient], CONTEXT, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"images"


def test_only_what_this_home_sealed_is_erased(done, store, tmp_path):
    theirs = next(iter(own_roots(done.home / "hospital-2")))
    account = load_account(done.home / "hospital-1" / "keys" / "account.json", PASSWORD)
    with pytest.raises(HomeError, match=str(theirs)):
        erase(done.hospitals[0].state, store, done.home / "hospital-1", account, theirs, "")
    assert store.has(theirs) and not (done.home / "hospital-1" / "tombstones").exists()


def test_a_forged_tombstone_excuses_nothing(tmp_path):
    state, store, root, _ = sealed_alone(tmp_path / "home")
    erase(state, store, tmp_path / "home", Account.create(), root, "asked for")
    path = tmp_path / "home" / "tombstones" / f"{root}.json"
    value = json.loads(path.read_text())
    for change in (
        {"root": "00" * 32},
        {"owner": Account.create().address},
        {"erased_at": value["erased_at"] + 1},
        {"reason": "lost"},
        {"signature": "00" * 65},
        {"label": "other"},
        {"more": 1},
    ):
        path.write_bytes(canonical_json(value | change) + b"\n")
        with pytest.raises(VerificationError, match=r"\.json: expected"):
            read_tombstone(path)


def test_a_tombstone_has_one_spelling(tmp_path):
    state, store, root, _ = sealed_alone(tmp_path / "home")
    stone = erase(state, store, tmp_path / "home", Account.create(), root, "asked for")
    path = tmp_path / "home" / "tombstones" / f"{root}.json"
    value = json.loads(path.read_text())
    sign = bytes.fromhex(value["signature"])
    high_s = (SECP256K1_ORDER - int.from_bytes(sign[32:64])).to_bytes(32)
    for change in (
        {"owner": stone.owner.lower()},
        {"root": str(root).upper()},
        {"erased_at": str(stone.erased_at)},
        {"erased_at": float(stone.erased_at)},
        {"signature": sign.hex().upper()},
        {"signature": (sign[:64] + bytes([sign[64] - 27])).hex()},
        {"signature": (sign[:32] + high_s + bytes([55 - sign[64]])).hex()},
    ):
        path.write_bytes(canonical_json(value | change) + b"\n")
        with pytest.raises(VerificationError, match=r"\.json: expected"):
            read_tombstone(path)
    path.write_text(json.dumps(value))
    with pytest.raises(VerificationError, match="another spelling"):
        read_tombstone(path)
    for text in ("", "[]", "{}", "7", '{"root":7}'):
        path.write_text(text)
        with pytest.raises(VerificationError, match="expected a tombstone"):
            read_tombstone(path)
    (path.parent / "good.json").write_bytes(canonical_json(value) + b"\n")
    found, refused = tombstones(tmp_path / "home")
    assert found == [stone] and len(refused) == 1 and path.name in str(refused[0])
