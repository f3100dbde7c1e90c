"""The ledger for a member: each step of the training protocol is a typed call, each event a typed value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from consilia.crypto.custody import Signer
from consilia.errors import LedgerError
from consilia.ledger.chain import BlockInfo, Chain
from consilia.ledger.contracts import Deployment, contract_abi
from consilia.ledger.deployment import Founder, contract_address, deploy, sign_founder
from consilia.ledger.events import Event, TaskPublished, decode_event
from consilia.ledger.outbox import Outbox
from consilia.ledger.registry import Registry
from consilia.ledger.rpc import Provider, Rpc, data_bytes, quantity
from consilia.ledger.sender import Call, Included, Receipt, Sender
from consilia.ledger.views import Enrolment, Member, Pool, TaskState
from consilia.values import Address, Digest

__all__ = [
    "BlockInfo",
    "Deployment",
    "Enrolment",
    "Founder",
    "Ledger",
    "Member",
    "Pool",
    "Receipt",
    "TaskState",
    "contract_address",
    "deploy",
    "sign_founder",
]

MAX_BATCH = 64
"""Entries of one batch of task keys or shares (contracts/training.vy)."""

# Gas limits: about twice what tests/ledger/test_client_gas.py measures (docs/contracts.md, section 7). Unused
# gas costs nothing, too little costs all, and asking a node for an estimate costs a run of the call.
PUBLISH_GAS, SPEC_BYTE_GAS = 700_000, 60
ENROL_GAS = 250_000
ISSUE_GAS, KEY_GAS = 200_000, 70_000
START_GAS = 400_000
REGISTER_GAS = 350_000
CLOSE_GAS = 400_000
ABORT_GAS = 400_000
SETTLE_GAS, SHARE_GAS = 300_000, 120_000
PAY_GAS = 250_000
TRANSFER_GAS = 21_000  # no more: the receiver is an account, not a contract


class Ledger:
    """A consortium's contracts, through one node; with an account and an outbox also for writing.

    Each write takes a `key`, the caller's name for its decision, such as "enrol/7". Called again under the
    same key, after a crash or an error, it finishes the same transaction; two keys are two transactions. A
    write returns once its block is confirmed. What it raises is told at `sender.Sender.send`.
    """

    def __init__(
        self,
        url: str,
        deployment: Deployment,
        *,
        account: Signer | None = None,
        outbox: Outbox | None = None,
        confirmations: int = 1,
        witnesses: Sequence[str] = (),
        provider: Provider | None = None,
        inclusion_timeout_seconds: float | None = None,
    ) -> None:
        self.deployment = deployment
        self._chain = Chain(Rpc(url, provider), confirmations, witnesses)
        self._sender: Sender | None = None
        self._chain_id_checked = False
        if account is not None and outbox is not None:
            self._sender = Sender(
                self._chain, deployment.chain_id, account, outbox, inclusion_timeout_seconds
            )

    @property
    def registry(self) -> Registry:
        """The members and their votes."""
        return Registry(self._read, self._write)

    @property
    def chain_id(self) -> int:
        """The chain that the contracts are on."""
        return self.deployment.chain_id

    # Writes of the server

    def publish_task(
        self,
        key: str,
        spec: bytes,
        rounds: int,
        quorum: int,
        max_hospitals: int,
        enrol_seconds: int,
        round_seconds: int,
        reward_wei: int,
    ) -> int:
        """Step 0: offer a task with a reward pool. Returns its id."""
        gas = PUBLISH_GAS + SPEC_BYTE_GAS * len(spec)
        arguments = (spec, rounds, quorum, max_hospitals, enrol_seconds, round_seconds)
        included = self._write(key, "training", "publish", arguments, gas, reward_wei)
        for log in included.logs:
            if _same(log["address"], self.deployment.training):
                event = decode_event("training", log)
                if isinstance(event, TaskPublished):
                    return event.task_id
        raise LedgerError(f"{key}: expected TaskPublished in its receipt, found none: wrong deployment file?")

    def issue_keys(self, key: str, task_id: int, keys: Mapping[Address, bytes]) -> Receipt:
        """Step 1: register public task keys (32 bytes, X25519), in batches; the last batch's receipt."""
        return self._write_batches(key, "issue_keys", task_id, keys, ISSUE_GAS, KEY_GAS)

    def start_task(
        self,
        key: str,
        task_id: int,
        *,
        key_string_root: Digest,
        key_string_size: int,
        model_root: Digest,
        model_size: int,
        model_digest: Digest,
    ) -> Receipt:
        """Step 1: hand out the sealed task keys and the initial model; round 0 opens."""
        arguments = (task_id, key_string_root, key_string_size, model_root, model_size, model_digest)
        return self._write(key, "training", "start", arguments, START_GAS).receipt

    def close_round(
        self,
        key: str,
        task_id: int,
        round_index: int,
        *,
        trail: Digest,
        counted: int,
        included: tuple[int, int],
        report_root: Digest,
        report_size: int,
        report_digest: Digest,
        model_root: Digest,
        model_size: int,
        model_digest: Digest,
    ) -> Receipt:
        """Step 3: register the new global model.

        Args:
            trail: that of the last update that was judged; a re-org that changes what came before it ends in a refusal.
            counted: how many registered updates were judged.
            included: two words; bit p % 256 of word p // 256 is set if the update at position p is in.
        """
        report = (report_root, report_size, report_digest)
        model = (model_root, model_size, model_digest)
        arguments = (task_id, round_index, trail, counted, included, *report, *model)
        return self._write(key, "training", "close_round", arguments, CLOSE_GAS).receipt

    def settle(self, key: str, task_id: int, shares: Mapping[Address, int]) -> Receipt:
        """Step 5: divide what was earned, in wei, in batches; the last batch's receipt."""
        return self._write_batches(key, "settle", task_id, shares, SETTLE_GAS, SHARE_GAS)

    def refund(self, key: str, task_id: int) -> Receipt:
        """Fetch what nobody earned of a dead task's pool."""
        return self._write(key, "escrow", "refund", (task_id,), PAY_GAS).receipt

    def withdraw_unclaimed(self, key: str, task_id: int) -> Receipt:
        """Fetch the shares that nobody claimed within the claim period (90 days)."""
        return self._write(key, "escrow", "withdraw_unclaimed", (task_id,), PAY_GAS).receipt

    # Writes of a hospital

    def enrol(self, key: str, task_id: int) -> Receipt:
        """Step 1: take part in a task."""
        return self._write(key, "training", "enrol", (task_id,), ENROL_GAS).receipt

    def register_update(
        self,
        key: str,
        task_id: int,
        round_index: int,
        *,
        root: Digest,
        key_hash: Digest,
        size: int,
        num_examples: int,
        metrics_digest: Digest,
    ) -> Receipt:
        """Step 2: register the envelope of an update, which must be in the store already."""
        arguments = (task_id, round_index, root, key_hash, size, num_examples, metrics_digest)
        return self._write(key, "training", "register_update", arguments, REGISTER_GAS).receipt

    def claim(self, key: str, task_id: int) -> Receipt:
        """Step 5: fetch one's share."""
        return self._write(key, "escrow", "claim", (task_id,), PAY_GAS).receipt

    # Writes of anybody

    def abort(self, key: str, task_id: int) -> Receipt:
        """Declare a task dead that cannot go on."""
        return self._write(key, "training", "abort", (task_id,), ABORT_GAS).receipt

    def settle_by_updates(self, key: str, task_id: int, hospital: Address) -> Receipt:
        """Step 5 where the server did not settle in time: a hospital's part by updates handed in."""
        gas = SETTLE_GAS + SHARE_GAS
        return self._write(key, "training", "settle_by_updates", (task_id, hospital), gas).receipt

    def pay(self, key: str, account: Address, amount_wei: int) -> Receipt:
        """Send money of one's own to another account, such as a newcomer that has none for its first gas."""
        return self._send(key, Call(account, b"", TRANSFER_GAS, amount_wei)).receipt

    def resend(self) -> dict[str, str]:
        """Send again what no block has: a re-org took it back, or a node forgot it.

        Returns:
            What a node would not take, by key, and why; it is tried again next time.
        """
        return {} if self._sender is None else self._sender.resend()

    # Reads

    def events(
        self, from_block: int = 0, to_block: int | None = None, task_id: int | None = None
    ) -> list[Event]:
        """The confirmed events of these blocks, both ends included, in their order; or those of one task."""
        confirmed = self._chain.confirmed().number
        last = confirmed if to_block is None else min(to_block, confirmed)
        if from_block > last:
            return []
        return self._events({"fromBlock": hex(from_block), "toBlock": hex(last)}, task_id)

    def events_of_block(self, block_hash: Digest, task_id: int | None = None) -> list[Event]:
        """The events of exactly this block; or those of one task. Raises RpcError if the node lacks it."""
        return self._events({"blockHash": "0x" + block_hash.hex()}, task_id)

    def events_ahead(self, after_block: int, task_id: int) -> list[Event]:
        """The events of one task in the blocks after this one up to the head; what is not confirmed may vanish."""
        if self._chain.head() <= after_block:
            return []
        return self._events({"fromBlock": hex(after_block + 1), "toBlock": "latest"}, task_id)

    def _events(self, query: dict[str, Any], task_id: int | None) -> list[Event]:
        names = {
            self.deployment.training.lower(): "training",
            self.deployment.escrow.lower(): "escrow",
        }
        if task_id is None:
            names[self.deployment.registry.lower()] = "registry"
            names[self.deployment.exchange.lower()] = "exchange"
            names[self.deployment.diagnosis.lower()] = "diagnosis"
        query["address"] = list(names)
        if task_id is not None:
            query["topics"] = [None, f"0x{task_id:064x}"]
        logs: Sequence[dict[str, Any]] = self._chain.rpc.call("eth_getLogs", query)
        events = [decode_event(names[log["address"].lower()], log) for log in logs]
        return sorted(events, key=lambda event: (event.block_number, event.log_index))

    def wait(self, after_block: int, timeout_seconds: float) -> int:
        """Wait for a confirmed block later than `after_block`; gives the newest confirmed number."""
        return self._chain.wait(after_block, timeout_seconds)

    def wait_for_news(self, head: int, confirmed: int, timeout_seconds: float) -> int:
        """Wait for a head later than `head`, or a confirmed block later than `confirmed`; the head's number."""
        return self._chain.wait_for_news(head, confirmed, timeout_seconds)

    def confirmed_block(self) -> BlockInfo:
        """The newest confirmed block."""
        return self._chain.confirmed()

    def block(self, number: int) -> BlockInfo:
        """A block of the chain. Raises LedgerError if the chain is shorter."""
        return self._chain.block(number)

    def find_block(self, number: int) -> BlockInfo | None:
        """A block of the chain; None if the chain is shorter."""
        return self._chain.find_block(number)

    def task(self, task_id: int) -> TaskState:
        """A task's state at the head. Raises LedgerError if there is none of this id."""
        record = self._read("training", "task", task_id)
        if record["phase"] == 0:
            raise LedgerError(f"expected a task with id {task_id}; there is none")
        return TaskState.of(record)

    def enrolment(self, task_id: int, hospital: Address) -> Enrolment:
        """A hospital's part in a task."""
        return Enrolment(**self._read("training", "enrolment", task_id, hospital))

    def member(self, account: Address) -> Member:
        """A member's record. Raises LedgerError for a stranger."""
        record = self._read("registry", "member", account)
        if record["status"] == 0:
            raise LedgerError(f"expected a member of the consortium, but {account} is none")
        return Member.of(record)

    def members(self) -> list[Member]:
        """All members in the order of their admission."""
        return self.registry.members()

    def pool(self, task_id: int) -> Pool:
        """Where the wei of a task are."""
        return Pool(**self._read("escrow", "pool", task_id))

    def share_wei(self, task_id: int, member: Address) -> int:
        """What a member can claim now."""
        return int(self._read("escrow", "share_wei", task_id, member))

    def open_wei(self) -> int:
        """What the escrow owes altogether; its balance."""
        return int(self._read("escrow", "open_wei"))

    def balance_wei(self, account: Address) -> int:
        """What an account owns at the head."""
        return self._chain.balance_wei(account)

    # For the contracts that have a client of their own

    def write(
        self,
        key: str,
        contract: str,
        function: str,
        arguments: Sequence[object],
        gas: int,
        value_wei: int = 0,
    ) -> Receipt:
        """Any call of a consortium's contract, under a key as every write."""
        return self._write(key, contract, function, arguments, gas, value_wei).receipt

    def read(self, contract: str, function: str, *arguments: object) -> Any:
        """What a view of a consortium's contract answers at the head."""
        return self._read(contract, function, *arguments)

    # How

    def _address(self, contract: str) -> Address:
        return str(getattr(self.deployment, contract))

    def _read(self, contract: str, function: str, *arguments: object) -> Any:
        abi = contract_abi(contract)
        request = {"to": self._address(contract), "data": "0x" + abi.call(function, *arguments).hex()}
        return abi.result(function, data_bytes(self._chain.rpc.call("eth_call", request, "latest")))

    def _write(
        self,
        key: str,
        contract: str,
        function: str,
        arguments: Sequence[object],
        gas: int,
        value_wei: int = 0,
    ) -> Included:
        data = contract_abi(contract).call(function, *arguments)
        return self._send(key, Call(self._address(contract), data, gas, value_wei))

    def _send(self, key: str, call: Call) -> Included:
        if self._sender is None:
            raise LedgerError(f"{key}: this ledger only reads; give it an account and an outbox to write")
        self._check_chain_id()
        return self._sender.send(key, call)

    def _check_chain_id(self) -> None:
        # once: a signature for another chain is useless here, and might be good there
        if self._chain_id_checked:
            return
        chain_id = quantity(self._chain.rpc.call("eth_chainId"))
        if chain_id != self.chain_id:
            raise LedgerError(
                f"expected chain {self.chain_id} at {self._chain.rpc.url}, found {chain_id}: "
                "take the deployment file of this chain"
            )
        self._chain_id_checked = True

    def _write_batches(
        self,
        key: str,
        function: str,
        task_id: int,
        entries: Mapping[Address, object],
        gas: int,
        entry_gas: int,
    ) -> Receipt:
        if not entries:
            raise LedgerError(f"{key}: expected at least one hospital, got none")
        accounts = sorted(entries)  # the same batches whenever this is called again
        receipts: list[Receipt] = []
        for start in range(0, len(accounts), MAX_BATCH):
            batch = accounts[start : start + MAX_BATCH]
            batch_key = f"{key}/{start // MAX_BATCH}"
            arguments = (task_id, batch, [entries[account] for account in batch])
            limit = gas + entry_gas * len(batch)
            receipts.append(self._write(batch_key, "training", function, arguments, limit).receipt)
        return replace(receipts[-1], gas_used=sum(receipt.gas_used for receipt in receipts))


def _same(address: str, other: str) -> bool:
    return address.lower() == other.lower()
