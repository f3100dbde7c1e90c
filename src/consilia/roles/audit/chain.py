"""The audit's first part: every hospital's chain file, replayed from genesis and compared with the others'."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

from consilia.crypto.keys import read_address
from consilia.errors import AuditError, ConsiliaError
from consilia.ledger.embedded.chainfile import ChainFile
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.replay import ReplayReport, open_readonly_provider, replay
from consilia.ledger.embedded.transaction import decode_transaction
from consilia.ledger.rpc import Rpc, data_bytes
from consilia.roles.progress import Report
from consilia.settings import HospitalSettings
from consilia.settings import load as load_settings
from consilia.settings.network import Network
from consilia.settings.sections import KeysSection
from consilia.values import Address, Digest

CHAIN_FILE = Path("node/chain.sqlite")
FORK_BLOCKS = 6
"""Nodes that were stopped may differ in this many newest blocks at most."""


@dataclass(frozen=True)
class _Copy:
    """One hospital's copy of the chain."""

    home: Path
    height: int

    @property
    def file(self) -> Path:
        return self.home / CHAIN_FILE

    @property
    def name(self) -> str:
        return self.home.name


def replay_all(network: Network, report: Report) -> tuple[ReplayReport, Path]:
    """Replay every hospital's chain file from genesis; the one with most work is the chain, all others lead to it.

    Raises:
        AuditError: a file is damaged or breaks a rule, or two files tell different histories.
    """
    assert network.genesis is not None, "only the embedded chain can be replayed"
    genesis = Genesis.load(network.genesis)
    files = [hospital / CHAIN_FILE for hospital in network.hospitals]
    with _workers(len(files)) as pool:
        futures = [pool.submit(replay, file, genesis) for file in files]
        replayed = []
        for hospital, future in zip(network.hospitals, futures, strict=True):
            try:
                replayed.append(future.result())
            except ConsiliaError as error:
                raise AuditError(f"{hospital.name}: {error}") from error
            report("chain replayed", file=hospital.name, height=replayed[-1].height)
    copies = [_Copy(home, item.height) for home, item in zip(network.hospitals, replayed, strict=True)]
    best = max(range(len(copies)), key=lambda index: replayed[index].score)
    for copy in copies:
        _compare(genesis, copies[best], copy, report)
    return replayed[best], copies[best].file


def _workers(files: int) -> Executor:
    """Two cores for several files; for one, a fresh process would take longer to start than most chains to replay."""
    if files == 1:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


def _compare(genesis: Genesis, best: _Copy, other: _Copy, report: Report) -> None:
    """Compare two chain files up to the blocks on which nodes that were stopped may still differ.

    More work alone must not decide here: one hospital can rewrite its own file at leisure, with valid seals.
    """
    with ExitStack() as stack:
        chains = [
            Rpc(copy.name, stack.enter_context(closing(open_readonly_provider(copy.file, genesis))))
            for copy in (best, other)
        ]
        last = max(0, min(best.height, other.height) - FORK_BLOCKS)
        if _hash(chains[0], last) != _hash(chains[1], last):
            first = next(n for n in range(last + 1) if _hash(chains[0], n) != _hash(chains[1], n))
            raise AuditError(f"{best.name} and {other.name} tell different histories from block {first} on")
        _OwnDeeds(other, chains[1]).check(chains[0], range(last + 1, best.height + 1), report)


class _OwnDeeds:
    """What a hospital did itself, its node wrote down: in a block, or waiting for one.

    A node keeps a transaction on disk from the moment it takes it until the block that holds it. One that was
    stopped before it heard of that block still has it waiting; one that has it nowhere lost a part of its file.
    """

    def __init__(self, copy: _Copy, chain: Rpc) -> None:
        self._copy = copy
        self._chain = chain
        settings = load_settings(HospitalSettings, copy.home)
        self._account = account_of(copy.home, settings.keys) or ""
        self._through_own_node = (
            settings.node is not None and urlsplit(settings.ledger.url).port == settings.node.port
        )
        self._waiting = {deed for deed, sender in _waiting(copy.file) if sender == self._account.lower()}

    def check(self, best: Rpc, numbers: range, report: Report) -> None:
        """Look for its deeds in the blocks of the best chain that its own copy may lack.

        Raises:
            AuditError: a deed that is in the best chain was in this copy and no longer is.
        """
        for number in numbers:
            for deed in _deeds(best, number, self._account):
                if not _holds(self._chain, deed):
                    self._weigh(number, deed, report)
        for deed in sorted(self._waiting):
            if not _holds(best, deed):
                report("own deed not yet mined", file=self._copy.name, transaction=f"0x{deed}")

    def _weigh(self, number: int, deed: Digest, report: Report) -> None:
        if deed in self._waiting or not self._through_own_node:
            report(
                "own deed found in another's chain",
                file=self._copy.name,
                transaction=f"0x{deed}",
                block=number,
            )
            return
        raise AuditError(
            f"{self._copy.name}: its chain ends at block {self._copy.height}, but block {number} holds transaction "
            f"0x{deed} of its own, which its node took and has neither in a block nor waiting: the file was cut "
            "back, or its machine lost power; start the node, let it catch up, and audit again"
        )


def account_of(home: Path, keys: KeysSection) -> Address | None:
    """Whose home it is, without a password: by its key file, or for a token by what its node was told."""
    if keys.signer == "file":
        return read_address(keys.account)
    file = home / "node" / "node.json"
    return NodeSettings.load(file).coinbase if file.exists() else None


def _hash(chain: Rpc, number: int) -> str:
    return str(chain.call("eth_getBlockByNumber", hex(number), False)["hash"])


def _holds(chain: Rpc, deed: Digest) -> bool:
    return chain.call("eth_getTransactionReceipt", f"0x{deed}") is not None


def _deeds(chain: Rpc, number: int, account: Address) -> Iterator[Digest]:
    for transaction in chain.call("eth_getBlockByNumber", hex(number), True)["transactions"]:
        if transaction["from"].lower() == account.lower():
            yield Digest(data_bytes(transaction["hash"]))


def _waiting(file: Path) -> list[tuple[Digest, str]]:
    """The transactions that a node still has to bring into a block: their hashes and senders."""
    with closing(ChainFile(file, readonly=True)) as opened:
        waiting = [decode_transaction(item.raw) for item in opened.pending()]
    return [(Digest(item.hash), f"0x{item.sender.hex()}") for item in waiting]
