"""The audit export: one zip that holds a ledger, so that a machine without a node can check it.

Its bytes follow from the chain alone: two hospitals with the same head write the same file. The format is in
docs/formats/audit-export.md.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from consilia.errors import InputError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment, contract_abi
from consilia.ledger.deployment import contract_address
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.provider import MethodsProvider
from consilia.ledger.embedded.rpc import ChainMethods
from consilia.ledger.history import History, code_hash
from consilia.ledger.rpc import Rpc
from consilia.roles.audit.registered import registered_objects
from consilia.roles.audit.view import find_chain
from consilia.values import Address, Digest, Json, canonical_json

FORMAT = "consilia/audit-export/v1"
MANIFEST = "manifest.json"
CONTENTS = (
    "genesis.json",
    "deployment.json",
    "blocks.jsonl",
    "receipts.jsonl",
    "roots.json",
    "registry.json",
    "contracts.json",
)
"""What the manifest lists, in the order in which it lies in the zip after the manifest."""

OLDEST_ZIP_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Exported:
    """What an export holds: up to which block, and what names it."""

    height: int
    head_hash: Digest
    sha256: Digest
    size_bytes: int


def export(home: Path, target: Path) -> Exported:
    """Write the export of a home's chain file to a name that must be free.

    Raises:
        InputError: the home has no chain file, there is a file of this name, or none can be written there.
    """
    if target.exists():
        raise InputError(f"{target} exists: take another name, an export overwrites nothing")
    place = find_chain(home)
    genesis, deployment = Genesis.load(place.genesis), Deployment.load(place.deployment)
    chain = Chain(place.file, genesis, readonly=True)
    try:
        head = chain.head.header
        data = pack(describe(chain, deployment))
    finally:
        chain.close()
    partial = target.with_name(target.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.rename(target)
    except OSError as error:
        raise InputError(f"expected a place for the export at {target}; {error.strerror}") from error
    return Exported(head.number, Digest(head.hash), Digest.of(data), len(data))


def describe(chain: Chain, deployment: Deployment) -> dict[str, bytes]:
    """Everything that goes into an export but its manifest, by member; it follows from the chain."""
    provider = MethodsProvider(ChainMethods(chain, None).table())
    ledger = Ledger("export", deployment, provider=provider)
    history = History(Rpc("export", provider), deployment)
    blocks, receipts = _blocks(chain)
    return {
        "genesis.json": canonical_json(chain.genesis.model_dump(mode="json")),
        "deployment.json": canonical_json(asdict(deployment)),
        "blocks.jsonl": blocks,
        "receipts.jsonl": receipts,
        "roots.json": canonical_json(list(_roots(ledger))),
        "registry.json": canonical_json(list(_members(ledger))),
        "contracts.json": canonical_json([_contract(made) for made in made_contracts(history)]),
    }


def _blocks(chain: Chain) -> tuple[bytes, bytes]:
    blocks, receipts = [], []
    for number in range(chain.head.header.number + 1):
        stored = chain.block_by_number(number)
        assert stored is not None, "the head is set in the same transaction as its ancestors"
        name: dict[str, Json] = {"number": number, "hash": _hex(stored.block.header.hash)}
        blocks.append(canonical_json({**name, "block": _hex(stored.block.encoded)}))
        receipts.append(canonical_json({**name, "receipts": [_hex(raw) for raw in stored.receipts]}))
    return b"\n".join(blocks) + b"\n", b"\n".join(receipts) + b"\n"


def _roots(ledger: Ledger) -> Iterator[dict[str, Json]]:
    for item in registered_objects(ledger.events()):
        yield {
            "task_id": item.task_id,
            "what": item.what,
            "root": _hex(item.root),
            "size": item.size,
            "owner": item.owner,
            "needed": item.needed,
        }


def _contract(made: MadeContract) -> dict[str, Json]:
    maker = None if made.made_by is None else _hex(made.made_by)
    return {"name": made.name, "address": made.address, "code_hash": _hex(made.code_hash), "made_by": maker}


def _members(ledger: Ledger) -> Iterator[dict[str, Json]]:
    for member in ledger.members():
        yield {
            "account": member.account,
            "role": member.role.name.lower(),
            "recipient_key": _hex(member.recipient_key),
            "certificate_digest": _hex(member.certificate_digest),
            "valid_from": member.valid_from,
            "valid_to": member.valid_to,
            "active": member.in_good_standing(ledger.confirmed_block().timestamp),
        }


@dataclass(frozen=True)
class MadeContract:
    """A contract of the deployment: its code's hash, and the transaction that made it from this version's artifact."""

    name: str
    address: Address
    code_hash: Digest
    made_by: Digest | None
    named: dict[str, Address]
    """The other contracts that it was told of, by the constructor's names."""


def made_contracts(history: History) -> list[MadeContract]:
    """Where each contract of the deployment came from: that alone says what code it runs and whom it asks."""
    makers = {
        contract_address(transaction.sender, transaction.nonce): transaction
        for block in history.blocks(0, history.head())
        for transaction in block.transactions
        if transaction.to is None
    }
    made = []
    for address, abi in history.contracts.items():
        maker = makers.get(address)
        arguments = None if maker is None else contract_abi(abi.name).read_deployment(maker.data)
        made.append(
            MadeContract(
                name=abi.name,
                address=address,
                code_hash=code_hash(history.code(address)),
                made_by=maker.hash if maker is not None and arguments is not None else None,
                named={a.name: a.value for a in arguments or () if a.type == "address"},
            )
        )
    return made


def pack(contents: Mapping[str, bytes]) -> bytes:
    """The zip of an export: nothing compressed, fixed times and order, so that equal contents are equal bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in ((MANIFEST, manifest(contents)), *((name, contents[name]) for name in CONTENTS)):
            entry = zipfile.ZipInfo(name, OLDEST_ZIP_TIME)
            entry.create_system = 3  # Unix, also where another system writes it
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def manifest(contents: Mapping[str, bytes]) -> bytes:
    """What an export claims to hold: each member with its size and SHA-256."""
    members: list[dict[str, Any]] = [
        {"name": name, "size": len(contents[name]), "sha256": Digest.of(contents[name]).hex()}
        for name in CONTENTS
    ]
    return canonical_json({"format": FORMAT, "engine": "embedded", "members": members})


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"
