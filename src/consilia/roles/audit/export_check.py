"""Checks an audit export with no node: the chain is built again from its blocks, and all else must follow from it."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from consilia.errors import AuditError, ChainError, InputError, StoreError, VerificationError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.genesis_block import genesis_block
from consilia.ledger.embedded.provider import MethodsProvider
from consilia.ledger.embedded.replay import check_money
from consilia.ledger.embedded.rpc import ChainMethods
from consilia.ledger.event import Event
from consilia.ledger.history import History
from consilia.ledger.rpc import Rpc
from consilia.roles.audit.export import CONTENTS, MANIFEST, describe, made_contracts, manifest, pack
from consilia.roles.audit.home import Examiner, ExaminerKeys, derivable
from consilia.roles.audit.money import check_diagnosis, check_escrow, check_exchange, check_shares
from consilia.roles.audit.registered import check_objects, registered_objects
from consilia.roles.progress import Report
from consilia.roles.stores import open_store
from consilia.roles.training.task_log import TaskLog, fold
from consilia.settings import store_at
from consilia.store import ArtifactStore
from consilia.values import Address, Digest, Json, canonical_json, parse_json

MOST_BYTES = 1 << 30
"""An export is held in memory; this one would be of millions of blocks."""


@dataclass
class ExportResult:
    """What was found in order. Whether it is the *whole* chain only its head's hash can tell: compare it."""

    height: int
    head_hash: Digest
    genesis_digest: Digest
    deployment: Deployment
    transactions: int
    tasks: dict[int, TaskLog]
    members: int
    shares: int
    events: list[Event] = field(default_factory=list, repr=False)
    objects: int = 0
    objects_not_in_order: int = 0
    """Of those that training did not use; each was reported."""
    models_rederived: int = 0
    tasks_not_derived: int = 0
    """Of those with keys: of other servers, or with a malformed spec; each was reported."""
    blocks_by_miner: dict[Address, int] = field(default_factory=dict)


def check_export(
    file: Path, report: Report, store: Path | None = None, keys: ExaminerKeys | None = None
) -> ExportResult:
    """Check an export: its members, every block and receipt, registry, roots, contracts and money.

    Args:
        store: the folder of sealed artifacts, or a TOML file with a section store; every registered root is read.
        keys: what opens the artifacts; then every global model is derived again. Needs the store.

    Raises:
        InputError: there is no such file, or it is larger than any export, or the keys open none of its tasks.
        AuditError: something in it is not as it should be; the message names the member.
    """
    contents = unpack(_read(file))
    report("members in order", members=len(contents))
    genesis, deployment = _genesis(contents["genesis.json"]), _deployment(contents["deployment.json"])
    if genesis.chain_id != deployment.chain_id:
        raise AuditError(
            f"deployment.json: expected chain {genesis.chain_id} of the genesis, got {deployment.chain_id}"
        )
    with tempfile.TemporaryDirectory(prefix="consilia-audit-") as work:
        with _built(Path(work) / "chain.sqlite", genesis, contents["blocks.jsonl"], report) as chain:
            _check_receipts(chain, contents["receipts.jsonl"])
            report("receipts checked")
            _check_deployment(chain, deployment)
            _check_rest(chain, deployment, contents)
            report("roots, registry and contracts checked")
            result = _check_contracts(chain, deployment, report)
        if store is not None:
            _check_artifacts(result, open_store(store_at(store)), keys, Path(work), report)
    return result


def unpack(data: bytes) -> dict[str, bytes]:
    """The members of an export, each with the bytes that the manifest names.

    Nothing is ever written to a path from the archive, and nothing in it may be compressed: neither a name that
    climbs out of a folder nor a bomb can do anything here.

    Raises:
        AuditError: a member is missing, repeated, misplaced, unexpected or changed.
    """
    expected = (MANIFEST, *CONTENTS)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_names([entry.filename for entry in entries], expected)
            for entry in entries:
                if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
                    raise AuditError(
                        f"{entry.filename}: expected plain bytes, got a compressed or encrypted member"
                    )
            members = {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise AuditError(f"expected the zip of an audit export; {error}") from error
    claimed = members.pop(MANIFEST)
    _check_manifest(claimed, members)
    if pack(members) != data:
        raise AuditError("the zip itself was changed: its members are whole, but not packed as an export is")
    return members


def _check_names(names: list[str], expected: tuple[str, ...]) -> None:
    if tuple(names) == expected:
        return
    for name in names:
        if name not in expected:
            raise AuditError(f"unexpected member {name[:80]!r}: an export has {', '.join(expected)}")
        if names.count(name) > 1:
            raise AuditError(
                f"member {name} is there {names.count(name)} times: which one counts would be a guess"
            )
    for name in expected:
        if name not in names:
            raise AuditError(f"member {name} is missing")
    first = next(name for name, due in zip(names, expected, strict=True) if name != due)
    raise AuditError(f"member {first} is out of its place: expected the order {', '.join(expected)}")


def _check_manifest(claimed: bytes, members: Mapping[str, bytes]) -> None:
    honest = parse_json(manifest(members))
    try:
        value = parse_json(claimed)
        listed = {entry["name"]: entry for entry in value["members"]}
    except (ValueError, TypeError, KeyError) as error:
        raise AuditError(f"{MANIFEST}: expected the manifest of an audit export; {error}") from error
    for entry in honest["members"]:
        if listed.get(entry["name"]) != entry:
            raise AuditError(f"{entry['name']}: its bytes are not those that the manifest names")
    if claimed != canonical_json(honest):
        raise AuditError(
            f"{MANIFEST}: expected format {honest['format']} in canonical form, got something else"
        )


def _genesis(data: bytes) -> Genesis:
    try:
        genesis = Genesis.model_validate(parse_json(data))
    except (ValidationError, ValueError) as error:
        raise AuditError(f"genesis.json: expected a genesis; {error}") from error
    if canonical_json(genesis.model_dump(mode="json")) != data:
        raise AuditError("genesis.json: expected canonical JSON")
    return genesis


def _deployment(data: bytes) -> Deployment:
    with tempfile.TemporaryDirectory(prefix="consilia-audit-") as work:
        path = Path(work) / "deployment.json"
        path.write_bytes(data)
        try:
            return Deployment.load(path)
        except InputError as error:
            raise AuditError(f"deployment.json: {error}") from error


@contextmanager
def _built(file: Path, genesis: Genesis, lines: bytes, report: Report) -> Iterator[Chain]:
    """The chain that the blocks make: each is checked and executed as if a peer had sent it."""
    chain = Chain(file, genesis)
    try:
        _build(chain, lines)
        head = chain.head.header
        report("chain built again", height=head.number, head_hash=head.hash.hex())
        check_money(genesis, head, _burnt_wei(chain), chain.file.read_node)
        yield chain
    except (ChainError, ValueError) as error:
        raise AuditError(f"blocks.jsonl: {error}") from error
    finally:
        chain.close()


def _build(chain: Chain, lines: bytes) -> None:
    for number, line in enumerate(_lines(lines)):
        value = parse_json(line)
        if (
            not isinstance(value, dict)
            or set(value) != {"number", "hash", "block"}
            or value["number"] != number
        ):
            raise ChainError(
                f"line {number + 1}: expected block {number}: a block is missing or out of its place"
            )
        block = Block.decode(_bytes(value["block"]))
        if canonical_json({**value, "hash": f"0x{block.header.hash.hex()}"}) != line:
            raise ChainError(f"block {number}: its hash is not that of its bytes")
        if number == 0:
            if block.encoded != genesis_block(chain.genesis)[0].encoded:
                raise ChainError("block 0 is not the one that genesis.json gives")
            continue
        chain.import_block(block)
        if chain.head.header.hash != block.header.hash:
            raise ChainError(f"block {number} does not extend the block before it")


def _burnt_wei(chain: Chain) -> int:
    headers = (chain.header_by_number(number) for number in range(1, chain.head.header.number + 1))
    return sum(header.gas_used * header.base_fee_wei for header in headers if header is not None)


def _check_receipts(chain: Chain, lines: bytes) -> None:
    """Execution gave the receipts; the exported ones must be the very same bytes."""
    number = -1
    for number, line in enumerate(_lines(lines)):
        stored = chain.block_by_number(number)
        if stored is None:
            raise AuditError(f"receipts.jsonl: there is no block {number}")
        receipts = [f"0x{raw.hex()}" for raw in stored.receipts]
        name: dict[str, Json] = {"number": number, "hash": f"0x{stored.block.header.hash.hex()}"}
        if canonical_json({**name, "receipts": receipts}) != line:
            raise AuditError(
                f"receipts.jsonl: the receipts of block {number} are not what its transactions did"
            )
    if number != chain.head.header.number:
        raise AuditError(
            f"receipts.jsonl: it ends at block {number}, the chain at {chain.head.header.number}"
        )


def _check_deployment(chain: Chain, deployment: Deployment) -> None:
    """The addresses must be those of our code, wired to one another: a second registry would list other members."""
    history = History(Rpc("export", MethodsProvider(ChainMethods(chain, None).table())), deployment)
    told = {**deployment.contracts, "controller": deployment.training}
    for made in made_contracts(history):
        if made.made_by is None:
            raise AuditError(
                f"deployment.json: the {made.name} contract at {made.address} was not made on this chain from this "
                "version's code: take the version of Consilia that deployed it"
            )
        for name, address in made.named.items():
            if address != told.get(name.removesuffix("_"), address):
                raise AuditError(
                    f"deployment.json: the {made.name} contract belongs to the {name.removesuffix('_')} at {address}, "
                    f"not to {told[name.removesuffix('_')]}"
                )


def _check_rest(chain: Chain, deployment: Deployment, contents: Mapping[str, bytes]) -> None:
    honest = describe(chain, deployment)
    for name in CONTENTS:
        if contents[name] != honest[name]:
            raise AuditError(
                f"{name}: it is not what follows from the blocks{_difference(contents[name], honest[name])}"
            )


def _difference(came: bytes, honest: bytes) -> str:
    """The first entry in which two lists differ, for a person."""
    try:
        pairs = zip(parse_json(came), parse_json(honest), strict=True)
        different = next((a, b) for a, b in pairs if a != b)
    except (ValueError, TypeError, StopIteration):
        return ""
    return f": expected {str(different[1])[:200]}, got {str(different[0])[:200]}"


def _check_contracts(chain: Chain, deployment: Deployment, report: Report) -> ExportResult:
    ledger = Ledger("export", deployment, provider=MethodsProvider(ChainMethods(chain, None).table()))
    events = ledger.events()
    if min(event.block_number for event in events) != deployment.block:
        raise AuditError(f"deployment.json: its contracts are not from block {deployment.block}")
    tasks = fold(events)
    check_escrow(events, ledger.open_wei(), ledger.balance_wei(deployment.escrow))
    check_exchange(events, ledger)
    check_diagnosis(events, ledger)
    seconds = {number: ledger.block(number).timestamp for number in {e.block_number for e in events}}
    shares = sum(check_shares(task, events, seconds, report) for task in tasks.values())
    report("money conserved, shares computed again", shares=shares)
    head = chain.head.header
    blocks = [ledger.block(number) for number in range(1, head.number + 1)]
    return ExportResult(
        height=head.number,
        head_hash=Digest(head.hash),
        genesis_digest=chain.genesis.digest(),
        deployment=deployment,
        transactions=sum(len(block.transactions) for block in blocks),
        tasks=tasks,
        members=len(ledger.members()),
        shares=shares,
        events=events,
        blocks_by_miner={miner: sum(b.miner == miner for b in blocks) for miner in {b.miner for b in blocks}},
    )


def _check_artifacts(
    result: ExportResult, store: ArtifactStore, keys: ExaminerKeys | None, work: Path, report: Report
) -> None:
    found = check_objects(store, registered_objects(result.events), report)
    result.objects, result.objects_not_in_order = found.there, found.not_in_order
    report("store checked", objects=found.there, not_in_order=found.not_in_order)
    if keys is None:
        return
    mine = derivable(result.tasks.values(), keys, report)
    if result.tasks and not mine:
        raise InputError(
            "the identity opens none of the tasks: expected the one with which a server published"
        )
    result.tasks_not_derived = len(result.tasks) - len(mine)
    for task in mine:
        try:
            examined = Examiner(keys, result.deployment, task, store, work).run(report)
        except (VerificationError, StoreError) as error:
            raise AuditError(f"task {task.task_id}: {error}") from error
        result.models_rederived += len(examined)


def _lines(data: bytes) -> list[bytes]:
    *lines, rest = data.split(b"\n")
    if rest or not lines:
        raise ChainError("expected lines, each with its end")
    return lines


def _bytes(value: object) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise ChainError(f"expected bytes as 0x and hex, got {str(value)[:40]!r}")
    return bytes.fromhex(value[2:])


def _read(file: Path) -> bytes:
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{file} has {size} bytes, an audit export {MOST_BYTES} at most")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"expected an audit export at {file}; {error.strerror}") from error
