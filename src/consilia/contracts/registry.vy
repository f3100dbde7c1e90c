# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title Who belongs to the consortium (docs/contracts.md, section 1)
@notice Each member is a ledger account, an X25519 recipient key, one role, the SHA-256 of its legal certificate
        and the time for which that is valid. Founders are listed at deployment, each with its own signature
        over its record: nobody is listed with an account that it does not hold, or without having agreed.
        All other contracts ask here who may act.
"""
import typed_data

event MemberAdmitted:
    account: indexed(address)
    role: uint8
    recipient_key: bytes32
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256

event RecipientKeyChanged:
    account: indexed(address)
    recipient_key: bytes32

struct Founder:
    account: address
    recipient_key: bytes32
    role: uint8
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256
    signature: Bytes[65]

struct Member:
    account: address
    recipient_key: bytes32
    role: uint8
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256
    status: uint8

HOSPITAL: public(constant(uint8)) = 1
SERVER: public(constant(uint8)) = 2
AUDITOR: public(constant(uint8)) = 3

ACTIVE: public(constant(uint8)) = 1

MAX_FOUNDERS: constant(uint256) = 64
MAX_PAGE: constant(uint256) = 64
NAME: constant(String[64]) = "Consilia registry"
FOUNDER_TYPE: constant(bytes32) = keccak256(
    "Founder(address account,bytes32 recipientKey,uint8 role,bytes32 certificateDigest,"
    "uint256 validFrom,uint256 validTo)"
)

accounts: DynArray[address, 4096]
records: HashMap[address, Member]


@deploy
def __init__(founders: DynArray[Founder, MAX_FOUNDERS]):
    assert len(founders) > 0, "registry: no founder"
    for founder: Founder in founders:
        assert self._signed_by_founder(founder), "registry: not the founder's signature"
        self._admit(founder)


@external
def change_recipient_key(recipient_key: bytes32):
    """
    @notice A member replaces its own long-term encryption key. What was sealed to the old one stays so.
    @param recipient_key The new X25519 public key.
    """
    assert self._in_good_standing(msg.sender), "registry: not an active member"
    assert recipient_key != empty(bytes32), "registry: empty recipient key"
    self.records[msg.sender].recipient_key = recipient_key
    log RecipientKeyChanged(account=msg.sender, recipient_key=recipient_key)


@external
@view
def is_active(account: address, role: uint8) -> bool:
    """
    @notice Whether an account may act in a role now: listed in it, not suspended, within its validity.
    """
    return self.records[account].role == role and self._in_good_standing(account)


@external
@view
def in_good_standing(account: address) -> bool:
    """
    @notice Whether an account may act now in whatever role it has; money is paid out to such accounts only.
    """
    return self._in_good_standing(account)


@external
@view
def member(account: address) -> Member:
    """
    @notice The record of an account; all zero for a stranger.
    """
    return self.records[account]


@external
@view
def members(start: uint256, count: uint256) -> DynArray[Member, MAX_PAGE]:
    """
    @notice A page of the members in the order of their admission.
    @param count How many at most; no more than 64 are given.
    """
    page: DynArray[Member, MAX_PAGE] = []
    for i: uint256 in range(MAX_PAGE):
        if i >= count or start + i >= len(self.accounts):
            break
        page.append(self.records[self.accounts[start + i]])
    return page


@external
@view
def count() -> uint256:
    """
    @notice How many members were ever admitted.
    """
    return len(self.accounts)


@internal
@view
def _signed_by_founder(founder: Founder) -> bool:
    record: bytes32 = keccak256(
        abi_encode(
            FOUNDER_TYPE,
            founder.account,
            founder.recipient_key,
            founder.role,
            founder.certificate_digest,
            founder.valid_from,
            founder.valid_to,
        )
    )
    signer: address = typed_data._signer(typed_data._digest(NAME, record), founder.signature)
    return signer != empty(address) and signer == founder.account


@internal
def _admit(founder: Founder):
    assert self.records[founder.account].status == 0, "registry: already a member"
    assert founder.role >= HOSPITAL and founder.role <= AUDITOR, "registry: unknown role"
    assert founder.recipient_key != empty(bytes32), "registry: empty recipient key"
    assert founder.valid_from < founder.valid_to, "registry: validity ends before it begins"
    self.accounts.append(founder.account)
    self.records[founder.account] = Member(
        account=founder.account,
        recipient_key=founder.recipient_key,
        role=founder.role,
        certificate_digest=founder.certificate_digest,
        valid_from=founder.valid_from,
        valid_to=founder.valid_to,
        status=ACTIVE,
    )
    log MemberAdmitted(
        account=founder.account,
        role=founder.role,
        recipient_key=founder.recipient_key,
        certificate_digest=founder.certificate_digest,
        valid_from=founder.valid_from,
        valid_to=founder.valid_to,
    )


@internal
@view
def _in_good_standing(account: address) -> bool:
    record: Member = self.records[account]
    valid: bool = record.valid_from <= block.timestamp and block.timestamp < record.valid_to
    return record.status == ACTIVE and valid
