"""A new consortium: the first founder's plan, the founders' signed records, the genesis, the contracts.

Every step leaves a file in the home before the next begins, so that a founding that was cut off goes on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

from consilia.errors import InputError
from consilia.ledger.contracts import Deployment
from consilia.ledger.deployment import Founder, contract_address, deploy, sign_founder
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.outbox import Outbox
from consilia.ledger.registry import Application
from consilia.ledger.rpc import Rpc, quantity
from consilia.roles.membership.home import MemberKeys
from consilia.roles.membership.requests import (
    File,
    Invite,
    JoinRequest,
    check_application,
    shared_store,
    signed_request,
)
from consilia.roles.node import NodeProcess
from consilia.settings import SETTINGS_FILE, HospitalSettings, load
from consilia.settings.network import Network
from consilia.settings.sections import Confirmations, StoreSection, depth_of
from consilia.values import Address, Role

PLAN_FILE = "founding.json"
GENESIS_FILE, DEPLOYMENT_FILE = "genesis.json", "deployment.json"
FOUNDER_BALANCE_WEI = 1_000 * 10**18
Engine = Literal["embedded", "rpc"]


class Plan(File):
    """What was decided before anybody signed: a founder's signature is good for this registry alone."""

    engine: Engine
    chain_id: int
    registry: Address
    url: str
    store: StoreSection
    port: int
    created_at: int
    confirmations: Confirmations


def settle_plan(
    home: Path,
    keys: MemberKeys,
    engine: Engine,
    url: str,
    store: StoreSection,
    port: int,
    confirmations: Confirmations,
) -> Plan:
    """The plan of a home; a new one if there is none yet.

    Args:
        confirmations: how deep all members take a block for true; the invites carry it.

    Raises:
        InputError: the home has a plan for another engine or ledger, or belongs to a consortium that others founded.
        LedgerUnreachableError: nobody answers at the URL of an external ledger.
    """
    file = home / PLAN_FILE
    if file.exists():
        kept = Plan.load(file)
        elsewhere = kept.engine != engine or (engine == "rpc" and kept.url != url)
        if elsewhere or kept.confirmations != confirmations:
            raise InputError(
                f"{PLAN_FILE} of this home says engine {kept.engine} at {kept.url}, confirmations "
                f"{kept.confirmations}: give the same options to go on, or choose another --home"
            )
        return kept
    if taken := [name for name in (DEPLOYMENT_FILE, GENESIS_FILE) if (home / name).exists()]:
        raise InputError(
            f"{home.name} holds {taken[0]} and no founding: it belongs to a consortium; choose another --home"
        )
    deployer = str(keys.account.address)
    chain_id, nonce = secrets.randbelow(2**31 - 10**6) + 10**6, 0
    if engine == "rpc":
        rpc = Rpc(url)
        chain_id = quantity(rpc.call("eth_chainId"))
        nonce = quantity(rpc.call("eth_getTransactionCount", deployer, "latest"))
    else:
        url = f"http://127.0.0.1:{port}"
    plan = Plan(
        engine=engine,
        chain_id=chain_id,
        registry=contract_address(deployer, nonce),
        url=url,
        store=shared_store(store),
        port=port,
        created_at=int(time.time()),
        confirmations=confirmations,
    )
    plan.save(file)
    return plan


def founding_invite(plan: Plan, keys: MemberKeys) -> Invite:
    """What the other founders need to sign their records, before there is a chain."""
    return Invite(
        chain_id=plan.chain_id,
        registry=plan.registry,
        deployment=None,
        genesis=None,
        url="" if plan.engine == "embedded" else plan.url,
        peers=(plan.url,) if plan.engine == "embedded" else (),
        store=plan.store,
        confirmations=plan.confirmations,
        role="hospital",
        inviter=str(keys.account.address),
        verifiers=(keys.identity.recipient.hex(),),
    )


def founder_request(keys: MemberKeys, record: Application, invite: Invite, node: str = "") -> JoinRequest:
    """A founder's record, signed for the registry's constructor, with its proof for the first founder."""
    place = (invite.chain_id, invite.registry)
    request = signed_request(
        keys.name, keys.account, keys.identity, record, invite.verifiers, *place, node=node
    )
    signature = sign_founder(
        keys.account,
        recipient_key=record.recipient_key,
        role=record.role,
        certificate_digest=record.certificate_digest,
        valid_from=record.valid_from,
        valid_to=record.valid_to,
        chain_id=invite.chain_id,
        registry=invite.registry,
    )
    return request.model_copy(update={"founding": True, "signature": signature.hex()})


def checked_founder(request: JoinRequest, plan: Plan, keys: MemberKeys) -> Founder:
    """A founder's record as the constructor takes it, after its proof has convinced the first founder.

    Raises:
        InputError: it was signed for another founding.
        VerificationError: it does not show that the founder holds its recipient key.
    """
    if not request.founding or (request.chain_id, request.registry) != (plan.chain_id, plan.registry):
        raise InputError(
            f"{request.name}: expected a founder's request for the registry {plan.registry} on chain "
            f"{plan.chain_id}; let it join again with this founding's invite"
        )
    record = request.application()
    if record.account != keys.account.address:
        proofs = bytes.fromhex(request.proofs)
        check_application(record, proofs, keys.identity, plan.chain_id, plan.registry)
    return Founder(
        account=record.account,
        recipient_key=record.recipient_key,
        role=record.role,
        certificate_digest=record.certificate_digest,
        valid_from=record.valid_from,
        valid_to=record.valid_to,
        signature=bytes.fromhex(request.signature),
    )


def found(home: Path, plan: Plan, keys: MemberKeys, founders: Sequence[Founder]) -> Deployment:
    """Write the genesis where the chain is ours, and deploy the contracts; the home's settings are there already.

    Raises:
        InputError: a founder signed for another place, or nobody of an embedded chain may mine.
        TransactionRevertedError: the registry refuses a founder; the reason says why.
    """
    file = home / DEPLOYMENT_FILE
    if file.exists():
        return Deployment.load(file)
    with ExitStack() as stack:
        if plan.engine == "embedded":
            _write_genesis(home / GENESIS_FILE, plan, founders)
            node = NodeProcess(home, load(HospitalSettings, home), str(keys.account.address))
            stack.callback(node.stop)
            node.give_key(keys.account)
            node.wait_ready()
        outbox = Outbox(home / "outbox.sqlite")
        stack.callback(outbox.close)
        deployment = deploy(plan.url, keys.account, founders, outbox)
    partial = file.with_suffix(".partial")
    deployment.save(partial)
    partial.replace(file)
    return deployment


def write_network(home: Path, store: StoreSection, url: str, confirmations: Confirmations) -> None:
    """Write where the pieces of this member lie, for its own audit.

    Args:
        url: where another engine's ledger answers; "" on the embedded chain, whose file is in the node's folder.
    """
    if not (home / SETTINGS_FILE).exists():
        return
    told = {"url": url, "confirmations": depth_of(confirmations)} if url else {"genesis": Path(GENESIS_FILE)}
    Network.model_validate(
        {**told, "deployment": Path(DEPLOYMENT_FILE), "store": store, "hospitals": (Path(),)}
    ).save(home)


def _write_genesis(path: Path, plan: Plan, founders: Sequence[Founder]) -> None:
    miners = tuple(founder.account for founder in founders if founder.role is Role.HOSPITAL)
    if not miners:
        raise InputError("expected a hospital among the founders of an embedded chain: somebody must mine")
    if path.exists():
        return
    balances: dict[Address, int] = {founder.account: FOUNDER_BALANCE_WEI for founder in founders}
    Genesis(
        chain_id=plan.chain_id,
        timestamp=plan.created_at - 60,
        miners=miners,
        registry=plan.registry,
        balances_wei=balances,
    ).save(path)


def own_founder_record(record: Application, plan: Plan) -> Application:
    """The first founder's own record, the same however often the founding is begun."""
    seconds = record.valid_to - record.valid_from
    return replace(record, valid_from=plan.created_at - 3600, valid_to=plan.created_at - 3600 + seconds)
