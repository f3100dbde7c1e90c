"""A newcomer: from an invite to a home that can run, and a signed request for the members to vote on."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from consilia.crypto.custody import Signer
from consilia.crypto.keys import load_account, save_account
from consilia.errors import InputError
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.genesis import Genesis
from consilia.roles.keys import open_signer, show_keys
from consilia.roles.membership.founding import (
    DEPLOYMENT_FILE,
    GENESIS_FILE,
    PLAN_FILE,
    Plan,
    founder_request,
    write_network,
)
from consilia.roles.membership.home import Seat, free_ports, make_member
from consilia.roles.membership.requests import (
    Invite,
    JoinRequest,
    RoleName,
    new_record,
    own_record,
    shared_store,
    signed_request,
)
from consilia.roles.membership.voter import Voter
from consilia.settings import SETTINGS_FILE, HospitalSettings, load_party
from consilia.settings.sections import StoreSection
from consilia.values import Digest, Role

REQUEST_FILE, CHANGE_FILE = "join-request.json", "change-request.json"
NEXT_ACCOUNT = Path("keys/account-next.json")


def make_invite(home: Path, role: str) -> Invite:
    """An invite into the consortium of a member's home, with the recipient keys of all who may vote on the newcomer.

    Raises:
        LedgerUnreachableError: the member's node, or the external ledger, does not answer.
    """
    voter = Voter(home)
    settings = voter.settings
    node = settings.node if isinstance(settings, HospitalSettings) else None
    genesis = Genesis.load(home / GENESIS_FILE) if (home / GENESIS_FILE).exists() else None
    if genesis is None:
        peers: tuple[str, ...] = ()
    elif node is None:
        peers = (settings.ledger.url,)
    else:
        peers = (node.url, *node.peers)
    return Invite(
        chain_id=voter.deployment.chain_id,
        registry=voter.deployment.registry,
        deployment=voter.deployment,
        genesis=genesis,
        url="" if genesis else settings.ledger.url,
        peers=peers,
        confirmations=settings.ledger.confirmations,
        store=shared_store(settings.store),
        role=_checked_role(role),
        inviter=show_keys(settings.keys).address,
        verifiers=_verifiers(voter),
    )


def join(
    invite: Invite,
    home: Path,
    *,
    name: str,
    role: str,
    data: Path | None,
    certificate: bytes,
    days: int,
    port: int,
    store: StoreSection | None,
    password_file: Path | None = None,
) -> JoinRequest:
    """Make a home: keys where missing, settings where missing, genesis and deployment, and the signed request.

    Raises:
        InputError: a hospital without data, or the home belongs to another consortium.
        SettingsError: there is no password for new keys (see `make_member`).
    """
    file = home / REQUEST_FILE
    kept = JoinRequest.load(file) if file.exists() else None
    chosen = Role[_checked_role(role or (kept or invite).role).upper()]
    if chosen is Role.HOSPITAL and data is None:
        raise InputError("a hospital joins with --data FOLDER: the images that it trains on")
    _check_home(invite, home, kept)
    if kept is not None and kept.role != chosen.name.lower():
        raise InputError(
            f"{home.name} asked to join as {kept.role}, and one account has one role: choose another --home for "
            f"--role {chosen.name.lower()}"
        )
    home.mkdir(parents=True, exist_ok=True)
    keys = make_member(home, name, password_file, typed=True)
    shared = store or invite.store
    mines = chosen is Role.HOSPITAL and bool(invite.peers)
    seat = Seat(
        name,
        "",
        shared,
        data.resolve() if data is not None and chosen is Role.HOSPITAL else None,
        port if mines else None,
        peers=invite.peers,
        confirmations=invite.confirmations,
        witnesses=invite.witnesses if mines else invite.witnesses[1:],  # without a node it asks the first
        password_file=keys.password_file,
    )
    node = _write_settings(invite, home, seat)
    _write_chain(invite, home, shared)
    if kept is not None:
        return kept  # the same request however often this is called: a second one would be a second vote
    record = new_record(keys, chosen, certificate, days)
    if invite.deployment is None:
        request = founder_request(keys, record, invite, node)
    else:
        place = (invite.chain_id, invite.registry)
        request = signed_request(
            name, keys.account, keys.identity, record, invite.verifiers, *place, node=node
        )
    request.save(file)
    return request


def change(home: Path, *, new_account: bool, certificate: bytes, days: int) -> JoinRequest:
    """A member asks for another record: a new account beside the old one, or a renewed certificate.

    Raises:
        LedgerError: this home's account is no member.
        InputError: nothing would change.
    """
    voter = Voter(home)
    keys = voter.settings.keys
    own = own_record(voter.reading.member(show_keys(keys).address))
    account = _next_account(home, keys.password()) if new_account else open_signer(keys)
    record = replace(
        own,
        account=str(account.address),
        certificate_digest=Digest.of(certificate) if certificate else own.certificate_digest,
        valid_to=int(time.time()) + days * 86_400 if days else own.valid_to,
    )
    if record == own:
        raise InputError("nothing would change: give --new-account, --certificate or --days")
    place = (voter.deployment.chain_id, voter.deployment.registry)
    name, verifiers = voter.settings.name, _verifiers(voter)
    request = signed_request(name, account, voter.identity, record, verifiers, *place)
    request.save(home / CHANGE_FILE)
    return request


def _check_home(invite: Invite, home: Path, kept: JoinRequest | None) -> None:
    """What ties the home to a consortium must be of the invite's: what a member stands on is never written over."""
    place = (invite.chain_id, invite.registry)
    if kept is not None and (kept.chain_id, kept.registry) != place:
        raise InputError(f"{home.name} asked to join another consortium: choose another --home")
    if not all(_agrees(tie, invite) for tie in _ties(home)):
        raise InputError(
            f"{home.name} belongs to another consortium than the one invited to, or the invite was changed: choose "
            "another --home, or ask for the invite again"
        )


def _agrees(tie: Plan | Deployment | Genesis, invite: Invite) -> bool:
    told = {Deployment: invite.deployment, Genesis: invite.genesis}.get(type(tie))
    if told is not None:
        return tie == told
    return tie.chain_id == invite.chain_id and tie.registry in (None, invite.registry)


def _ties(home: Path) -> list[Plan | Deployment | Genesis]:
    """What a home stands on already: a founding that was begun, contracts, a chain; in it, or where it says."""
    plan, contracts, chains = home / PLAN_FILE, {home / DEPLOYMENT_FILE}, {home / GENESIS_FILE}
    if (home / SETTINGS_FILE).exists():
        settings = load_party(home)
        contracts.add(settings.ledger.deployment)
        if isinstance(settings, HospitalSettings) and settings.node is not None:
            chains.add(settings.node.genesis)
    return [
        *([Plan.load(plan)] if plan.exists() else []),
        *(Deployment.load(file) for file in contracts if file.exists()),
        *(Genesis.load(file) for file in chains if file.exists()),
    ]


def _verifiers(voter: Voter) -> tuple[str, ...]:
    return tuple(m.recipient_key.hex() for m in voter.registry.members() if m.is_listed)


def _write_settings(invite: Invite, home: Path, seat: Seat) -> str:
    """Write the settings if there are none; the address of the newcomer's own node, "" if it has none.

    Args:
        seat: its port is None for who has no node, and 0 for any free one.
    """
    file = home / SETTINGS_FILE
    if not file.exists():
        own = seat.port if seat.port is None else seat.port or free_ports(1)[0]
        url = invite.url or (f"http://127.0.0.1:{own}" if own else invite.peers[0])
        file.write_text(replace(seat, url=url, port=own).toml(), "utf-8")
    settings = load_party(home)
    node = settings.node if isinstance(settings, HospitalSettings) else None
    return node.url if node else ""


def _write_chain(invite: Invite, home: Path, store: StoreSection) -> None:
    if invite.genesis is not None:
        invite.genesis.save(home / GENESIS_FILE)
    if invite.deployment is not None:
        invite.deployment.save(home / DEPLOYMENT_FILE)
        write_network(home, store, invite.url, invite.confirmations)


def _next_account(home: Path, password: str) -> Signer:
    from eth_account import Account

    path = home / NEXT_ACCOUNT
    if not path.exists():
        save_account(path, Account.create(), password)
    return load_account(path, password)


def _checked_role(text: str) -> RoleName:
    names: dict[str, RoleName] = {"hospital": "hospital", "server": "server", "auditor": "auditor"}
    if text not in names:
        raise InputError(f"expected the role {', '.join(names)}, got {text!r}")
    return names[text]
