"""Opening a chain file that may be torn: what is whole of it stays, and the peers have the rest.

SQLite makes every block all or nothing, also across kill -9 and a full disk. This is for what lies outside its
promise: a file cut short, pages overwritten, a disk that lost what it had acknowledged. Nothing of a damaged
file is believed: its blocks are checked and executed anew, one after the other, up to the first bad one.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from consilia.errors import ChainError, NodeStorageError, TransactionRefusedError
from consilia.ledger.embedded.block import Block, Header, decode_list
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.evm import list_root
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.transaction import decode_transaction

TIP_BLOCKS = 16  # the newest blocks, whose bytes are looked at whenever a node starts
_SUFFIXES = ("", "-wal", "-shm")
_LOG = logging.getLogger(__name__)


def open_chain(path: Path, genesis: Genesis) -> Chain:
    """Open the chain file of a node, or what can be saved of it; a damaged file stays beside it.

    Raises:
        HomeError: the file belongs to another genesis, or the disk takes nothing.
    """
    if path.exists() and not _has_whole_pages(path):
        _salvage(path, genesis)
    try:
        chain = Chain(path, genesis)
    except (ChainError, NodeStorageError, sqlite3.DatabaseError) as error:
        _LOG.warning("the chain file does not open: %s", error)
        _salvage(path, genesis)
        return Chain(path, genesis)
    if _has_whole_tip(chain):
        return chain
    chain.close()
    _salvage(path, genesis)
    return Chain(path, genesis)


def _has_whole_pages(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path)) as sql:
            return bool(sql.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        _LOG.warning("SQLite finds %s damaged: %s", path, error)
        return False


def _has_whole_tip(chain: Chain) -> bool:
    """Whether the newest blocks are what their hashes say, linked, and with a state."""
    try:
        head = chain.head.header
        for number in range(head.number, max(head.number - TIP_BLOCKS, 0), -1):
            stored = chain.block_by_number(number)
            parent_hash = chain.file.canonical_hash(number - 1)
            if stored is None or stored.block.header.hash != chain.file.canonical_hash(number):
                return False
            header = stored.block.header
            if header.parent_hash != parent_hash or (
                header.transactions_root != list_root(stored.block.transactions)
            ):
                return False
        return chain.file.read_node(head.state_root) is not None
    except (ChainError, NodeStorageError) as error:
        _LOG.warning("the newest blocks are damaged: %s", error)
        return False


def _salvage(path: Path, genesis: Genesis) -> None:
    aside = _set_aside(path)
    chain = Chain(path, genesis)
    with closing(sqlite3.connect(aside)) as damaged, closing(chain):
        for raw, arrived_ms in _readable_pending(damaged):  # first: nobody else may have them
            chain.file.add_pending(decode_transaction(raw).hash, raw, arrived_ms)
        try:
            for block in _readable_blocks(damaged):
                chain.import_block(block)
        except ChainError as error:
            _LOG.warning("the first damaged block: %s", error)
        number = chain.head.header.number
    _LOG.warning("%s was damaged and is now %s; %d blocks of it were whole", path, aside.name, number)


def _set_aside(path: Path) -> Path:
    count = 1
    while (aside := path.with_name(f"{path.name}.damaged-{count}")).exists():
        count += 1
    for suffix in _SUFFIXES:
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _readable_blocks(sql: sqlite3.Connection) -> Iterator[Block]:
    number = 1
    while True:
        try:
            row = sql.execute(
                "SELECT header, transactions FROM canonical JOIN blocks ON blocks.hash = canonical.hash "
                "WHERE canonical.number = ?",
                (number,),
            ).fetchone()
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            return
        if row is None or not all(isinstance(item, bytes) for item in row):
            return
        yield Block(Header.decode(row[0]), decode_list(row[1]))
        number += 1


def _readable_pending(sql: sqlite3.Connection) -> Iterator[tuple[bytes, int]]:
    try:
        for raw, arrived_ms in sql.execute("SELECT raw, arrived_ms FROM pending ORDER BY arrival"):
            if isinstance(raw, bytes) and isinstance(arrived_ms, int) and _is_transaction(raw):
                yield raw, arrived_ms
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return


def _is_transaction(raw: bytes) -> bool:
    try:
        decode_transaction(raw)
    except TransactionRefusedError:
        return False
    return True
