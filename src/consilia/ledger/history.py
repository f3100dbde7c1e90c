"""What happened on a chain, for readers: blocks, transactions and events, whatever contracts a deployment names.

Everything comes through JSON-RPC, so it is the same for a chain file, the embedded chain's node and any other EVM
node. Calls and events are read by the contracts' own tables (their ABI): a new contract or event appears by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from consilia.errors import InputError, LedgerError, RpcError
from consilia.ledger.contracts import Argument, ContractAbi, Deployment, contract_abi
from consilia.ledger.events import EVENT_TYPES, Event, decode_event
from consilia.ledger.rpc import Rpc, data_bytes, quantity
from consilia.values import Address, Digest

TASK_ARGUMENTS = {"training": "task_id", "escrow": "deal_id"}
"""What a task's number is called in the events of these contracts; the escrow's deals are tasks."""


@dataclass(frozen=True)
class Logged:
    """An event as its contract logged it; `event` is "" where the contract's table does not have it."""

    contract: str
    event: str
    arguments: tuple[Argument, ...]
    block_number: int
    log_index: int
    transaction_hash: Digest
    raw: dict[str, Any] = field(repr=False, compare=False)

    def argument(self, name: str) -> Any:
        """A value by its name; None if the event has none of this name."""
        return next((argument.value for argument in self.arguments if argument.name == name), None)

    @property
    def task_id(self) -> int | None:
        """The task that it belongs to, if to one."""
        number = self.argument(TASK_ARGUMENTS.get(self.contract, "task_id"))
        return number if isinstance(number, int) else None

    def typed(self) -> Event | None:
        """The same as the protocol's own value; None for an event that the protocol does not follow."""
        if (self.contract, self.event) not in EVENT_TYPES:
            return None
        return decode_event(self.contract, self.raw)


@dataclass(frozen=True)
class Transaction:
    """A transaction in a block; `contract` and `function` are "" where it calls none of the deployment's."""

    hash: Digest
    block_number: int
    position: int
    sender: Address
    to: Address | None
    nonce: int
    value_wei: int
    data: bytes = field(repr=False)
    contract: str
    function: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True)
class Receipt:
    """What a transaction did: whether it succeeded, what it cost, what it logged, what contract it made."""

    succeeded: bool
    gas_used: int
    gas_price_wei: int
    created: Address | None
    logs: tuple[Logged, ...]


@dataclass(frozen=True)
class Block:
    """A block and its transactions; `timestamp` in Unix seconds."""

    number: int
    hash: Digest
    parent_hash: Digest
    miner: Address
    timestamp: int
    difficulty: int
    gas_used: int
    size_bytes: int
    transactions: tuple[Transaction, ...]


class History:
    """A deployment's past, read through one node or one chain file; what was read once is kept."""

    def __init__(self, rpc: Rpc, deployment: Deployment) -> None:
        self.rpc = rpc
        self.deployment = deployment
        self.contracts = {
            address: abi for name, address in deployment.contracts.items() if (abi := _abi(name)) is not None
        }
        self._blocks: dict[int, Block] = {}

    def check_chain(self) -> None:
        """See that the deployment is on this chain.

        Raises:
            LedgerError: it is another chain, or there is no contract where the deployment says.
        """
        chain_id = quantity(self.rpc.call("eth_chainId"))
        if chain_id != self.deployment.chain_id:
            raise LedgerError(
                f"expected chain {self.deployment.chain_id} at {self.rpc.url}, found {chain_id}: "
                "take the deployment file of this chain"
            )
        for address, abi in self.contracts.items():
            if not self.code(address):
                raise LedgerError(
                    f"expected the {abi.name} contract at {address}, found no code at {self.rpc.url}: "
                    "take the deployment file of this chain, or wait until its blocks are here"
                )

    def head(self) -> int:
        """The number of the newest block."""
        return quantity(self.rpc.call("eth_blockNumber"))

    def code(self, address: Address) -> bytes:
        """A contract's code at the head; empty if there is none."""
        return data_bytes(self.rpc.call("eth_getCode", address, "latest"))

    def events(self, first: int, last: int, task_id: int | None = None) -> list[Logged]:
        """What the contracts logged from block `first` to `last` (inclusive), in its order; or of one task."""
        logs = self._logs(max(first, self.deployment.block), last)
        events = sorted((self._logged(log) for log in logs), key=lambda e: (e.block_number, e.log_index))
        return [event for event in events if task_id is None or event.task_id == task_id]

    def block(self, number: int) -> Block:
        """A block by number.

        Raises:
            LedgerError: the chain is shorter.
        """
        if number not in self._blocks:
            found = self.rpc.call("eth_getBlockByNumber", hex(number), True)
            if found is None:
                raise LedgerError(f"expected block {number} at {self.rpc.url}, but its chain is shorter")
            self._blocks[number] = self._block(found)
        return self._blocks[number]

    def blocks(self, first: int, last: int) -> Iterator[Block]:
        """All blocks from `first` to `last`, inclusive."""
        return (self.block(number) for number in range(first, last + 1))

    def transaction(self, transaction_hash: Digest) -> Transaction | None:
        """A transaction in a block; None if it is in none."""
        found = self.rpc.call("eth_getTransactionByHash", f"0x{transaction_hash}")
        if found is None or found.get("blockNumber") is None:
            return None
        return self._transaction(found)

    def is_waiting(self, transaction_hash: Digest) -> bool:
        """Whether the node knows a transaction that is in no block yet."""
        found = self.rpc.call("eth_getTransactionByHash", f"0x{transaction_hash}")
        return found is not None and found.get("blockNumber") is None

    def receipt(self, transaction: Transaction) -> Receipt:
        """What a transaction did."""
        found = self.rpc.call("eth_getTransactionReceipt", f"0x{transaction.hash}")
        if found is None:
            raise LedgerError(
                f"expected the receipt of 0x{transaction.hash}: the chain has changed, ask again"
            )
        created = found.get("contractAddress")
        return Receipt(
            succeeded=quantity(found["status"]) == 1,
            gas_used=quantity(found["gasUsed"]),
            gas_price_wei=quantity(found.get("effectiveGasPrice")),
            created=None if created is None else to_checksum_address(created),
            logs=tuple(
                self._logged(log)
                for log in found["logs"]
                if to_checksum_address(log["address"]) in self.contracts
            ),
        )

    # How

    def _logs(self, first: int, last: int) -> list[dict[str, Any]]:
        if first > last:
            return []
        query = {"fromBlock": hex(first), "toBlock": hex(last), "address": list(self.contracts)}
        try:
            found: list[dict[str, Any]] = self.rpc.call("eth_getLogs", query)
        except RpcError:  # nodes limit the blocks or the logs of one answer, each in its own words
            if first == last:
                raise
            middle = (first + last) // 2
            return self._logs(first, middle) + self._logs(middle + 1, last)
        return found

    def _logged(self, log: dict[str, Any]) -> Logged:
        abi = self.contracts[to_checksum_address(log["address"])]
        read = abi.read_event([data_bytes(topic) for topic in log["topics"]], data_bytes(log["data"]))
        event, arguments = read or ("", ())
        return Logged(
            contract=abi.name,
            event=event,
            arguments=arguments,
            block_number=quantity(log["blockNumber"]),
            log_index=quantity(log["logIndex"]),
            transaction_hash=Digest(data_bytes(log["transactionHash"])),
            raw=log,
        )

    def _block(self, found: dict[str, Any]) -> Block:
        return Block(
            number=quantity(found["number"]),
            hash=Digest(data_bytes(found["hash"])),
            parent_hash=Digest(data_bytes(found["parentHash"])),
            miner=to_checksum_address(found["miner"]),
            timestamp=quantity(found["timestamp"]),
            difficulty=quantity(found.get("difficulty")),
            gas_used=quantity(found["gasUsed"]),
            size_bytes=quantity(found.get("size")),
            transactions=tuple(self._transaction(transaction) for transaction in found["transactions"]),
        )

    def _transaction(self, found: dict[str, Any]) -> Transaction:
        to = None if found.get("to") is None else to_checksum_address(found["to"])
        data = data_bytes(found["input"])
        abi = None if to is None else self.contracts.get(to)
        function, arguments = (None if abi is None else abi.read_call(data)) or ("", ())
        return Transaction(
            hash=Digest(data_bytes(found["hash"])),
            block_number=quantity(found["blockNumber"]),
            position=quantity(found["transactionIndex"]),
            sender=to_checksum_address(found["from"]),
            to=to,
            nonce=quantity(found["nonce"]),
            value_wei=quantity(found["value"]),
            data=data,
            contract="" if abi is None else abi.name,
            function=function,
            arguments=arguments,
        )


def find_transaction(history: History, name: str, events: Sequence[Logged]) -> Transaction:
    """A transaction by its hash, or by the first digits of one that made an event.

    Raises:
        InputError: it is no hash, or no transaction of these, or of several.
    """
    digits = name.lower().removeprefix("0x")
    if not 4 <= len(digits) <= 64 or set(digits) - set("0123456789abcdef"):
        raise InputError(f"expected a transaction hash, or at least 4 digits of one, got {name!r}")
    hashes = {event.transaction_hash for event in events if event.transaction_hash.hex().startswith(digits)}
    if len(digits) == 64:
        hashes = {Digest.from_hex(digits)}
    if len(hashes) > 1:
        raise InputError(f"{len(hashes)} transactions begin with {name}: give more digits")
    for transaction_hash in hashes:
        found = history.transaction(transaction_hash)
        if found is not None:
            return found
        if history.is_waiting(transaction_hash):
            raise InputError(f"transaction {name} waits in the node's pool and is in no block yet: ask again")
    raise InputError(
        f"there is no transaction {name} at {history.rpc.url}; one that made no event is found by its whole hash"
    )


def code_hash(code: bytes) -> Digest:
    """Keccak-256 of a contract's code, as EXTCODEHASH gives it (EIP-1052)."""
    return Digest(keccak(code))


def _abi(name: str) -> ContractAbi | None:
    try:
        return contract_abi(name)
    except FileNotFoundError:  # the deployment names an account that is no contract of ours
        return None
