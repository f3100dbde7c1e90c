"""Many nodes in one process: fifty hospitals, and a network that splits and heals."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils import keccak

from consilia.errors import ChainError, LedgerUnreachableError, PeerRefusedError
from consilia.ledger.contracts import contract_abi
from consilia.ledger.deployment import contract_address, sign_founder
from consilia.ledger.embedded import miner as miner_module
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain, Draft
from consilia.ledger.embedded.message import Kind as MessageKind
from consilia.ledger.embedded.node import Node
from consilia.ledger.embedded.peer import PeerConnection
from consilia.ledger.embedded.seal import seal_ceiling, search
from consilia.ledger.embedded.transaction import Transaction, decode_transaction
from consilia.ledger.registry import Kind
from consilia.values import Digest, Role
from tests.ledger.embedded.hosted import Hosted
from tests.ledger.embedded.members import CHAIN_ID, KEYS, genesis, payment, sign_as, work
from tests.ledger.embedded.network import connect, free_ports, wait_for

pytestmark = [pytest.mark.network]
HOSPITALS = 50
VOTES = 26
"""More than a half of fifty, the proposer's own included."""
FIFTY = [Account.from_key(keccak(text=f"one of fifty: {index}")) for index in range(HOSPITALS)]
REGISTRY = contract_address(FIFTY[0].address, 0)


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


def signed(index: int, nonce: int, to: str | None, **changes: Any) -> Transaction:
    """A transaction of one of the fifty."""
    fields = {
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "maxFeePerGas": 10**9,
        "maxPriorityFeePerGas": 1,
        "type": 2,
    }
    fields |= {"gas": 1_000_000, "value": 0} | ({} if to is None else {"to": to}) | changes
    return decode_transaction(bytes(FIFTY[index].sign_transaction(fields).raw_transaction))


def gift(index: int) -> Transaction:
    """One wei from one of the fifty to the next."""
    return signed(index, 0, FIFTY[(index + 1) % HOSPITALS].address, value=1, gas=21_000)


def founding() -> Transaction:
    """The registry with all fifty, each by its own signature."""
    founders = []
    for index, account in enumerate(FIFTY):
        record: dict[str, Any] = {"recipient_key": bytes([index + 1]) * 32, "role": Role.HOSPITAL}
        record |= {"certificate_digest": Digest.of(b""), "valid_from": 0, "valid_to": 2**40}
        signature = sign_founder(account, **record, chain_id=CHAIN_ID, registry=REGISTRY)
        founders.append((account.address, *record.values(), signature))
    return signed(0, 0, None, data=contract_abi("registry").deployment(founders), gas=25_000_000)


@pytest.mark.slow
def test_fifty_hospitals_agree_and_suspend_one(tmp_path: Path, search_here: None) -> None:
    """Each knows three others; each has voted, or sends a payment to its own node; all see all of them, in one order.

    Among them goes the vote that suspends one of the fifty: from then on the 49 refuse its blocks.
    """
    made = genesis(
        min_difficulty=64,
        miners=(FIFTY[0].address,),
        registry=REGISTRY,
        balances_wei={account.address: 10**18 for account in FIFTY},
    )
    hosted = Hosted(tmp_path, made)
    ports = free_ports(HOSPITALS)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    nodes = []
    first = Chain(tmp_path / "first.sqlite", made)  # what came before is the same for all: made once
    propose = contract_abi("registry").call("propose", int(Kind.SUSPENSION), FIFTY[-1].address)
    approve = contract_abi("registry").call("vote", 1)
    *votes, deciding = (signed(index, 0, REGISTRY, data=approve) for index in range(1, VOTES))
    before = [founding(), signed(0, 1, REGISTRY, data=propose), *votes]
    draft = first.draft(before, bytes.fromhex(FIFTY[0].address[2:]))
    assert first.import_block(block_of(first, draft, FIFTY[0])) is not None
    assert len(draft.block.transactions) == len(before)
    first.close()
    for index, account in enumerate(FIFTY):
        (tmp_path / account.address).mkdir()
        shutil.copy(first.file.path, tmp_path / account.address / "chain.sqlite")
        peers = tuple(urls[(index + step) % HOSPITALS] for step in (1, 7, 19))
        nodes.append(hosted.start(account, ports[index], peers))
    suspended = bytes.fromhex(FIFTY[-1].address[2:])
    assert all(suspended in node.chain.admission.miners_at(node.chain.head.header) for node in nodes)
    sent = [deciding, *(gift(index) for index in range(VOTES, HOSPITALS))]
    for node, transaction in zip(nodes[VOTES - 1 :], sent, strict=True):
        node._methods["eth_sendRawTransaction"]("0x" + transaction.raw.hex())
    wait_for(
        lambda: all(all(node.chain.file.location(item.hash) for item in sent) for node in nodes),
        "every transaction on every node",
    )
    wait_for(lambda: agree(nodes), "one head")
    assert not any(
        node.gossip.reception.standing.cut_off() for node in nodes
    )  # nobody was taken for an attacker
    blocks = [nodes[0].chain.block_by_number(number) for number in range(2, len(canonical(nodes[0])))]
    mined = Counter(item for stored in blocks if stored for item in stored.block.transaction_hashes)
    assert mined == dict.fromkeys((item.hash for item in sent), 1)

    mutineer = nodes[-1].chain
    late = block_of(mutineer, mutineer.draft((), suspended), FIFTY[-1])
    for node in nodes[:-1]:
        assert len(node.chain.admission.miners_at(node.chain.head.header)) == HOSPITALS - 1
        with pytest.raises(ChainError, match="not an admitted miner"):
            node.chain.import_block(late)
    with pytest.raises((PeerRefusedError, LedgerUnreachableError)):
        connect(urls[0], FIFTY[-1], made).ask(MessageKind.NEW_BLOCKS, (late.encoded,))
    assert agree(nodes) and late.header.hash not in canonical(nodes[0])
    hosted.close()


def block_of(chain: Chain, draft: Draft, account: LocalAccount) -> Block:
    """A draft as a block that an account signed, with honest work."""
    return Block(work(sign_as(chain, draft.block.header, account)), draft.block.transactions)


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
    assert sum(node.status()["reorgs"] > 0 for node in four) >= 2
    assert not any(node.gossip.reception.standing.cut_off() for node in four)  # a losing side is no attacker
