"""What a malicious peer tries, one by one: it is cut off, and nothing else suffers."""

from __future__ import annotations

import http.client
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from eth_account.signers.local import LocalAccount

from consilia.errors import ChainError, LedgerUnreachableError, PeerRefusedError
from consilia.ledger.embedded import chain as chain_module
from consilia.ledger.embedded import rules as rules_module
from consilia.ledger.embedded import server as server_module
from consilia.ledger.embedded.block import Block, Header
from consilia.ledger.embedded.chain import MAX_SIDE_DEPTH, Chain
from consilia.ledger.embedded.evm import Execution
from consilia.ledger.embedded.message import MAX_MESSAGE_BYTES, Kind, Message, Reply, Verdict
from consilia.ledger.embedded.node import Node
from consilia.ledger.embedded.node_key import Credentials, NodeKey
from consilia.ledger.embedded.peer import MEDIA_TYPE, PEER_PATH, PeerConnection, Speaker
from consilia.ledger.embedded.rules import MAX_FUTURE_MS, next_difficulty
from consilia.ledger.embedded.standing import MESSAGE_BURST, SLIPS_PER_MINUTE
from tests.ledger.embedded.hosted import Hosted
from tests.ledger.embedded.members import (
    COINBASES,
    KEYS,
    OUTSIDER,
    extend,
    genesis,
    payment,
    seal,
    sealed,
    sign_as,
    work,
)
from tests.ledger.embedded.network import connect, credentials, wait_for

pytestmark = pytest.mark.network
ATTACKER, HONEST = KEYS[2], KEYS[1]


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[Hosted]:
    opened = Hosted(tmp_path, genesis(min_difficulty=16, block_time_ms=1))
    yield opened
    opened.close()


@pytest.fixture
def node(hosted: Hosted) -> Node:
    """The node under attack; it follows, so that its chain stands still but for what the test does."""
    return hosted.start(KEYS[0], mines=False)


@pytest.fixture
def attacker(node: Node) -> PeerConnection:
    return connect(node.server.url, ATTACKER, node.chain.genesis)


@pytest.fixture
def forge(hosted: Hosted, node: Node) -> Iterator[Chain]:
    """A chain of the attacker's own, with the same blocks as the node's."""
    chain = Chain(hosted.folder / "forge.sqlite", hosted.genesis)
    yield chain
    chain.close()


def announce(peer: PeerConnection, *blocks: Block) -> None:
    peer.ask(Kind.NEW_BLOCKS, tuple(block.encoded for block in blocks))


def is_cut_off(node: Node, account: bytes = COINBASES[2]) -> bool:
    return node.gossip.reception.standing.is_cut_off(account)


def stored(node: Node) -> int:
    return len(list(node.chain.file.rows("blocks", "hash", "hash")))


def assert_others_are_served(node: Node) -> None:
    """An honest member's block and transaction are taken as if nothing had happened."""
    honest = connect(node.server.url, HONEST, node.chain.genesis)
    transaction = payment(3, node.pool.next_nonce(COINBASES[3]))
    honest.ask(Kind.NEW_TRANSACTIONS, (transaction.raw,))
    assert node.pool.get(transaction.hash) is not None
    draft = node.chain.draft(node.pool.executable(), COINBASES[1])
    block = sealed(node.chain, draft)
    announce(honest, block)
    assert node.chain.head.header == block.header
    assert node.chain.file.location(transaction.hash) is not None
    assert not is_cut_off(node, COINBASES[1])


def post(node: Node, body: bytes, **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(node.server.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    connection.request("POST", PEER_PATH, body, {"Content-Type": MEDIA_TYPE} | headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def guest(node: Node) -> Speaker:
    network = node.chain.genesis.digest()
    return Speaker(Credentials.of_account(NodeKey.generate(), network), network, "http://x")


def greeting(node: Node, account: LocalAccount = HONEST) -> bytes:
    network = node.chain.genesis.digest()
    speaker = Speaker(credentials(account, node.chain.genesis), network, "http://x")
    return speaker.seal(Kind.HELLO, items=(os.urandom(16), speaker.delegation))


# Garbage


def test_bytes_that_nobody_signed_get_no_answer(node: Node) -> None:
    honest = greeting(node)
    for body in (b"", b"\0" * 5000, os.urandom(300), honest[:-1], honest + b"\0", honest[1:]):
        assert post(node, body) == (403, b"")
    for at in range(0, len(honest), 7):
        flipped = bytearray(honest)
        flipped[at] ^= 1
        assert post(node, bytes(flipped)) == (403, b"")
    assert_others_are_served(node)  # nobody was blamed in the honest member's name


def test_a_member_that_sends_garbage_is_cut_off(node: Node, attacker: PeerConnection) -> None:
    for kind, items in ((Kind.NEW_BLOCKS, (b"\xc1" * 1000,)),):
        with pytest.raises(PeerRefusedError, match="CUT_OFF"):
            attacker.ask(kind, items)
    assert is_cut_off(node)
    with pytest.raises(LedgerUnreachableError):
        attacker.ask(Kind.HEAD)
    assert_others_are_served(node)


def test_a_member_that_sends_a_transaction_without_signature_is_cut_off(
    node: Node, attacker: PeerConnection
) -> None:
    torn = payment(1, 0).raw[:-3]
    with pytest.raises(PeerRefusedError, match="CUT_OFF"):
        attacker.ask(Kind.NEW_TRANSACTIONS, (torn,))
    assert is_cut_off(node)
    assert_others_are_served(node)


def test_a_locator_of_nonsense_cuts_off(node: Node, attacker: PeerConnection) -> None:
    with pytest.raises(PeerRefusedError, match="CUT_OFF"):
        attacker.ask(Kind.BLOCKS, (b"short",))
    assert is_cut_off(node)
    assert_others_are_served(node)


def test_a_message_that_is_too_long_is_not_read(node: Node) -> None:
    status, _ = post(node, b"", **{"Content-Length": str(MAX_MESSAGE_BYTES + 1)})
    assert status == 413
    assert_others_are_served(node)


# Forged blocks


def unsealed(forge: Chain, header: Header) -> Header:
    return replace(sign_as(forge, header), nonce=os.urandom(8), mix_hash=os.urandom(32))


def too_little_work(forge: Chain, header: Header) -> Header:
    return seal(forge, replace(header, difficulty=1))


def outsider(forge: Chain, header: Header) -> Header:
    return seal(forge, replace(header, coinbase=bytes.fromhex(OUTSIDER.address[2:])))


def anothers_name(forge: Chain, header: Header) -> Header:
    return work(sign_as(forge, replace(header, coinbase=COINBASES[1]), ATTACKER))


def false_state(forge: Chain, header: Header) -> Header:
    return seal(forge, replace(header, state_root=os.urandom(32)))


def false_gas_limit(forge: Chain, header: Header) -> Header:
    return seal(forge, replace(header, gas_limit=header.gas_limit * 2))


@pytest.mark.parametrize(
    "forgery", [unsealed, too_little_work, outsider, anothers_name, false_state, false_gas_limit]
)
def test_a_forged_block_cuts_its_sender_off_and_leaves_nothing(
    node: Node, attacker: PeerConnection, forge: Chain, forgery: Callable[[Chain, Header], Header]
) -> None:
    draft = forge.draft([payment(0, 0)], COINBASES[2])
    before = stored(node)
    with pytest.raises(PeerRefusedError, match="CUT_OFF"):
        announce(attacker, Block(forgery(forge, draft.block.header), draft.block.transactions))
    assert is_cut_off(node)
    assert stored(node) == before
    assert_others_are_served(node)


def test_an_invalid_block_under_a_valid_one_is_found_when_it_would_count(
    node: Node, attacker: PeerConnection, forge: Chain
) -> None:
    """Side blocks wait unexecuted: an attacker hides a false state in one, and puts honest work on top."""
    extend(node.chain)
    hidden = sealed(forge, forge.draft([], COINBASES[2]), state_root=os.urandom(32))
    while not node.chain.head.header.hash < hidden.header.hash:  # the node's own block wins the tie
        hidden = sealed(forge, forge.draft([], COINBASES[2]), state_root=os.urandom(32))
    head, before = node.chain.head, stored(node)
    announce(attacker, hidden)
    assert node.chain.head == head
    child = replace(forge.next_header(hidden.header, COINBASES[2]), state_root=os.urandom(32))
    with pytest.raises(PeerRefusedError, match="CUT_OFF"):
        announce(attacker, Block(seal(forge, child), ()))
    assert node.chain.head == head
    assert stored(node) == before
    assert_others_are_served(node)


def test_blocks_from_the_future_are_forgiven_a_few_times(
    node: Node, attacker: PeerConnection, forge: Chain
) -> None:
    draft = forge.draft([], COINBASES[2])
    time_ms = forge.clock_ms() + 100 * MAX_FUTURE_MS
    changes = {
        "extra_data": time_ms.to_bytes(8, "big"),
        "timestamp": time_ms // 1000,
        "difficulty": next_difficulty(forge.genesis, forge.head.header, time_ms),
    }
    for _ in range(SLIPS_PER_MINUTE):
        with pytest.raises(PeerRefusedError, match=r"LATER.*future"):
            announce(attacker, sealed(forge, draft, **changes))
    assert not is_cut_off(node)
    with pytest.raises(PeerRefusedError):
        announce(attacker, sealed(forge, draft, **changes))
    assert is_cut_off(node)
    assert node.chain.head.header.number == 0
    assert_others_are_served(node)


# Deep fake branches


def test_a_deep_branch_of_little_work_is_neither_executed_nor_stored(
    node: Node, attacker: PeerConnection, forge: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        forge.import_block(extend(node.chain))
    for _ in range(MAX_SIDE_DEPTH + 40):
        extend(node.chain)
    fake = [extend(forge) for _ in range(SLIPS_PER_MINUTE + 1)]
    head, before = node.chain.head, stored(node)
    executed: list[int] = []
    monkeypatch.setattr(chain_module, "Execution", lambda *given: executed.append(1) or Execution(*given))
    for block in [fake[0]] * (SLIPS_PER_MINUTE + 1):
        with pytest.raises(PeerRefusedError, match=r"LATER.*headers that show more work|CUT_OFF"):
            announce(attacker, block)
        if is_cut_off(node):
            break
    with pytest.raises((LedgerUnreachableError, PeerRefusedError)):
        announce(attacker, fake[0])
    assert is_cut_off(node)
    assert executed == []
    assert (node.chain.head, stored(node)) == (head, before)
    monkeypatch.undo()
    assert_others_are_served(node)


def test_a_peer_that_claims_a_heavier_chain_has_to_show_it(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liar's chain is shorter; it claims much more work, so that others fetch and execute it."""
    honest_chain = Chain(hosted.folder / "honest.sqlite", hosted.genesis)
    for _ in range(30):
        extend(honest_chain)
    home = hosted.folder / KEYS[0].address
    home.mkdir()
    victim_chain = Chain(home / "chain.sqlite", hosted.genesis)
    for block in honest_chain.blocks_after((), 100, 1 << 30):
        victim_chain.import_block(block)
    victim_chain.close()
    honest_chain.close()

    liar = hosted.start(ATTACKER, mines=False, name="liar")
    for _ in range(20):
        extend(liar.chain, index=2)
    answer = liar.gossip.reception._answer

    def lie(message: Message) -> tuple[bytes, ...]:
        if message.kind == Kind.HEAD:
            return bytes(32), (1 << 200).to_bytes(32, "big")
        return answer(message)

    monkeypatch.setattr(liar.gossip.reception, "_answer", lie)
    victim = hosted.start(KEYS[0], peers=(liar.server.url,), mines=False)
    wait_for(lambda: is_cut_off(victim), "the liar to be cut off")
    assert victim.chain.head.header.number == 30
    assert stored(victim) == 31
    assert_others_are_served(victim)


class TellsItsHead:
    """A peer that has nothing more than its head."""

    account = COINBASES[1]

    def __init__(self, block_hash: bytes, score: int) -> None:
        self._tip = block_hash, score.to_bytes(32, "big")

    def ask(self, kind: Kind, items: tuple[bytes, ...] = (), told: tuple[str, ...] = ()) -> tuple[bytes, ...]:
        return self._tip if kind == Kind.HEAD else ()


def test_a_block_that_is_being_kept_makes_no_liar_of_the_peer_that_has_it_too(node: Node) -> None:
    """Blocks reach the file a moment before the head moves; a busy node looks at its peers just then."""
    before = node.chain.head
    extend(node.chain)
    head = node.chain.head
    follow = node.gossip._catch_up._follow
    node.chain.head = before
    follow(TellsItsHead(head.header.hash, head.score))
    with pytest.raises(ChainError, match="cannot show it"):
        follow(TellsItsHead(head.header.hash, head.score + 1))


def test_a_peer_that_serves_false_blocks_on_true_headers_is_cut_off(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    liar = hosted.start(ATTACKER, mines=False, name="liar")
    for nonce in range(5):
        extend(liar.chain, [payment(0, nonce)], index=2)
    answer = liar.gossip.reception._answer

    def lie(message: Message) -> tuple[bytes, ...]:
        items = answer(message)
        if message.kind == Kind.BLOCKS and len(items) > 2:
            return *items[:2], Block(Block.decode(items[2]).header, ()).encoded
        return items

    monkeypatch.setattr(liar.gossip.reception, "_answer", lie)
    victim = hosted.start(KEYS[0], peers=(liar.server.url,), mines=False)
    wait_for(lambda: is_cut_off(victim), "the liar to be cut off")
    assert victim.chain.head.header.number == 2  # what was true of it stays: a valid prefix


def test_a_peer_that_serves_blocks_in_another_members_name_is_cut_off(
    hosted: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The liar's chain is the heavier one, and all its work is true; only the names on it are not its own."""
    liar = hosted.start(ATTACKER, mines=False, name="liar")
    with monkeypatch.context() as lenient:
        lenient.setattr(rules_module, "check_signature", lambda header, network: None)
        for _ in range(5):
            draft = liar.chain.draft([], COINBASES[1])
            header = work(sign_as(liar.chain, draft.block.header, ATTACKER))
            assert liar.chain.append(replace(draft, block=Block(header, ())), header.nonce) is not None
    victim = hosted.start(KEYS[0], peers=(liar.server.url,), mines=False)
    wait_for(lambda: is_cut_off(victim), "the liar to be cut off")
    assert stored(victim) == 1
    assert_others_are_served(victim)


# Floods


def test_a_flood_of_messages_is_cut_off(node: Node, attacker: PeerConnection) -> None:
    sent = 0
    with pytest.raises((PeerRefusedError, LedgerUnreachableError)):
        while True:
            attacker.ask(Kind.HEAD)
            sent += 1
    assert sent >= MESSAGE_BURST - 10
    for _ in range(10 * SLIPS_PER_MINUTE):
        try:
            attacker.ask(Kind.HEAD)
        except (PeerRefusedError, LedgerUnreachableError):
            if is_cut_off(node):
                break
    assert is_cut_off(node)
    assert_others_are_served(node)


def test_a_flood_of_strangers_leaves_members_their_allowance(node: Node) -> None:
    refused = 0
    for _ in range(MESSAGE_BURST):
        stranger = PeerConnection(node.server.url, guest(node))
        try:
            stranger.ask(Kind.HEAD)
        except PeerRefusedError as error:
            assert "TOO_FAST" in str(error)
            refused += 1
            if refused == 20:
                break
        finally:
            stranger.close()
    assert refused == 20
    assert_others_are_served(node)


def test_a_flood_of_connections_shuts_out_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 16)
    parts = urlsplit(node.server.url)
    honest = connect(node.server.url, HONEST, node.chain.genesis)
    honest.ask(Kind.HEAD)
    socket_of_honest = honest._http.sock
    idle = [socket.create_connection((parts.hostname, parts.port)) for _ in range(40)]
    wait_for(lambda: len(node.server._server.uses) <= 16, "the idle ones to be dropped")
    honest.ask(Kind.HEAD)
    assert honest._http.sock is socket_of_honest  # the connection that is of use was not dropped
    assert_others_are_served(node)
    for connection in idle:
        connection.close()


def test_a_drip_of_bytes_holds_no_thread(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.3)
    parts = urlsplit(node.server.url)
    with socket.create_connection((parts.hostname, parts.port)) as drip:
        head = f"POST {PEER_PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: 1000\r\n\r\n"
        drip.sendall(head.encode() + b"\0")
        drip.settimeout(60)
        assert drip.recv(100) == b""  # the node hung up
    wait_for(lambda: not node.server._server.uses, "the thread to end")
    assert_others_are_served(node)


# Replay and false names


def recorded(node: Node, attacker: PeerConnection, kind: Kind, items: tuple[bytes, ...]) -> bytes:
    """A message of the honest member, as somebody on the wire sees it."""
    honest = connect(node.server.url, HONEST, node.chain.genesis)
    honest.ask(Kind.HEAD)
    return honest._speaker.seal(kind, honest.account, honest._session, items)


def test_a_recorded_message_is_taken_once(node: Node, attacker: PeerConnection) -> None:
    message = recorded(node, attacker, Kind.NEW_TRANSACTIONS, (payment(3, 0).raw,))
    assert post(node, message)[0] == 200
    assert len(node.pool) == 1
    node.pool.drop((payment(3, 0),))
    for _ in range(5):
        post(node, message)
    assert len(node.pool) == 0
    assert_others_are_served(node)


def test_a_recorded_message_is_void_at_another_node_and_after_a_restart(
    hosted: Hosted, node: Node, attacker: PeerConnection
) -> None:
    message = recorded(node, attacker, Kind.NEW_TRANSACTIONS, (payment(3, 0).raw,))
    other = hosted.start(KEYS[3], mines=False)
    post(other, message)
    assert len(other.pool) == 0
    port = urlsplit(node.server.url).port
    assert port is not None
    hosted.stop(node)
    again = hosted.start(KEYS[0], port=port, mines=False)
    post(again, message)
    assert len(again.pool) == 0
    assert_others_are_served(again)


def test_a_message_for_another_chain_is_void(hosted: Hosted, node: Node) -> None:
    elsewhere = connect(node.server.url, HONEST, genesis(chain_id=2408))
    with pytest.raises(LedgerUnreachableError):
        elsewhere.ask(Kind.HEAD)
    assert_others_are_served(node)


def test_a_message_of_another_hour_is_void(node: Node) -> None:
    late = connect(node.server.url, HONEST, node.chain.genesis)
    late.ask(Kind.HEAD)
    items = (payment(3, 0).raw,)
    fresh = Message.open(
        node.chain.genesis.digest(),
        late._speaker.seal(Kind.NEW_TRANSACTIONS, late.account, late._session, items),
    )
    for hours in (-1, 1):
        stale = replace(fresh, stamp_us=fresh.stamp_us + hours * 3_600_000_000)
        answer = post(node, stale.seal(node.chain.genesis.digest(), late._speaker.key))
        assert b"old or repeated stamp" in answer[1]
    assert len(node.pool) == 0
    assert_others_are_served(node)


def test_nobody_speaks_in_a_members_name(node: Node, attacker: PeerConnection) -> None:
    """A forged message must not get the member cut off either."""
    attacker.ask(Kind.HEAD)
    connect(node.server.url, HONEST, node.chain.genesis).ask(Kind.HEAD)
    key = attacker._speaker.key
    false = Message(
        Kind.NEW_BLOCKS,
        COINBASES[1],
        attacker.account,
        attacker._session,
        time.time_ns() // 1000,
        (),
        (b"x",),
    )
    network = node.chain.genesis.digest()
    sealed_message = false.seal(network, key)
    reply = Reply.open(network, sealed_message, post(node, sealed_message)[1])
    assert reply.verdict == Verdict.GREET_AGAIN
    stolen = replace(
        false, kind=Kind.HELLO, items=(os.urandom(16), attacker._speaker.delegation)
    )  # a greeting in another's name, with a delegation of the attacker's own
    assert post(node, stolen.seal(network, key)) == (403, b"")
    assert_others_are_served(node)


def test_a_delegation_is_of_one_chain(node: Node) -> None:
    network = node.chain.genesis.digest()
    elsewhere = credentials(HONEST, genesis(chain_id=2408))
    speaker = Speaker(elsewhere, network, "http://x")
    assert speaker.account != COINBASES[1]
    speaker.account = COINBASES[1]
    assert post(node, speaker.seal(Kind.HELLO, items=(os.urandom(16), speaker.delegation))) == (403, b"")


def test_an_old_greeting_does_not_bring_an_old_key_back(node: Node) -> None:
    old = greeting(node)
    assert post(node, old)[0] == 200
    honest = connect(node.server.url, HONEST, node.chain.genesis)
    honest.ask(Kind.HEAD)
    delegate = node.gossip.reception._delegates[COINBASES[1]]
    assert post(node, old) == (403, b"")
    assert node.gossip.reception._delegates[COINBASES[1]] == delegate


def test_a_stranger_may_read_and_not_announce(node: Node) -> None:
    stranger = connect(node.server.url, OUTSIDER, node.chain.genesis)
    assert len(stranger.ask(Kind.HEAD)) == 2
    with pytest.raises(PeerRefusedError, match="NOT_ADMITTED"):
        stranger.ask(Kind.NEW_TRANSACTIONS, (payment(3, 0).raw,))
    assert len(node.pool) == 0
    assert_others_are_served(node)


def test_a_web_page_cannot_post_to_the_peers_door(node: Node) -> None:
    assert post(node, greeting(node), Origin="http://evil.example")[0] == 403
    assert post(node, greeting(node), **{"Content-Type": "text/plain"})[0] == 403
    assert post(node, greeting(node))[0] == 200


def test_an_impostor_at_a_peers_address_has_no_members_name(node: Node) -> None:
    """Another program takes the port of a peer that was greeted before; it has no member's delegation."""
    peer = connect(node.server.url, HONEST, node.chain.genesis)
    peer.ask(Kind.HEAD)
    assert peer.account == COINBASES[0]
    node.gossip.reception._speaker.key = NodeKey.generate()
    with pytest.raises(PeerRefusedError):
        peer.ask(Kind.HEAD)
    assert peer.account not in COINBASES
