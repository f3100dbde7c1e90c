"""What waits in a node is bounded: in number, in bytes, of one sender, for one peer, and on side branches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from consilia.errors import LedgerUnreachableError, TransactionRefusedError
from consilia.ledger.embedded import gossip, message, peer, pool, reception, side_blocks
from consilia.ledger.embedded.block import MAX_BLOCK_BYTES
from consilia.ledger.embedded.gossip import Outbox
from consilia.ledger.embedded.message import Kind
from consilia.ledger.embedded.peer import Speaker
from consilia.ledger.embedded.pool import Pool
from tests.ledger.embedded.hosted import Hosted
from tests.ledger.embedded.members import COINBASES, KEYS, Consortium, extend, genesis, payment, sealed
from tests.ledger.embedded.network import connect, credentials

MIB = 1 << 20


def test_the_bounds_are_those_of_the_page() -> None:
    assert (pool.MAX_PENDING, pool.MAX_PENDING_BYTES, pool.MAX_PENDING_PER_SENDER) == (4096, 32 * MIB, 512)
    assert (gossip.MAX_WAITING_BLOCKS, gossip.MAX_WAITING_TRANSACTIONS) == (64, 4096)
    assert (side_blocks.MAX_SIDE_BLOCKS, side_blocks.MAX_SIDE_BYTES) == (64, 8 * MIB)
    assert (MAX_BLOCK_BYTES, reception.MAX_BRANCH_BYTES) == (MIB, 2 * MIB)
    assert MIB <= message.MAX_MESSAGE_BYTES <= 1.1 * MIB and 2 * MIB <= message.MAX_REPLY_BYTES <= 2.1 * MIB


# Waiting transactions


@pytest.mark.parametrize(
    ("name", "bound", "fit", "spare"),
    [
        ("MAX_PENDING_PER_SENDER", 3, [(0, 0), (0, 1), (0, 2)], (1, 0)),
        ("MAX_PENDING", 3, [(0, 0), (1, 0), (2, 0)], None),
        ("MAX_PENDING_BYTES", sum(len(payment(index, 0).raw) for index in (0, 1)), [(0, 0), (1, 0)], None),
    ],
)
def test_a_full_pool_takes_no_more_until_a_block_made_room(
    consortium: Consortium,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    bound: int,
    fit: list[tuple[int, int]],
    spare: tuple[int, int] | None,
) -> None:
    monkeypatch.setattr(pool, name, bound)
    chain = consortium.chain("alice")
    waiting = Pool(chain)
    for index, nonce in fit:
        waiting.add(payment(index, nonce).raw)
    late = payment(0, sum(index == 0 for index, _ in fit))
    with pytest.raises(TransactionRefusedError, match="too many transactions wait"):
        waiting.add(late.raw)
    assert len(waiting) == len(chain.file.pending()) == len(fit), "what is refused is not kept on disk either"
    assert waiting.add(payment(*fit[0], maxFeePerGas=2 * 10**9, maxPriorityFeePerGas=2).raw)[
        1
    ]  # in its place
    if spare is not None:  # one sender's flood is no other's loss
        waiting.add(payment(*spare).raw)
    extend(chain, waiting.executable())
    assert waiting.add(late.raw)[1]


# What one peer is still to be told


def test_a_peer_that_takes_nothing_costs_a_bounded_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gossip, "MAX_WAITING_BLOCKS", 2)
    monkeypatch.setattr(gossip, "MAX_WAITING_TRANSACTIONS", 3)
    made = genesis()
    outbox = Outbox("http://127.0.0.1:1", Speaker(credentials(KEYS[0], made), made.digest(), "http://x"))
    for number in range(5):  # its thread was never started: a peer that takes nothing
        outbox.put_block(b"block %d" % number, ())
        outbox.put_transaction(b"transaction %d" % number, ())
    told = [outbox._next() for _ in range(3)]
    assert [(kind, [item.raw for item in news]) for kind, news in told] == [
        (Kind.NEW_BLOCKS, [b"block 3"]),
        (Kind.NEW_BLOCKS, [b"block 4"]),
        (Kind.NEW_TRANSACTIONS, [b"transaction 2", b"transaction 3", b"transaction 4"]),
    ], "the oldest gives way"


# Blocks of lighter branches


@pytest.mark.parametrize(
    ("name", "bound"),
    [("MAX_SIDE_BLOCKS", lambda size: 2), ("MAX_SIDE_BYTES", lambda size: 2 * size + size // 2)],
)
def test_side_blocks_give_way_the_oldest_first(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch, name: str, bound: Callable[[int], int]
) -> None:
    ours, theirs = consortium.chain("alice"), consortium.chain("bob")
    draft = theirs.draft([], COINBASES[1])
    rivals = [sealed(theirs, draft) for _ in range(4)]  # brothers, each with its own nonce
    monkeypatch.setattr(side_blocks, name, bound(len(rivals[0].encoded)))
    for _ in range(2):  # so that each rival is of a lighter branch
        extend(ours)
    for rival in rivals:
        ours.import_block(rival)
    kept = [ours._side.get(rival.header.hash) is not None for rival in rivals]
    assert kept == [False, False, True, True]


# What a peer answers


@pytest.mark.network
def test_a_reply_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hosted = Hosted(tmp_path, genesis())
    try:
        node = hosted.start(KEYS[0], mines=False)
        reader = connect(node.server.url, KEYS[1], node.chain.genesis)
        reader.ask(Kind.HEAD)
        monkeypatch.setattr(peer, "MAX_REPLY_BYTES", 100)
        read: list[int] = []
        opened = peer.Reply.open

        def watched(network: bytes, request: bytes, data: bytes) -> message.Reply:
            read.append(len(data))
            return opened(network, request, data)

        monkeypatch.setattr(peer.Reply, "open", watched)
        with pytest.raises(LedgerUnreachableError):
            reader.ask(Kind.HEAD)
        assert read == [101]
    finally:
        hosted.close()
