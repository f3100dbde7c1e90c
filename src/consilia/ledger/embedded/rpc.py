"""The JSON-RPC methods of a node that read its chain and take transactions.

A method takes the decoded parameters and returns JSON. The methods between nodes are in gossip.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from consilia.errors import ConsiliaError, RpcError, TransactionRefusedError
from consilia.ledger.embedded.block import Header
from consilia.ledger.embedded.bloom import may_contain
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.chainfile import StoredBlock
from consilia.ledger.embedded.evm import Call, CallResult, account_state, call, state_storage
from consilia.ledger.embedded.parameters import (
    INVALID_PARAMETERS,
    LogFilter,
    invalid,
    read_address,
    read_data,
    read_flag,
    read_log_filter,
    read_object,
    read_quantity,
    read_tag,
)
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.rules import next_base_fee
from consilia.ledger.embedded.transaction import decode_transaction
from consilia.ledger.embedded.views import (
    JsonObject,
    block_view,
    data,
    quantity,
    receipt_views,
    transaction_view,
)
from consilia.values import Json

Method = Callable[..., Json]
CLIENT_VERSION = "consilia-embedded/0.1"
REFUSED = -32000
MAX_WAIT_SECONDS = 60.0
MAX_LOGS = 10_000
TIP_WEI = 1
GAS_HEADROOM_PERCENT = 125
_CALL_KEYS = frozenset(
    (
        "from",
        "to",
        "gas",
        "gasPrice",
        "maxFeePerGas",
        "maxPriorityFeePerGas",
        "value",
        "data",
        "input",
        "nonce",
    )
) | {"chainId", "type", "accessList"}


class ChainMethods:
    """eth_*, net_* and web3_* over a chain; without a pool it is read-only."""

    def __init__(self, chain: Chain, pool: Pool | None) -> None:
        self._chain = chain
        self._pool = pool

    def table(self) -> dict[str, Method]:
        """The methods by name."""
        return {
            "web3_clientVersion": lambda: CLIENT_VERSION,
            "net_version": lambda: str(self._chain.genesis.chain_id),
            "net_listening": lambda: True,
            "eth_chainId": lambda: quantity(self._chain.genesis.chain_id),
            "eth_syncing": lambda: False,
            "eth_accounts": lambda: [],
            "eth_blockNumber": lambda: quantity(self._chain.head.header.number),
            "eth_gasPrice": self.gas_price,
            "eth_maxPriorityFeePerGas": lambda: quantity(TIP_WEI),
            "eth_feeHistory": self.fee_history,
            "eth_getBalance": self.balance,
            "eth_getCode": self.code,
            "eth_getStorageAt": self.storage,
            "eth_getTransactionCount": self.transaction_count,
            "eth_getBlockByNumber": self.block_by_number,
            "eth_getBlockByHash": self.block_by_hash,
            "eth_getTransactionByHash": self.transaction,
            "eth_getTransactionReceipt": self.receipt,
            "eth_getLogs": self.logs,
            "eth_call": self.call,
            "eth_estimateGas": self.estimate_gas,
            "eth_sendRawTransaction": self.send_raw_transaction,
            "consilia_waitForBlock": self.wait_for_block,
        }

    # Fees

    def gas_price(self) -> Json:
        return quantity(2 * next_base_fee(self._chain.head.header) + TIP_WEI)

    def fee_history(self, count: Json, newest: Json, percentiles: Json = None) -> Json:
        blocks = count if isinstance(count, int) else read_quantity(count, "a block count")
        last = self._header(newest)
        first = max(last.number - min(max(blocks, 1), 1024) + 1, 0)
        headers = [self._canonical(number) for number in range(first, last.number + 1)]
        fees: list[Json] = [quantity(header.base_fee_wei) for header in headers]
        history: JsonObject = {
            "oldestBlock": quantity(first),
            "baseFeePerGas": [*fees, quantity(next_base_fee(last))],
            "gasUsedRatio": [header.gas_used / header.gas_limit for header in headers],
        }
        if isinstance(percentiles, list):
            history["reward"] = [[quantity(TIP_WEI)] * len(percentiles) for _ in headers]
        return history

    # Accounts

    def balance(self, account: Json, tag: Json = None) -> Json:
        state = self._chain.state(self._header(tag))
        return quantity(account_state(state, read_address(account)).balance_wei)

    def code(self, account: Json, tag: Json = None) -> Json:
        return data(self._chain.state(self._header(tag)).get_code(read_address(account)))

    def storage(self, account: Json, slot: Json, tag: Json = None) -> Json:
        at = int.from_bytes(read_data(slot, "a slot", 32), "big") if _is_word(slot) else _slot(slot)
        value = state_storage(self._chain.state(self._header(tag)), read_address(account), at)
        return data(value.to_bytes(32, "big"))

    def transaction_count(self, account: Json, tag: Json = None) -> Json:
        sender = read_address(account)
        if tag == "pending" and self._pool is not None:
            return quantity(self._pool.next_nonce(sender))
        return quantity(account_state(self._chain.state(self._header(tag)), sender).nonce)

    # Blocks, transactions, events

    def block_by_number(self, tag: Json, full: Json = False) -> Json:
        name = read_tag(tag)
        if name.startswith(("0x", "e")):
            stored = self._chain.block_by_number(self._number(name))
        else:  # by its hash: a re-org to a shorter chain may come between its number and the block
            stored = self._chain.file.stored(self._chain.head.header.hash)
        return None if stored is None else block_view(stored, read_flag(full, "full"))

    def block_by_hash(self, block_hash: Json, full: Json = False) -> Json:
        stored = self._chain.file.stored(read_data(block_hash, "a block hash", 32))
        return None if stored is None else block_view(stored, read_flag(full, "full"))

    def transaction(self, transaction_hash: Json) -> Json:
        wanted = read_data(transaction_hash, "a transaction hash", 32)
        found = self._located(wanted)
        if found is not None:
            stored, position = found
            transaction = decode_transaction(stored.block.transactions[position])
            return transaction_view(transaction, stored.block.header, position)
        waiting = None if self._pool is None else self._pool.get(wanted)
        return None if waiting is None else transaction_view(waiting, None)

    def receipt(self, transaction_hash: Json) -> Json:
        found = self._located(read_data(transaction_hash, "a transaction hash", 32))
        if found is None:
            return None
        stored, position = found
        return receipt_views(stored)[position]

    def logs(self, query: Json) -> Json:
        wanted = read_log_filter(query)
        found: list[Json] = []
        for stored in self._blocks_with_logs(wanted):
            for receipt in receipt_views(stored):
                found += [log for log in receipt["logs"] if _matches(log, wanted)]  # type: ignore[union-attr, arg-type]
            if len(found) > MAX_LOGS:
                raise RpcError(REFUSED, f"more than {MAX_LOGS} logs match: ask for a shorter range of blocks")
        return found

    # Running code

    def call(self, message: Json, tag: Json = None) -> Json:
        return data(self._run(message, tag).output)

    def estimate_gas(self, message: Json, tag: Json = None) -> Json:
        gas = self._run(message, tag).gas_used
        limit = self._chain.genesis.gas_limit
        while gas < limit:  # a call hands on 63/64 of its gas at most (EIP-150), so the sum may not be enough
            try:
                self._run(message, tag, gas)
            except RpcError:
                gas = min(gas * GAS_HEADROOM_PERCENT // 100, limit)
            else:
                break
        return quantity(gas)

    def send_raw_transaction(self, raw: Json) -> Json:
        if self._pool is None:
            raise RpcError(REFUSED, "this chain is open read-only: send the transaction to a node")
        transaction, _ = self._pool.add(read_data(raw, "a signed transaction"))
        return data(transaction.hash)

    def wait_for_block(self, after_number: Json, timeout_seconds: Json) -> Json:
        after = (
            after_number if isinstance(after_number, int) else read_quantity(after_number, "a block number")
        )
        if not isinstance(timeout_seconds, int | float) or not 0 <= timeout_seconds <= MAX_WAIT_SECONDS:
            raise invalid(f"a timeout of 0 to {MAX_WAIT_SECONDS:.0f} seconds", timeout_seconds)
        return self._chain.wait_for_block(after, timeout_seconds)

    # Inside

    def _number(self, tag: str) -> int:
        if tag == "earliest":
            return 0
        return int(tag, 16) if tag.startswith("0x") else self._chain.head.header.number

    def _header(self, tag: Json) -> Header:
        name = read_tag(tag)
        return (
            self._canonical(self._number(name)) if name.startswith(("0x", "e")) else self._chain.head.header
        )

    def _canonical(self, number: int) -> Header:
        header = self._chain.header_by_number(number) if number < 2**63 else None
        if header is None:
            raise RpcError(
                REFUSED, f"block {number} is not known, the head is {self._chain.head.header.number}"
            )
        return header

    def _located(self, transaction_hash: bytes) -> tuple[StoredBlock, int] | None:
        location = self._chain.file.location(transaction_hash)
        stored = None if location is None else self._chain.block_by_number(location[0])
        return None if location is None or stored is None else (stored, location[1])

    def _blocks_with_logs(self, wanted: LogFilter) -> Iterable[StoredBlock]:
        if wanted.block_hash is not None:
            hashes = [wanted.block_hash]
        else:
            first, last = self._number(wanted.first_block), self._number(wanted.last_block)
            hashes = self._chain.file.hashes_with_logs(min(first, 2**62), min(last, 2**62))
        for block_hash in hashes:
            header = self._chain.file.header(block_hash)
            if header is None:
                raise RpcError(REFUSED, f"block {block_hash.hex()} is not known")
            wants = (wanted.addresses, *wanted.topics)
            if all(not want or any(may_contain(header.bloom, item) for item in want) for want in wants):
                stored = self._chain.file.stored(block_hash)
                if stored is not None:
                    yield stored

    def _run(self, message: Json, tag: Json, gas: int | None = None) -> CallResult:
        name = read_tag(tag)
        parent = self._header(tag)
        # At the head a call runs as if in the next block, now: an idle chain's last block may be a minute
        # old, and a deadline that has passed since must not look open.
        frame = parent if name.startswith(("0x", "e")) else self._chain.next_header(parent)
        message_call = _read_call(message, frame.gas_limit, gas)
        return call(self._chain.genesis, frame, parent.state_root, self._chain.file.read_node, message_call)


def answer(methods: dict[str, Method], request: object) -> JsonObject:
    """One JSON-RPC request to one reply object; whatever is wrong with the request is an error reply."""
    reply: JsonObject = {"jsonrpc": "2.0", "id": None}
    try:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            raise RpcError(-32600, "expected a JSON-RPC request object with a method")
        identity = request.get("id")
        reply["id"] = identity if isinstance(identity, str | int) else None
        method = methods.get(request["method"])
        if method is None:
            raise RpcError(-32601, f"the method {request['method'][:80]} does not exist/is not available")
        parameters = request.get("params", [])
        if not isinstance(parameters, list):
            raise invalid("params as a list", parameters)
        reply["result"] = _invoke(method, parameters)
    except RpcError as error:
        details: JsonObject = {} if error.data is None else {"data": error.data}
        reply["error"] = {"code": error.code, "message": str(error), **details}
    except TransactionRefusedError as error:
        reply["error"] = {"code": REFUSED, "message": str(error)}
    except ConsiliaError as error:
        reply["error"] = {"code": REFUSED, "message": f"{type(error).__name__}: {error}"}
    return reply


def _invoke(method: Method, parameters: list[Json]) -> Json:
    try:
        return method(*parameters)
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the call itself failed
            raise RpcError(INVALID_PARAMETERS, f"expected another number of parameters: {error}") from error
        raise


def _read_call(message: Json, gas_limit: int, gas: int | None) -> Call:
    fields: dict[str, Any] = read_object(message, "a call", _CALL_KEYS)
    if gas is None:
        gas = min(read_quantity(fields["gas"], "gas"), gas_limit) if fields.get("gas") else gas_limit
    recipient = fields.get("to")
    return Call(
        sender=read_address(fields["from"], "from") if fields.get("from") else bytes(20),
        to=read_address(recipient, "to") if recipient else b"",
        data=read_data(fields.get("data") or fields.get("input") or "0x", "data"),
        value=read_quantity(fields["value"], "value") if fields.get("value") else 0,
        gas=gas,
    )


def _matches(log: JsonObject, wanted: LogFilter) -> bool:
    if wanted.addresses and bytes.fromhex(str(log["address"])[2:]) not in wanted.addresses:
        return False
    topics = [bytes.fromhex(str(topic)[2:]) for topic in log["topics"]]  # type: ignore[union-attr]
    return len(topics) >= len(wanted.topics) and all(
        not want or topic in want for want, topic in zip(wanted.topics, topics, strict=False)
    )


def _is_word(slot: Json) -> bool:
    return isinstance(slot, str) and len(slot) == 66


def _slot(slot: Json) -> int:
    return slot if isinstance(slot, int) and slot >= 0 else read_quantity(slot, "a slot")
