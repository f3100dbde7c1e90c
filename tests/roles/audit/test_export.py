"""The audit export: same chain, same bytes, no secrets; and whatever is changed in it is found and named."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from consilia.cli.demo.layout import MemberKeys, founders_of
from consilia.crypto.keys import Identity, load_account, load_identity
from consilia.errors import AuditError, InputError
from consilia.ledger.deployment import deploy
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.outbox import Outbox
from consilia.ledger.sender import Call
from consilia.roles.audit.export import CONTENTS, MANIFEST, export, manifest, pack
from consilia.roles.audit.export_check import check_export, unpack
from consilia.roles.audit.home import ExaminerKeys
from consilia.roles.progress import silent
from consilia.values import Digest, canonical_json
from tests.consortium import PASSWORD, Consortium, consortium, newest

Contents = dict[str, bytes]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Three hospitals trained for two rounds and were paid."""
    with (
        pytest.MonkeyPatch.context() as patch,
        consortium(tmp_path_factory.mktemp("exported"), patch, 3) as made,
    ):
        made.start_server(rounds=2)
        made.finish()
        yield made


@pytest.fixture(scope="module")
def honest(run: Consortium, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The run's export."""
    file = tmp_path_factory.mktemp("export") / "run.zip"
    export(run.home, file)
    return file.read_bytes()


def check(data: bytes, folder: Path, **arguments: Any) -> Any:
    file = folder / "changed.zip"
    file.write_bytes(data)
    return check_export(file, silent, **arguments)


def members_of(data: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def zipped(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", compression) as archive:
        warnings.simplefilter("ignore")  # that a name is there twice
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, compression)
    return out.getvalue()


def changed(honest: bytes, name: str, change: Callable[[bytes], bytes]) -> bytes:
    """A liar's export: one member is another, and the manifest agrees with it."""
    contents = dict(members_of(honest))
    del contents[MANIFEST]
    return pack(contents | {name: change(contents[name])})


def test_the_same_chain_gives_the_same_bytes(run: Consortium, honest: bytes, tmp_path: Path) -> None:
    done = export(run.home, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == honest
    assert done.sha256 == Digest.of(honest) and done.size_bytes == len(honest)
    with pytest.raises(InputError, match="overwrites nothing"):
        export(run.home, tmp_path / "again.zip")
    with pytest.raises(InputError, match="a place for the export"):
        export(run.home, tmp_path / "nowhere" / "again.zip")
    with pytest.raises(InputError, match="chain file"):
        export(run.home / "server", tmp_path / "server.zip")


def test_an_export_is_checked_without_node_home_or_store(
    run: Consortium, honest: bytes, tmp_path: Path
) -> None:
    result = check(honest, tmp_path)
    chain = Chain(run.home / "hospital-1" / "node" / "chain.sqlite", run.genesis, readonly=True)
    head = chain.head.header
    chain.close()
    assert (result.height, result.head_hash) == (head.number, Digest(head.hash))
    assert (result.members, result.shares, len(newest(result.tasks).rounds)) == (4, 3, 2)
    assert result.objects == 0 and result.models_rederived == 0
    assert sum(result.blocks_by_miner.values()) == head.number


def test_with_the_store_and_the_servers_key_all_models_are_derived(
    run: Consortium, honest: bytes, tmp_path: Path
) -> None:
    keys = ExaminerKeys(load_identity(run.home / "server" / "keys" / "identity.key", PASSWORD))
    store = tmp_path / "store"
    shutil.copytree(run.home / "store", store)
    named = tmp_path / "store.toml"
    named.write_text('[store]\npath = "store"\n')  # as it would name a bucket
    result = check(honest, tmp_path, store=named, keys=keys)
    assert (result.objects, result.models_rederived) == (1 + 3 + 6 + 2, 2)
    update = run.task().rounds[1].updates[0]
    (store / update.root.hex()[:2] / update.root.hex()).unlink()
    with pytest.raises(AuditError, match=r"the update of 0x.* in round 1"):
        check(honest, tmp_path, store=store)


def test_no_secret_is_in_it(run: Consortium, honest: bytes) -> None:
    """Neither key, password, nor key file of anybody; not as bytes, hex, or in another case."""
    secrets: list[bytes] = []
    for name in [*run.names, "server"]:
        keys = run.home / name / "keys"
        secrets.append(load_account(keys / "account.json", PASSWORD).key)
        secrets.append(load_identity(keys / "identity.key", PASSWORD).secret_bytes)
        secrets.append(bytes.fromhex(json.loads((keys / "account.json").read_text())["crypto"]["ciphertext"]))
    secrets += run.server.state.task_keys(next(iter(run.tasks()))).values()
    assert len(secrets) == 4 * 3 + 3
    low = honest.lower()
    for secret in secrets:
        assert len(secret) >= 32 and secret not in honest and secret.hex().encode() not in low
    assert PASSWORD.encode() not in low and str(run.home).encode() not in honest and b"password" not in low
    public = load_identity(run.home / "server" / "keys" / "identity.key", PASSWORD).recipient
    assert public.hex().encode() in low, "the search would find what is there"


# One byte, anywhere


@pytest.mark.parametrize("name", [MANIFEST, *CONTENTS])
def test_a_changed_byte_of_a_member_is_found_and_named(honest: bytes, name: str) -> None:
    """As a damaged disk would do it: in the middle and at both ends of every member."""
    data = dict(members_of(honest))[name]
    start = honest.index(data)
    for at in (0, len(data) // 2, len(data) - 1):
        damaged = bytearray(honest)
        damaged[start + at] ^= 1
        with pytest.raises(AuditError, match=name):
            unpack(bytes(damaged))


@pytest.mark.parametrize("name", CONTENTS)
def test_a_changed_byte_that_the_manifest_covers_is_found_and_named(
    honest: bytes, tmp_path: Path, name: str
) -> None:
    """As a liar would do it, who puts new sums into the manifest."""
    data = dict(members_of(honest))[name]
    for at in (1, len(data) // 3, len(data) - 2):

        def flip(member: bytes, at: int = at) -> bytes:
            return member[:at] + bytes([member[at] ^ 1]) + member[at + 1 :]

        with pytest.raises(AuditError) as found:
            check(changed(honest, name, flip), tmp_path)
        expected = ("genesis.json", "blocks.jsonl") if name == "genesis.json" else (name,)
        assert any(member in str(found.value) for member in expected), found.value


def test_every_byte_of_the_container_counts(honest: bytes, tmp_path: Path) -> None:
    """Names, times, offsets, lengths of the zip itself; bytes before, between and behind."""
    end = honest.rindex(b"PK\x05\x06")
    directory = struct.unpack_from("<I", honest, end + 16)[0]
    places = [*range(0, 30 + len(MANIFEST)), *range(directory, len(honest), 7)]
    for at in places:
        damaged = bytearray(honest)
        damaged[at] ^= 1
        with pytest.raises(AuditError):
            unpack(bytes(damaged))
    for damaged_whole in (honest + b"\0", b"\0" + honest, honest[:-1], b"", b"PK", honest + honest):
        with pytest.raises(AuditError):
            unpack(damaged_whole)


# Members


@pytest.mark.parametrize("name", [MANIFEST, *CONTENTS])
def test_a_missing_repeated_or_unexpected_member_is_named(honest: bytes, name: str) -> None:
    members = members_of(honest)
    with pytest.raises(AuditError, match=f"member {name} is missing"):
        unpack(zipped([item for item in members if item[0] != name]))
    with pytest.raises(AuditError, match=f"member {name} is there 2 times"):
        unpack(zipped([*members, (name, b"{}")]))
    with pytest.raises(AuditError, match="unexpected member"):
        unpack(zipped([(f"../{n}" if n == name else n, data) for n, data in members]))


def test_members_out_of_place_or_swapped_are_named(honest: bytes, tmp_path: Path) -> None:
    members = members_of(honest)
    with pytest.raises(AuditError, match="out of its place"):
        unpack(zipped([members[0], members[2], members[1], *members[3:]]))
    contents = dict(members)
    swap = {"roots.json": contents["registry.json"], "registry.json": contents["roots.json"]}
    with pytest.raises(AuditError, match=r"roots\.json: its bytes are not those"):
        unpack(zipped([(name, swap.get(name, data)) for name, data in members]))
    del contents[MANIFEST]
    with pytest.raises(AuditError, match=r"roots\.json: it is not what follows from the blocks"):
        check(pack(contents | swap), tmp_path)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../evil", "C:\\evil", "a/../b", "blocks.jsonl\0.txt", ""]
)
def test_a_name_that_climbs_out_is_refused_and_writes_nothing(
    honest: bytes, tmp_path: Path, name: str
) -> None:
    (tmp_path / "inside").mkdir()
    with pytest.raises(AuditError, match=r"member|zip"):
        check(zipped([*members_of(honest), (name, b"evil")]), tmp_path / "inside")
    assert {path.name for path in tmp_path.rglob("*")} == {"inside", "changed.zip"}


def test_a_bomb_is_refused_before_it_is_unpacked(honest: bytes) -> None:
    members = [(name, data) for name, data in members_of(honest) if name != "blocks.jsonl"]
    bomb = [*members[:3], ("blocks.jsonl", bytes(200 << 20)), *members[3:]]
    data = zipped(bomb, zipfile.ZIP_DEFLATED)
    assert len(data) < 2 << 20
    with pytest.raises(AuditError, match="compressed"):
        unpack(data)


def test_overlapping_members_are_refused(honest: bytes) -> None:
    """A bomb without compression: two entries of the directory that point at the same bytes."""
    damaged = bytearray(honest)
    end = honest.rindex(b"PK\x05\x06")
    at = struct.unpack_from("<I", honest, end + 16)[0]
    offsets = []
    while damaged[at : at + 4] == b"PK\x01\x02":
        offsets.append(at + 42)
        at += 46 + sum(struct.unpack_from("<HHH", damaged, at + 28))
    damaged[offsets[4] : offsets[4] + 4] = damaged[offsets[3] : offsets[3] + 4]
    with pytest.raises(AuditError):
        unpack(bytes(damaged))


# What a liar with patience would do: every sum right, and the content false


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def joined(values: list[dict[str, Any]]) -> bytes:
    return b"".join(canonical_json(value) + b"\n" for value in values)


def without(number: int) -> Callable[[bytes], bytes]:
    return lambda data: joined([value for value in lines(data) if value["number"] != number])


def swapped(first: int, second: int) -> Callable[[bytes], bytes]:
    def swap(data: bytes) -> bytes:
        values = lines(data)
        values[first], values[second] = values[second], values[first]
        return joined(values)

    return swap


def edited(path: str, value: object) -> Callable[[bytes], bytes]:
    """A JSON member with one value replaced; `path` such as `0/active`."""

    def edit(data: bytes) -> bytes:
        whole = json.loads(data)
        *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        place = whole
        for step in way:
            place = place[step]
        place[last] = value
        return canonical_json(whole)

    return edit


def shorter(data: bytes) -> bytes:
    return canonical_json(json.loads(data)[:-1])


FORGERIES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "a block dropped": ("blocks.jsonl", without(6), r"blocks\.jsonl: line 7: expected block 6"),
    "blocks swapped": ("blocks.jsonl", swapped(5, 6), r"blocks\.jsonl: line 6: expected block 5"),
    "no blocks": ("blocks.jsonl", lambda data: b"", r"blocks\.jsonl"),
    "the last receipts dropped": (
        "receipts.jsonl",
        lambda d: joined(lines(d)[:-1]),
        r"receipts\.jsonl: it ends at block",
    ),
    "receipts swapped": ("receipts.jsonl", swapped(5, 6), r"receipts\.jsonl: the receipts of block 5"),
    "receipts of a block emptied": (
        "receipts.jsonl",
        lambda data: joined([v | {"receipts": []} if v["number"] == 7 else v for v in lines(data)]),
        r"receipts\.jsonl: the receipts of block 7",
    ),
    "receipts of a block too many": (
        "receipts.jsonl",
        lambda data: joined([*lines(data), lines(data)[-1] | {"number": len(lines(data))}]),
        r"receipts\.jsonl: there is no block",
    ),
    "a root left out": ("roots.json", shorter, r"roots\.json"),
    "another root": (
        "roots.json",
        edited("0/root", "0x" + "11" * 32),
        r"roots\.json: .* expected .*, got .*1111",
    ),
    "another size": ("roots.json", edited("1/size", 7), r"roots\.json"),
    "a used update as unneeded": ("roots.json", edited("1/needed", False), r"roots\.json"),
    "a member left out": ("registry.json", shorter, r"registry\.json"),
    "another recipient key": (
        "registry.json",
        edited("1/recipient_key", "0x" + "22" * 32),
        r"registry\.json",
    ),
    "a member as suspended": ("registry.json", edited("0/active", False), r"registry\.json"),
    "another role": ("registry.json", edited("0/role", "server"), r"registry\.json"),
    "another code hash": ("contracts.json", edited("0/code_hash", "0x" + "33" * 32), r"contracts\.json"),
    "another maker": ("contracts.json", edited("2/made_by", None), r"contracts\.json"),
    "another registry": ("deployment.json", edited("registry", "0x" + "0" * 40), r"deployment\.json"),
    "registry and escrow exchanged": (
        "deployment.json",
        lambda data: canonical_json(
            json.loads(data)
            | {"registry": json.loads(data)["escrow"], "escrow": json.loads(data)["registry"]}
        ),
        r"deployment\.json: the \w+ contract at 0x\w+ was not made",
    ),
    "another chain": ("deployment.json", edited("chain_id", 1), r"deployment\.json"),
    "an older deployment": ("deployment.json", edited("block", 1), r"deployment\.json"),
    "more money at the start": ("genesis.json", edited("block_reward_wei", 1), r"blocks\.jsonl: block 0"),
    "an unknown key of the genesis": ("genesis.json", edited("extra", 1), r"genesis\.json"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_with_right_sums_is_found(honest: bytes, tmp_path: Path, name: str) -> None:
    member, change, problem = FORGERIES[name]
    forged = changed(honest, member, change)
    assert unpack(forged)
    with pytest.raises(AuditError, match=problem):
        check(forged, tmp_path)


def test_the_forgeries_start_from_an_honest_export(honest: bytes, tmp_path: Path) -> None:
    """Without a lie the same way of packing passes."""
    assert changed(honest, "roots.json", lambda data: canonical_json(json.loads(data))) == honest
    assert changed(honest, "blocks.jsonl", lambda data: joined(lines(data))) == honest


def test_a_block_with_other_transactions_does_not_pass(honest: bytes, tmp_path: Path) -> None:
    """A transaction is taken out, and the hash in the line is that of the new bytes."""

    def rob(data: bytes) -> bytes:
        values = lines(data)
        place = next(v for v in values if Block.decode(bytes.fromhex(v["block"][2:])).transactions)
        block = Block.decode(bytes.fromhex(place["block"][2:]))
        place["block"] = "0x" + Block(block.header, ()).encoded.hex()
        return joined(values)

    with pytest.raises(AuditError, match=r"blocks\.jsonl: block \d+: expected transactions root"):
        check(changed(honest, "blocks.jsonl", rob), tmp_path)


def test_the_newest_blocks_left_out_everywhere_is_a_shorter_chain(
    run: Consortium, honest: bytes, tmp_path: Path
) -> None:
    """No export can prove that it is the newest: the check says where it ends, to be compared with the others."""
    short = tmp_path / "short"
    short.mkdir()
    full = check(honest, tmp_path)
    genesis = Genesis.load(run.home / "genesis.json")
    source = Chain(run.home / "hospital-1" / "node" / "chain.sqlite", genesis, readonly=True)
    shutil.copytree(run.home / "hospital-1" / "keys", short / "hospital-1" / "keys")
    (short / "hospital-1" / "node").mkdir()
    target = Chain(short / "hospital-1" / "node" / "chain.sqlite", genesis)
    for number in range(1, full.height):
        stored = source.block_by_number(number)
        assert stored is not None
        target.import_block(stored.block)
    source.close()
    target.close()
    for name in ("genesis.json", "deployment.json", "network.json"):
        shutil.copy(run.home / name, short)
    export(short, tmp_path / "short.zip")
    result = check_export(tmp_path / "short.zip", silent)
    assert result.height == full.height - 1 and result.head_hash != full.head_hash


def test_a_forged_share_is_found_in_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is right: only who computes the shares again sees that the server divided falsely."""
    home = tmp_path / "home"
    home.mkdir()
    with consortium(home, monkeypatch, 2) as made:
        friend = made.addresses[0]
        monkeypatch.setattr(
            "consilia.roles.server.shares_by_samples", lambda samples, pool_wei: {friend: pool_wei}
        )
        made.start_server()
        made.finish()
    export(home, tmp_path / "forged.zip")
    with pytest.raises(AuditError, match=r"the share of 0x.* its registered examples give"):
        check_export(tmp_path / "forged.zip", silent)


def test_a_registry_of_another_consortium_on_the_same_chain_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code is ours and its members are real, but not those whom these contracts ask for."""
    home = tmp_path / "home"
    home.mkdir()
    with consortium(home, monkeypatch, 2) as made:
        outsider = MemberKeys("server", Account.create(), Identity.generate())
        funds = made.hospitals[0].ledger._sender
        assert funds is not None
        funds.send("gift", Call(outsider.account.address, b"", 21_000, value_wei=10**19))
        outbox = Outbox(tmp_path / "outbox.sqlite")
        second = deploy(made.url, outsider.account, founders_of([outsider], int(made.clock.time())), outbox)
        outbox.close()
    deployment = json.loads((home / "deployment.json").read_text())
    (home / "deployment.json").write_text(json.dumps(deployment | {"registry": second.registry}))
    export(home, tmp_path / "mixed.zip")
    with pytest.raises(AuditError, match=rf"belongs to the registry at 0x\w+, not to {second.registry}"):
        check_export(tmp_path / "mixed.zip", silent)


def test_the_command_has_its_exit_codes(run: Consortium, honest: bytes, tmp_path: Path) -> None:
    def audit(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "consilia", "audit", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    file = tmp_path / "run.zip"
    done = audit("export", str(file), "--home", str(run.home), "--format", "json")
    assert done.returncode == 0 and file.read_bytes() == honest
    assert json.loads(done.stdout)["sha256"] == str(Digest.of(honest))
    done = audit("verify", str(file), "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout.splitlines()[-1])["step"] == "all in order"
    file.write_bytes(changed(honest, "registry.json", shorter))
    done = audit("verify", str(file))
    assert done.returncode == 5 and "registry.json" in done.stderr and "Traceback" not in done.stderr
    assert audit("verify", str(tmp_path / "nothing.zip")).returncode == 2
    assert audit("verify").returncode == 2


def test_the_manifest_names_every_member(honest: bytes) -> None:
    contents = dict(members_of(honest))
    said = json.loads(contents.pop(MANIFEST))
    assert canonical_json(said) == manifest(contents)
    assert {e["name"]: e["sha256"] for e in said["members"]} == {
        n: str(Digest.of(d)) for n, d in contents.items()
    }
