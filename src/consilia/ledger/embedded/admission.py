"""Who may seal a block: the hospitals in good standing by the registry, as of the parent block.

The genesis names where the registry will be. Until a contract is there, the genesis' list of miners holds; from the
next block on the contract's word. So a block that carries a decision is sealed by the old rule, and its child by the
new one, the same for every node that has the parent (docs/adr/0010-the-registry-admits-miners.md).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from eth_utils.address import to_canonical_address

from consilia.errors import LedgerError
from consilia.ledger.contracts import contract_abi
from consilia.ledger.embedded.block import Header
from consilia.ledger.embedded.evm import Call, ReadNode, call, state_at, storage_root
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.views import Member
from consilia.values import Role

PAGE = 64  # as many as registry.vy gives at once
MAX_PAGES = 64  # it lists no more than 4096
PAGE_GAS = 30_000_000
KEPT_STATES = 256
KEPT_LISTS = 32


@dataclass(frozen=True)
class _Hospital:
    account: bytes
    member: Member


class Admission:
    """Answers for one chain; safe for threads. A list is read once for each state of the registry's storage."""

    def __init__(self, genesis: Genesis, read_node: ReadNode) -> None:
        self._genesis = genesis
        self._read_node = read_node
        self._founders = tuple(bytes.fromhex(miner[2:]) for miner in genesis.miners)
        self._registry = b"" if genesis.registry is None else to_canonical_address(genesis.registry)
        self._lock = threading.Lock()
        self._roots: OrderedDict[bytes, bytes | None] = (
            OrderedDict()
        )  # state root -> the registry's storage root
        self._lists: OrderedDict[bytes, tuple[_Hospital, ...] | None] = OrderedDict()

    def may_mine(self, account: bytes, parent: Header) -> bool:
        """Whether an account (20 bytes) may seal a child of `parent`, a stored block."""
        return account in self.miners_at(parent)

    def miners_at(self, parent: Header) -> tuple[bytes, ...]:
        """The accounts that may seal a child of `parent`, in the order of their admission.

        Where no hospital is in good standing any more, those whose validity alone has lapsed may go on: otherwise
        certificates that end on one day would stop the chain that has to carry their renewal.
        """
        hospitals = self._hospitals(parent)
        if hospitals is None:
            return self._founders
        now = parent.timestamp
        standing = tuple(item.account for item in hospitals if item.member.in_good_standing(now))
        return standing or tuple(item.account for item in hospitals if item.member.is_trusted(now))

    def _hospitals(self, parent: Header) -> tuple[_Hospital, ...] | None:
        """The registry's hospitals; None while there is no registry."""
        if not self._registry:
            return None
        with self._lock:
            root = self._storage_root(parent)
            if root is None:
                return None
            if root not in self._lists:
                self._lists[root] = self._read(parent)
                while len(self._lists) > KEPT_LISTS:
                    self._lists.popitem(last=False)
            return self._lists[root]

    def _storage_root(self, parent: Header) -> bytes | None:
        key = parent.state_root
        if key not in self._roots:
            state = state_at(self._genesis, parent, self._read_node)
            self._roots[key] = storage_root(state, self._registry)
            while len(self._roots) > KEPT_STATES:
                self._roots.popitem(last=False)
        return self._roots[key]

    def _read(self, parent: Header) -> tuple[_Hospital, ...] | None:
        try:
            members = self._members(parent)
        except (LedgerError, ValueError):
            # The deployer put something else there. It must not be able to stop the chain by that.
            return None
        return tuple(
            _Hospital(to_canonical_address(member.account), member)
            for member in members
            if member.role is Role.HOSPITAL
        )

    def _members(self, parent: Header) -> list[Member]:
        abi = contract_abi("registry")
        members: list[Member] = []
        for _ in range(MAX_PAGES):
            message = Call(
                sender=bytes(20),
                to=self._registry,
                data=abi.call("members", len(members), PAGE),
                value=0,
                gas=PAGE_GAS,
            )
            output = call(self._genesis, parent, parent.state_root, self._read_node, message).output
            page = abi.result("members", output)
            members += [Member.of(record) for record in page]
            if len(page) < PAGE:
                break
        return members
