"""Many nodes in one process: fifty hospitals, and a network that splits and heals."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from eth_account import Account
from eth_utils import keccak

from consilia.ledger.embedded import miner as miner_module
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.node import Node
from consilia.ledger.embedded.peer import PeerConnection
from consilia.ledger.embedded.seal import seal_ceiling, search
from consilia.ledger.embedded.transaction import Transaction, decode_transaction
from tests.ledger.embedded.hosted import Hosted
from tests.ledger.embedded.members import CHAIN_ID, KEYS, genesis, payment
from tests.ledger.embedded.network import free_ports, wait_for

pytestmark = [pytest.mark.network]
HOSPITALS = 50
FIFTY = [Account.from_key(keccak(text=f"one of fifty: {index}")) for index in range(HOSPITALS)]


class SearchHere:
    """Searches at once, in the miner's thread: fifty child processes would be fifty interpreters."""

    pid = 0

    def __init__(self, on_found: Callable[[bytes, bytes], None]) -> None:
        self._on_found = on_found

    def start(self, mining_hash: bytes, difficulty: int) -> None:
        nonce = search(mining_hash, seal_ceiling(difficulty), random.getrandbits(50), 1 << 40)
        assert nonce is not None
        self._on_found(mining_hash, nonce)

    def stop(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing runs."""


@pytest.fixture
def search_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miner_module, "SearchProcess", SearchHere)


def canonical(node: Node) -> list[bytes | None]:
    return [node.chain.file.canonical_hash(number) for number in range(node.chain.head.header.number + 1)]


def agree(nodes: list[Node]) -> bool:
    return len({node.chain.head.header.hash for node in nodes}) == 1


def gift(index: int, nonce: int = 0) -> Transaction:
    """One wei from one of the fifty to the next."""
    fields = {
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 21_000,
        "maxFeePerGas": 10**9,
        "maxPriorityFeePerGas": 1,
        "to": FIFTY[(index + 1) % HOSPITALS].address,
        "value": 1,
        "type": 2,
    }
    return decode_transaction(bytes(FIFTY[index].sign_transaction(fields).raw_transaction))


@pytest.mark.slow
def test_fifty_hospitals_agree(tmp_path: Path, search_here: None) -> None:
    """Each knows four others; each sends a transaction to its own node; all see all of them, in one order."""
    made = genesis(
        min_difficulty=64,
        miners=tuple(account.address for account in FIFTY),
        balances_wei={account.address: 10**18 for account in FIFTY},
    )
    hosted = Hosted(tmp_path, made)
    ports = free_ports(HOSPITALS)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    nodes = []
    first = Chain(tmp_path / "first.sqlite", made)  # block 0 and its state are the same for all: made once
    first.close()
    for index, account in enumerate(FIFTY):
        (tmp_path / account.address).mkdir()
        shutil.copy(first.file.path, tmp_path / account.address / "chain.sqlite")
        peers = tuple(urls[(index + step) % HOSPITALS] for step in (1, 7, 19, 49))
        nodes.append(hosted.start(account, ports[index], peers))
    sent = [gift(index) for index in range(HOSPITALS)]
    for node, transaction in zip(nodes, sent, strict=True):
        node._methods["eth_sendRawTransaction"]("0x" + transaction.raw.hex())
    wait_for(
        lambda: all(all(node.chain.file.location(item.hash) for item in sent) for node in nodes),
        "every transaction on every node",
    )
    wait_for(lambda: agree(nodes), "one head")
    assert not any(
        node.gossip.reception.standing.cut_off() for node in nodes
    )  # nobody was taken for an attacker
    blocks = [nodes[0].chain.block_by_number(number) for number in range(1, len(canonical(nodes[0])))]
    mined = Counter(item for stored in blocks if stored for item in stored.block.transaction_hashes)
    assert mined == dict.fromkeys((item.hash for item in sent), 1)
    hosted.close()


# A network that splits


class Split:
    """Cuts the wire between nodes of different sides, while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sides: dict[str, int] = {}
        self.on = False
        send = PeerConnection._send

        def guarded(connection: PeerConnection, body: bytes) -> bytes:
            here = self.sides.get(connection._speaker.url)
            there = self.sides.get(f"http://{connection._http.host}:{connection._http.port}")
            if self.on and here != there:
                raise ConnectionError("the wire is cut")
            return send(connection, body)

        monkeypatch.setattr(PeerConnection, "_send", guarded)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    return Split(monkeypatch)


@pytest.fixture
def four(tmp_path: Path, search_here: None, split: Split) -> Iterator[list[Node]]:
    """Four nodes that all know one another, two on either side."""
    hosted = Hosted(tmp_path, genesis(min_difficulty=64))
    ports = free_ports(4)
    urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
    split.sides = {url: index // 2 for index, url in enumerate(urls)}
    yield [hosted.start(account, port, urls) for account, port in zip(KEYS, ports, strict=True)]
    hosted.close()


def send(node: Node, transaction: Transaction) -> None:
    node._methods["eth_sendRawTransaction"]("0x" + transaction.raw.hex())


def has(node: Node, transaction: Transaction) -> bool:
    return node.chain.file.location(transaction.hash) is not None


def test_a_split_network_comes_together_and_loses_no_transaction(four: list[Node], split: Split) -> None:
    """Both sides work; afterwards each transaction is in once, or refused because its money went elsewhere."""
    send(four[0], payment(0, 0))
    wait_for(lambda: all(has(node, payment(0, 0)) for node in four), "a transaction before the split")
    split.on = True
    left, right = four[:2], four[2:]
    only_left = [payment(1, nonce) for nonce in range(4)]
    only_right = [payment(2, nonce) for nonce in range(4)]
    spent_left, spent_right = payment(3, 0, value=1), payment(3, 0, value=2)  # one account, two histories
    for transaction in (*only_left, spent_left):
        send(left[0], transaction)
        wait_for(lambda transaction=transaction: all(has(n, transaction) for n in left), "the left side")
    for transaction in (*only_right, spent_right):
        send(right[0], transaction)
        wait_for(lambda transaction=transaction: all(has(n, transaction) for n in right), "the right side")
    assert left[0].chain.head.header.hash != right[0].chain.head.header.hash
    assert not any(has(node, spent_right) for node in left)

    split.on = False
    wait_for(
        lambda: all(has(node, item) for node in four for item in (*only_left, *only_right)),
        "every transaction of both sides, on every node",
    )
    wait_for(lambda: agree(four), "one chain")
    assert has(four[0], spent_left) != has(four[0], spent_right)
    lost = spent_right if has(four[0], spent_left) else spent_left
    assert all(node.pool.get(lost.hash) is None for node in four)  # refused: its nonce is used
    assert sum(node.status()["reorgs"] > 0 for node in four) >= 2  # type: ignore[operator, index, call-overload]
    assert not any(node.gossip.reception.standing.cut_off() for node in four)  # a losing side is no attacker
