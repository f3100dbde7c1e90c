"""How somebody becomes a member: the invite, the signed request, and what members check before they vote.

docs/membership.md tells the steps and says what each signature and proof shows to whom.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from eth_utils.address import is_checksum_address
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from consilia.crypto.custody import Opener, Signer
from consilia.crypto.possession import prove, verify
from consilia.errors import InputError, VerificationError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.genesis import LOOPBACK_HOSTS, Genesis
from consilia.ledger.registry import NOBODY, Application, Kind, Proposal
from consilia.ledger.views import Member
from consilia.roles.membership.home import MemberKeys
from consilia.settings.sections import Confirmations, StoreSection, Url
from consilia.values import Address, Digest, Role, canonical_json, parse_json

MAX_FILE_BYTES = 1 << 20
EARLY_SECONDS = 3600
"""A record is valid from an hour ago on: clocks differ."""

RoleName = Literal["hospital", "server", "auditor"]


def _account(text: str) -> str:
    if not is_checksum_address(text):
        raise ValueError(f"expected a checksummed address, got {text!r}")
    return text


def _hex(text: str) -> str:
    bytes.fromhex(text)
    return text


AccountText = Annotated[Address, AfterValidator(_account)]
HexText = Annotated[str, AfterValidator(_hex)]
KeyText = Annotated[HexText, Field(min_length=64, max_length=64)]


class File(BaseModel):
    """A JSON file of Consilia that travels between people, or stays in a home; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            InputError: it is missing, too large, or not such a file.
        """
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
            return cls.model_validate(parse_json(data))
        except OSError as error:
            raise InputError(f"expected a file at {path}: {error.strerror}") from error
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise InputError(f"{path} is no {cls.__name__} of Consilia: {'; '.join(faults)}") from error
        except ValueError as error:
            raise InputError(f"{path} is no {cls.__name__} of Consilia: {error}") from error

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: it cannot be written there.
        """
        partial = path.with_name(f".{secrets.token_hex(8)}.partial")  # nobody's file has this name
        try:
            partial.write_text(self.model_dump_json(indent=1, exclude_none=True) + "\n", "utf-8")
            partial.replace(path)
        except OSError as error:
            raise InputError(f"expected a file to write at {path}: {error.strerror}") from error
        finally:
            with suppress(OSError):
                partial.unlink()


class Invite(File):
    """All that a newcomer needs to reach a consortium. It gives no right: the members' votes do.

    Without a deployment it invites to the founding: the registry is still to come.
    """

    format: Literal["consilia-invite/1"] = "consilia-invite/1"
    chain_id: int
    registry: AccountText
    deployment: Deployment | None = None
    genesis: Genesis | None = None
    url: Url
    """The ledger's RPC address, where it is not the embedded chain."""
    peers: tuple[Url, ...]
    """Nodes of the embedded chain, the inviter's own first."""
    confirmations: Confirmations
    """How deep a block lies that the members take for true."""
    store: StoreSection
    role: RoleName
    inviter: AccountText
    verifiers: tuple[KeyText, ...]
    """The recipient keys of those who will vote, in hex: the newcomer proves to each of them that it holds its own."""

    @property
    def witnesses(self) -> tuple[str, ...]:
        """The nodes that a newcomer can ask what they tell: its inviter's and its peers, all on this machine.

        Beyond one machine there are none: there a node answers signed messages alone (docs/ledger.md).
        """
        hosts = {urlsplit(peer).hostname for peer in self.peers}
        return self.peers if hosts <= set(LOOPBACK_HOSTS) else ()

    @property
    def fingerprint(self) -> str:
        """What two people compare on the telephone: whoever changes the invite changes this."""
        digest = hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude_none=True))).hexdigest()[
            :20
        ]
        return "-".join(digest[at : at + 5] for at in range(0, 20, 5))


class JoinRequest(File):
    """A newcomer's signed record and its proofs; for a founding, a founder's."""

    format: Literal["consilia-join/1"] = "consilia-join/1"
    name: str
    founding: bool
    chain_id: int
    registry: AccountText
    account: AccountText
    recipient_key: KeyText
    role: RoleName
    certificate_digest: KeyText
    valid_from: Annotated[int, Field(ge=0, lt=2**64)]
    valid_to: Annotated[int, Field(ge=0, lt=2**64)]
    replaces: AccountText
    signature: Annotated[HexText, Field(min_length=130, max_length=130)]
    proofs: HexText
    node: Url

    def application(self) -> Application:
        """The record as the registry takes it."""
        return Application(
            account=self.account,
            recipient_key=bytes.fromhex(self.recipient_key),
            role=Role[self.role.upper()],
            certificate_digest=Digest.from_hex(self.certificate_digest),
            valid_from=self.valid_from,
            valid_to=self.valid_to,
            replaces=self.replaces,
            proofs_digest=Digest.of(bytes.fromhex(self.proofs)),
        )


def new_record(keys: MemberKeys, role: Role, certificate: bytes, days: int) -> Application:
    """A newcomer's record, valid from now on; its proofs are still to be made.

    Args:
        certificate: the bytes of the legal certificate; without one the name stands for it.
    """
    now = int(time.time())
    return Application(
        account=str(keys.account.address),
        recipient_key=keys.identity.recipient,
        role=role,
        certificate_digest=Digest.of(certificate or keys.name.encode()),
        valid_from=now - EARLY_SECONDS,
        valid_to=now + days * 86_400,
        replaces=NOBODY,
        proofs_digest=Digest.of(b""),
    )


def statement(record: Application, chain_id: int, registry: Address) -> Digest:
    """What the proofs are about: this record in this registry. They cannot be in it, so their digest is left out."""
    fields = replace(record, proofs_digest=Digest(bytes(32)))
    text = {name: value.hex() if isinstance(value, bytes) else value for name, value in vars(fields).items()}
    return Digest.of(
        b"consilia/application/v1" + canonical_json(text | {"chain_id": chain_id, "registry": registry})
    )


def signed_request(
    name: str,
    account: Signer,
    opener: Opener,
    record: Application,
    verifiers: tuple[str, ...],
    chain_id: int,
    registry: Address,
    node: str = "",
) -> JoinRequest:
    """Prove possession of both keys: of the recipient key to each verifier, of the account to everybody."""
    about = statement(record, chain_id, registry)
    proofs = prove(opener, record.recipient_key, [bytes.fromhex(key) for key in verifiers], about)
    complete = replace(record, proofs_digest=Digest.of(proofs))
    return JoinRequest(
        name=name,
        founding=False,
        chain_id=chain_id,
        registry=registry,
        account=complete.account,
        recipient_key=complete.recipient_key.hex(),
        role=_role_name(complete.role),
        certificate_digest=complete.certificate_digest.hex(),
        valid_from=complete.valid_from,
        valid_to=complete.valid_to,
        replaces=complete.replaces,
        signature=complete.sign(account, chain_id, registry).hex(),
        proofs=proofs.hex(),
        node=node,
    )


def check_application(
    application: Application, proofs: bytes, verifier: Opener, chain_id: int, registry: Address
) -> None:
    """What a member checks before it votes for a record: that the applicant holds the recipient key.

    The account's signature is checked by the contract.

    Raises:
        VerificationError: the proofs are not those of the application, or do not convince this member.
    """
    if Digest.of(proofs) != application.proofs_digest:
        raise VerificationError("the proofs are not those that the applicant signed: do not vote for it")
    verify(proofs, verifier, application.recipient_key, statement(application, chain_id, registry))


def own_record(member: Member) -> Application:
    """A member's record as it is, to be applied for with something changed."""
    return Application(
        account=member.account,
        recipient_key=member.recipient_key,
        role=member.role,
        certificate_digest=member.certificate_digest,
        valid_from=member.valid_from,
        valid_to=member.valid_to,
        replaces=member.account,
        proofs_digest=Digest.of(b""),
    )


def propose_recipient(ledger: Ledger, recipient: bytes, signer: Signer, opener: Opener) -> Proposal:
    """Propose another recipient key for one's own record, unless that is proposed already; the proposal as it stands.

    Args:
        recipient: one of the opener's keys, 32 bytes.

    Raises:
        LedgerError: this account is no member, or the registry refuses; nothing changed.
    """
    own, registry, now = ledger.member(signer.address), ledger.registry, ledger.confirmed_block().timestamp
    before = registry.proposals()
    own_changes = [p for p in before if (p.kind, p.subject) == (Kind.CHANGE, own.account) and p.is_open(now)]
    for proposal in own_changes:
        if registry.application(proposal.proposal_id).recipient_key == recipient:
            return proposal
    record = replace(own_record(own), recipient_key=recipient)
    verifiers = tuple(member.recipient_key.hex() for member in registry.members() if member.is_listed)
    place = (ledger.deployment.chain_id, ledger.deployment.registry)
    request = signed_request("", signer, opener, record, verifiers, *place)
    key = f"rotate/{recipient.hex()}/{len(before)}"
    proofs, signature = bytes.fromhex(request.proofs), bytes.fromhex(request.signature)
    registry.propose_application(key, request.application(), signature, proofs)
    return next(p for p in reversed(registry.proposals()) if p.subject == own.account)


def shared_store(section: StoreSection) -> StoreSection:
    """A member's store as it may be told to others: where it is, and nobody's keys to it."""
    if section.path is not None:
        return StoreSection(path=section.path)
    return StoreSection.model_validate(
        section.model_dump(include={"url", "endpoint", "region"}, exclude_none=True)
    )


def _role_name(role: Role) -> RoleName:
    names: dict[Role, RoleName] = {
        Role.HOSPITAL: "hospital",
        Role.SERVER: "server",
        Role.AUDITOR: "auditor",
    }
    return names[role]
