# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title The members' records, and what a decision does to them (docs/contracts.md, section 1)
@notice A module of registry.vy, which alone decides; nothing here asks who calls.
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

event ValidityChanged:
    account: indexed(address)
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256

event AccountChanged:
    account: indexed(address)
    successor: indexed(address)

event MemberSuspended:
    account: indexed(address)
    until: uint256

event SuspensionLifted:
    account: indexed(address)

event MemberRemoved:
    account: indexed(address)
    by_itself: bool

struct Member:
    account: address
    recipient_key: bytes32
    role: uint8
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256
    status: uint8
    suspended_until: uint256

struct Application:
    account: address
    recipient_key: bytes32
    role: uint8
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256
    replaces: address  # the member whose record this becomes; zero for a newcomer
    proofs_digest: bytes32  # SHA-256 of the proofs that the applicant holds the recipient key

HOSPITAL: constant(uint8) = 1
SERVER: constant(uint8) = 2
AUDITOR: constant(uint8) = 3

LISTED: constant(uint8) = 1
REMOVED: constant(uint8) = 2
# Gone of its own accord at a time when it might have acted: whatever step it owed then, it has fallen silent.
LEFT: constant(uint8) = 3

# An emergency suspension lasts as long as an ordinary vote on it may take.
EMERGENCY_SECONDS: constant(uint256) = 14 * 86400
# A few must not keep a member out for ever by renewing their alarm: after it ends they need the ordinary quorum.
EMERGENCY_PAUSE_SECONDS: constant(uint256) = 90 * 86400
FOR_GOOD: constant(uint256) = max_value(uint256)

MAX_MEMBERS: constant(uint256) = 4096
MAX_PAGE: constant(uint256) = 64
MAX_EMERGENCIES: constant(uint256) = 16
NAME: constant(String[64]) = "Consilia registry"
APPLICATION_TYPE: constant(bytes32) = keccak256(
    "Application(address account,bytes32 recipientKey,uint8 role,bytes32 certificateDigest,"
    "uint256 validFrom,uint256 validTo,address replaces,bytes32 proofsDigest)"
)

# A decision needs more than this part of the electorate, in per cent.
percent: public(uint256)
# Members that are not suspended for good: the n of k-of-n. Those in an emergency count, but cannot vote: else a few
# could suspend all others for a while and be the quorum themselves.
electorate: public(uint256)

accounts: DynArray[address, MAX_MEMBERS]
records: HashMap[address, Member]
key_owner: HashMap[bytes32, address]
hospitals: uint256  # in the electorate
emergencies: DynArray[address, MAX_EMERGENCIES]
next_emergency: HashMap[address, uint256]
application_used: HashMap[bytes32, bool]


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
def has_left(account: address) -> bool:
    """
    @notice Whether an account left of its own accord, neither suspended nor lapsed at the time nor removed by others.
    """
    return self.records[account].status == LEFT


@external
@view
def may_vote(account: address) -> bool:
    """
    @notice Whether an account may vote now: listed and not suspended. Validity does not count: otherwise a
            consortium whose certificates ended on one day could never renew them.
    """
    return self._may_vote(account)


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
    @notice A page of the members in the order of their admission, those who are gone included.
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
    @notice How many accounts were ever admitted.
    """
    return len(self.accounts)


@internal
def _admit(application: Application):
    self._check_record(application)
    known: bool = self.records[application.account].status != 0
    self._write(application, 0)
    if not known:
        self.accounts.append(application.account)
    self._count(application.role, True)
    self._log_admitted(application)


@internal
def _change(application: Application):
    self._check_record(application)
    replaced: Member = self.records[application.replaces]
    self.key_owner[replaced.recipient_key] = empty(address)
    self._write(application, replaced.suspended_until)
    if application.account != application.replaces:
        self.records[application.replaces].status = REMOVED
        self.accounts.append(application.account)
        self.next_emergency[application.account] = self.next_emergency[application.replaces]
        if self._forget_emergency(application.replaces):
            self.emergencies.append(application.account)
        log AccountChanged(account=application.replaces, successor=application.account)
        self._log_admitted(application)
        return
    if application.recipient_key != replaced.recipient_key:
        log RecipientKeyChanged(account=application.account, recipient_key=application.recipient_key)
    log ValidityChanged(
        account=application.account,
        certificate_digest=application.certificate_digest,
        valid_from=application.valid_from,
        valid_to=application.valid_to,
    )


@internal
@view
def _check_record(application: Application):
    replaced: address = application.replaces
    if replaced == empty(address):
        assert self.records[application.account].status != LISTED, "registry: already a member"
    else:
        assert self.records[replaced].status == LISTED, "registry: not a member"
        assert self.records[replaced].role == application.role, "registry: a role never changes"
        if application.account != replaced:
            assert self.records[application.account].status == 0, "registry: account already used"
    assert application.role >= HOSPITAL and application.role <= AUDITOR, "registry: unknown role"
    assert application.recipient_key != empty(bytes32), "registry: empty recipient key"
    # Envelopes name their recipients by key: two members with one key could open each other's.
    owner: address = self.key_owner[application.recipient_key]
    assert owner == empty(address) or owner == replaced, "registry: recipient key already listed"
    assert application.valid_from < application.valid_to, "registry: validity ends before it begins"


@internal
def _write(application: Application, suspended_until: uint256):
    self.key_owner[application.recipient_key] = application.account
    self.records[application.account] = Member(
        account=application.account,
        recipient_key=application.recipient_key,
        role=application.role,
        certificate_digest=application.certificate_digest,
        valid_from=application.valid_from,
        valid_to=application.valid_to,
        status=LISTED,
        suspended_until=suspended_until,
    )


@internal
def _suspend_for_good(subject: address):
    self.records[subject].suspended_until = FOR_GOOD
    self._forget_emergency(subject)
    self._count(self.records[subject].role, False)
    self._check_workable()
    log MemberSuspended(account=subject, until=FOR_GOOD)


@internal
def _suspend_for_a_while(subject: address):
    until: uint256 = block.timestamp + EMERGENCY_SECONDS
    self.records[subject].suspended_until = until
    self.next_emergency[subject] = until + EMERGENCY_PAUSE_SECONDS
    self._forget_ended_emergencies()
    assert len(self.emergencies) < MAX_EMERGENCIES, "registry: too many emergencies"
    self.emergencies.append(subject)
    self._check_workable()
    log MemberSuspended(account=subject, until=until)


@internal
def _lift(subject: address):
    if self.records[subject].suspended_until == FOR_GOOD:
        self._count(self.records[subject].role, True)
    self._forget_emergency(subject)
    self.records[subject].suspended_until = 0
    log SuspensionLifted(account=subject)


@internal
def _remove(subject: address, by_itself: bool):
    self.records[subject].status = LEFT if by_itself and self._in_good_standing(subject) else REMOVED
    self.key_owner[self.records[subject].recipient_key] = empty(address)
    self._forget_emergency(subject)
    if self.records[subject].suspended_until != FOR_GOOD:
        self._count(self.records[subject].role, False)
        self._check_workable()
    log MemberRemoved(account=subject, by_itself=by_itself)


@internal
def _count(role: uint8, joins: bool):
    if joins:
        self.electorate += 1
        if role == HOSPITAL:
            self.hospitals += 1
    else:
        self.electorate -= 1
        if role == HOSPITAL:
            self.hospitals -= 1
            assert self.hospitals > 0, "registry: the last hospital"


@internal
@view
def _check_workable():
    # No decision may leave fewer who can vote than the next decision needs, nor a chain without a miner.
    able: uint256 = self.electorate
    hospitals: uint256 = self.hospitals
    for subject: address in self.emergencies:
        if self.records[subject].suspended_until > block.timestamp:
            able -= 1
            if self.records[subject].role == HOSPITAL:
                hospitals -= 1
    assert able >= self._more_than(self.percent), "registry: too few would be left to decide"
    assert hospitals > 0 or self.hospitals == 0, "registry: the last hospital"


@internal
def _forget_emergency(subject: address) -> bool:
    last: uint256 = len(self.emergencies)
    for i: uint256 in range(last, bound=MAX_EMERGENCIES):
        if self.emergencies[i] == subject:
            self.emergencies[i] = self.emergencies[last - 1]
            self.emergencies.pop()
            return True
    return False


@internal
def _forget_ended_emergencies():
    for i: uint256 in range(MAX_EMERGENCIES):
        at: uint256 = MAX_EMERGENCIES - 1 - i  # from the end: the last one takes the place of each that goes
        if at < len(self.emergencies):
            if self.records[self.emergencies[at]].suspended_until <= block.timestamp:
                self._forget_emergency(self.emergencies[at])


@internal
def _log_admitted(application: Application):
    log MemberAdmitted(
        account=application.account,
        role=application.role,
        recipient_key=application.recipient_key,
        certificate_digest=application.certificate_digest,
        valid_from=application.valid_from,
        valid_to=application.valid_to,
    )


@internal
@view
def _in_good_standing(account: address) -> bool:
    record: Member = self.records[account]
    valid: bool = record.valid_from <= block.timestamp and block.timestamp < record.valid_to
    return record.status == LISTED and record.suspended_until <= block.timestamp and valid


@internal
@view
def _may_vote(account: address) -> bool:
    return self.records[account].status == LISTED and self.records[account].suspended_until <= block.timestamp


@internal
@view
def _more_than(percent: uint256) -> uint256:
    return self.electorate * percent // 100 + 1


@internal
@view
def _signed_by_applicant(application: Application, signature: Bytes[65]) -> bool:
    record: bytes32 = self._application_hash(application)
    signer: address = typed_data._signer(typed_data._digest(NAME, record), signature)
    return signer != empty(address) and signer == application.account


@internal
@pure
def _application_hash(application: Application) -> bytes32:
    return keccak256(abi_encode(APPLICATION_TYPE, application))
