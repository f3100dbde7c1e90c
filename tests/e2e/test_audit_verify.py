"""`consilia audit verify` on a home in which somebody changed something: exit code 5, and what it was."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from consilia.crypto.keys import load_account
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.chainfile import ChainFile
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.local import LocalNode
from consilia.ledger.embedded.node_key import NodeKey
from consilia.ledger.embedded.replay import open_readonly_provider
from consilia.ledger.events import Claimed, Event
from consilia.roles.training.task_log import TaskLog, fold
from tests.consortium import flip_bit, newest
from tests.e2e.running import audit

pytestmark = [pytest.mark.network, pytest.mark.slow]


def chain_file(home: Path, hospital: int = 1) -> Path:
    return home / f"hospital-{hospital}" / "node" / "chain.sqlite"


def events_of(home: Path) -> list[Event]:
    """What the contracts told, read from the first hospital's chain."""
    deployment = Deployment.load(home / "deployment.json")
    provider = open_readonly_provider(chain_file(home), Genesis.load(home / "genesis.json"))
    try:
        return Ledger("file", deployment, provider=provider).events()
    finally:
        provider.close()


def task_of(home: Path) -> TaskLog:
    """The home's task."""
    return newest(fold(events_of(home)))


def object_path(home: Path, root: bytes) -> Path:
    return home / "store" / root.hex()[:2] / root.hex()


def alter(path: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(sql, values).rowcount > 0
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def flip_in_record(home: Path, column: str, number: int) -> None:
    """Flip a bit in the middle of one column of a block."""
    file = chain_file(home, 2)
    connection = sqlite3.connect(file)
    query = f"SELECT b.hash, b.{column} FROM blocks b JOIN canonical c ON c.hash = b.hash WHERE c.number = ?"
    block_hash, data = connection.execute(query, (number,)).fetchone()
    connection.close()
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    alter(file, f"UPDATE blocks SET {column} = ? WHERE hash = ?", bytes(changed), block_hash)


def drop_block(home: Path, number: int) -> None:
    """Remove a block from one hospital's file: its record, and its place in the canonical chain."""
    file = chain_file(home, 2)
    alter(file, "DELETE FROM blocks WHERE hash = (SELECT hash FROM canonical WHERE number = ?)", number)
    alter(file, "DELETE FROM canonical WHERE number = ?", number)


def height(home: Path) -> int:
    connection = sqlite3.connect(chain_file(home, 2))
    newest: int = connection.execute("SELECT max(number) FROM canonical").fetchone()[0]
    connection.close()
    return newest


def cut_back(home: Path) -> None:
    """Set a hospital's chain back to before its own last deed, its claim, as if that had never been."""
    address = (
        json.loads((home / "hospital-2" / "keys" / "account.json").read_text())["address"]
        .removeprefix("0x")
        .lower()
    )
    claim = next(e for e in events_of(home) if isinstance(e, Claimed) and e.member[2:].lower() == address)
    file = ChainFile(chain_file(home, 2), readonly=True)
    kept = [file.stored(file.canonical_hash(number) or b"") for number in range(1, claim.block_number)]
    file.close()
    for path in (home / "hospital-2" / "node").glob("chain.sqlite*"):
        path.unlink()
    chain = Chain(chain_file(home, 2), Genesis.load(home / "genesis.json"))
    for stored in kept:
        assert stored
        chain.import_block(stored.block)
    chain.close()


def swap_two_updates(home: Path) -> None:
    first, second = (object_path(home, update.root) for update in task_of(home).rounds[0].updates)
    data = first.read_bytes()
    for path in (first, second):
        path.chmod(0o600)
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def name_another_genesis(home: Path) -> None:
    genesis = Genesis.load(home / "genesis.json")
    genesis.model_copy(update={"block_reward_wei": genesis.block_reward_wei + 1}).save(home / "other.json")
    network = json.loads((home / "network.json").read_text())
    (home / "network.json").write_text(json.dumps(network | {"genesis": "other.json"}))


def flip_server_model(home: Path, name: str) -> None:
    flip_bit(next((home / "server" / "models").glob(f"*/{name}.safetensors")), -2)


Attack = Callable[[Path], object]
ATTACKS: dict[str, tuple[Attack, str]] = {
    "a byte of a block's transactions": (lambda home: flip_in_record(home, "transactions", 5), "block 5"),
    "a byte of a block's header": (lambda home: flip_in_record(home, "header", 7), "block 7"),
    "a byte of a block's receipts": (lambda home: flip_in_record(home, "receipts", 4), "block 4"),
    "a middle block dropped": (lambda home: drop_block(home, 6), "block 6"),
    "the last blocks dropped, without a trace": (
        cut_back,
        "ends at block .* but block .* holds transaction 0x",
    ),
    "the last block no longer canonical": (
        lambda home: alter(chain_file(home, 2), "DELETE FROM canonical WHERE number = ?", height(home)),
        "block",
    ),
    "a byte of an update's envelope": (
        lambda home: flip_bit(object_path(home, task_of(home).rounds[1].updates[0].root), -60),
        "the update of 0x",
    ),
    "a byte of a model's envelope": (
        lambda home: flip_bit(object_path(home, task_of(home).rounds[1].opened.model_root), 120),
        "the model of round 0|opens round 1",
    ),
    "the key string lost": (
        lambda home: object_path(home, task_of(home).started.key_string_root).unlink(),
        "the key string: .*no object",
    ),
    "an update lost": (
        lambda home: object_path(home, task_of(home).rounds[0].updates[1].root).unlink(),
        "the update of 0x.* in round 0: .*no object",
    ),
    "two updates swapped": (swap_two_updates, "the update of 0x.*object"),
    "a byte of the server's first model": (
        lambda home: flip_server_model(home, "round-000"),
        r"round-000\.safetensors is not the model that was registered",
    ),
    "a byte of the server's last model": (
        lambda home: flip_server_model(home, "round-002"),
        "round-002.safetensors",
    ),
    "another genesis": (name_another_genesis, "block 0"),
    "a chain file lost": (lambda home: chain_file(home, 2).unlink(), "hospital-2"),
}


def test_an_untouched_home_is_in_order(finished_home: Path) -> None:
    done = audit(finished_home)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["step"] == "all in order" and last["models_rederived"] == 2


@pytest.mark.parametrize("name", ATTACKS)
def test_a_change_is_found_and_named(finished_home: Path, tmp_path: Path, name: str) -> None:
    attack, named = ATTACKS[name]
    home = tmp_path / "copy"
    shutil.copytree(finished_home, home)
    attack(home)
    done = audit(home)
    assert done.returncode == 5, (done.stdout, done.stderr)
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("consilia: ") and re.search(named, message), message
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("place", range(8))
def test_a_byte_of_the_chain_file_itself(finished_home: Path, tmp_path: Path, place: int) -> None:
    """Wherever it lies: in a page's rows the audit finds it; in free space it changes nothing that is read."""
    home = tmp_path / "copy"
    shutil.copytree(finished_home, home)
    file = chain_file(home, 2)
    alter(file, "UPDATE meta SET value = value")  # the log is folded into the file
    flip_bit(file, file.stat().st_size * (2 * place + 1) // 16)
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        same = list(connection.iterdump()) == list(sqlite3.connect(chain_file(finished_home, 2)).iterdump())
    except (sqlite3.Error, UnicodeDecodeError):
        same = False
    finally:
        connection.close()
    done = audit(home)
    assert done.returncode in ((0, 5) if same else (5,)), done.stderr
    assert "Traceback" not in done.stderr


def test_a_rewritten_history_with_more_work_does_not_replace_the_others(
    finished_home: Path, tmp_path: Path
) -> None:
    """A hospital mines at leisure a longer chain on which nothing ever happened; every seal in it is valid."""
    home = tmp_path / "copy"
    shutil.copytree(finished_home, home)
    genesis = Genesis.load(home / "genesis.json")
    for path in (home / "hospital-2" / "node").glob("chain.sqlite*"):
        path.unlink()
    keys = home / "hospital-2" / "keys"
    account = load_account(keys / "account.json", (keys / "password").read_text().strip())
    with LocalNode(chain_file(home, 2), genesis, NodeKey(bytes(account.key))) as node:
        node.mine(2 * height(finished_home))
    done = audit(home)
    assert done.returncode == 5 and "different histories from block 1 on" in done.stderr, done.stderr
