# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title Who belongs to the consortium (docs/contracts.md, section 1)
@notice Each member is a ledger account, an X25519 recipient key, one role, the SHA-256 of its legal certificate
        and the time for which that is valid. Founders are listed at deployment, each with its own signature
        over its record; whatever changes after that, the members decide by vote (docs/membership.md). Nobody is
        listed with an account that it does not hold, or without having agreed. All other contracts, and the
        embedded chain's miners, ask here who may act.
"""
import membership
import typed_data

initializes: membership

exports: (
    membership.is_active,
    membership.in_good_standing,
    membership.has_left,
    membership.may_vote,
    membership.member,
    membership.members,
    membership.count,
    membership.percent,
    membership.electorate,
)

event QuorumChanged:
    percent: uint256
    emergency_percent: uint256

event ApplicationFiled:
    proposal_id: indexed(uint256)
    applicant: indexed(address)
    signature: Bytes[65]
    proofs: Bytes[5120]

event Proposed:
    proposal_id: indexed(uint256)
    proposer: indexed(address)
    subject: indexed(address)
    kind: uint8
    percent: uint256
    emergency_percent: uint256
    expires_at: uint256

event Voted:
    proposal_id: indexed(uint256)
    member: indexed(address)

event Enacted:
    proposal_id: indexed(uint256)

struct Founder:
    account: address
    recipient_key: bytes32
    role: uint8
    certificate_digest: bytes32
    valid_from: uint256
    valid_to: uint256
    signature: Bytes[65]

struct Proposal:
    kind: uint8
    proposer: address
    subject: address
    percent: uint256
    emergency_percent: uint256
    expires_at: uint256
    enacted: bool

struct Tally:
    approvals: uint256  # of those who may vote now
    needed: uint256

HOSPITAL: public(constant(uint8)) = 1
SERVER: public(constant(uint8)) = 2
AUDITOR: public(constant(uint8)) = 3

ADMISSION: public(constant(uint8)) = 1
CHANGE: public(constant(uint8)) = 2
SUSPENSION: public(constant(uint8)) = 3
EMERGENCY: public(constant(uint8)) = 4
LIFTING: public(constant(uint8)) = 5
REMOVAL: public(constant(uint8)) = 6
QUORUM: public(constant(uint8)) = 7

# Long enough for a board that meets every other week.
VOTE_SECONDS: public(constant(uint256)) = 14 * 86400
# An emergency that nobody joined for two days is none.
EMERGENCY_VOTE_SECONDS: public(constant(uint256)) = 2 * 86400

MAX_FOUNDERS: constant(uint256) = 64
MAX_VOTERS: constant(uint256) = 4096  # as many as there can be members
NAME: constant(String[64]) = "Consilia registry"
FOUNDER_TYPE: constant(bytes32) = keccak256(
    "Founder(address account,bytes32 recipientKey,uint8 role,bytes32 certificateDigest,"
    "uint256 validFrom,uint256 validTo)"
)

# The same for suspending a member at once; see membership.percent for the ordinary quorum.
emergency_percent: public(uint256)

proposal_count: public(uint256)
proposals: HashMap[uint256, Proposal]
applications: HashMap[uint256, membership.Application]
voters: HashMap[uint256, DynArray[address, MAX_VOTERS]]
voted: HashMap[uint256, HashMap[address, bool]]


@deploy
def __init__(founders: DynArray[Founder, MAX_FOUNDERS]):
    assert len(founders) > 0, "registry: no founder"
    membership.percent = 50
    self.emergency_percent = 25
    for founder: Founder in founders:
        assert self._signed_by_founder(founder), "registry: not the founder's signature"
        membership._admit(
            membership.Application(
                account=founder.account,
                recipient_key=founder.recipient_key,
                role=founder.role,
                certificate_digest=founder.certificate_digest,
                valid_from=founder.valid_from,
                valid_to=founder.valid_to,
                replaces=empty(address),
                proofs_digest=empty(bytes32),
            )
        )


@external
def propose_application(application: membership.Application, signature: Bytes[65], proofs: Bytes[5120]) -> uint256:
    """
    @notice Proposes a newcomer, or another record for a member: key, account, certificate or validity.
    @param signature The applicant's, with the account that the application names.
    @param proofs What lets each member convince itself that the applicant holds the recipient key
           (docs/membership.md); they are in the event, the contract cannot judge them.
    @return The proposal's id, from 1. Proposing is the first vote.
    """
    assert sha256(proofs) == application.proofs_digest, "registry: not the application's proofs"
    assert membership._signed_by_applicant(application, signature), "registry: not the applicant's signature"
    self._check_application(application)
    kind: uint8 = CHANGE
    subject: address = application.replaces
    if subject == empty(address):
        kind = ADMISSION
        subject = application.account
    proposal_id: uint256 = self._propose(kind, subject, 0, 0)
    self.applications[proposal_id] = application
    log ApplicationFiled(
        proposal_id=proposal_id, applicant=application.account, signature=signature, proofs=proofs
    )
    self._approve(proposal_id)
    return proposal_id


@external
def propose(kind: uint8, subject: address) -> uint256:
    """
    @notice Proposes to suspend a member, at once for a while or for good, to lift that, or to remove it.
    """
    assert kind >= SUSPENSION and kind <= REMOVAL, "registry: unknown kind"
    self._check_subject(kind, subject)
    proposal_id: uint256 = self._propose(kind, subject, 0, 0)
    self._approve(proposal_id)
    return proposal_id


@external
def propose_quorum(percent: uint256, emergency_percent: uint256) -> uint256:
    """
    @notice Proposes how many must agree from then on: more than `percent` of the members, and more than
            `emergency_percent` of them to suspend one at once.
    """
    # below a half two contradictory decisions could both pass
    assert percent >= 50 and percent < 100, "registry: quorum out of range"
    assert emergency_percent <= percent, "registry: emergency quorum above the quorum"
    proposal_id: uint256 = self._propose(QUORUM, empty(address), percent, emergency_percent)
    self._approve(proposal_id)
    return proposal_id


@external
def vote(proposal_id: uint256):
    """
    @notice A member approves, once. Staying away is voting against. The vote that makes the quorum decides.
    """
    assert membership._may_vote(msg.sender), "registry: not a voting member"
    self._check_open(proposal_id)
    assert not self.voted[proposal_id][msg.sender], "registry: already voted"
    self._approve(proposal_id)


@external
def enact(proposal_id: uint256):
    """
    @notice Anybody carries out what has enough votes since the quorum or the number of members changed.
    """
    self._check_open(proposal_id)
    tally: Tally = self._tally(proposal_id)
    assert tally.approvals >= tally.needed, "registry: too few votes"
    self._enact(proposal_id)


@external
def leave():
    """
    @notice A member leaves, at once and without a vote, unless the others could not go on without it.
    """
    assert membership.records[msg.sender].status == membership.LISTED, "registry: not a member"
    membership._remove(msg.sender, True)


@external
@view
def proposal(proposal_id: uint256) -> Proposal:
    """
    @notice A proposal; all zero if there is none of this id.
    """
    return self.proposals[proposal_id]


@external
@view
def application(proposal_id: uint256) -> membership.Application:
    """
    @notice The record that a proposal would list; all zero for the other kinds.
    """
    return self.applications[proposal_id]


@external
@view
def tally(proposal_id: uint256) -> Tally:
    """
    @notice How many approvals count now, and how many are needed.
    """
    return self._tally(proposal_id)


@external
@view
def has_voted(proposal_id: uint256, account: address) -> bool:
    """
    @notice Whether an account has approved a proposal.
    """
    return self.voted[proposal_id][account]


@internal
def _propose(kind: uint8, subject: address, percent: uint256, emergency_percent: uint256) -> uint256:
    assert membership._may_vote(msg.sender), "registry: not a voting member"
    proposal_id: uint256 = self.proposal_count + 1
    self.proposal_count = proposal_id
    expires_at: uint256 = block.timestamp + VOTE_SECONDS
    if kind == EMERGENCY:
        expires_at = block.timestamp + EMERGENCY_VOTE_SECONDS
    self.proposals[proposal_id] = Proposal(
        kind=kind,
        proposer=msg.sender,
        subject=subject,
        percent=percent,
        emergency_percent=emergency_percent,
        expires_at=expires_at,
        enacted=False,
    )
    log Proposed(
        proposal_id=proposal_id,
        proposer=msg.sender,
        subject=subject,
        kind=kind,
        percent=percent,
        emergency_percent=emergency_percent,
        expires_at=expires_at,
    )
    return proposal_id


@internal
def _approve(proposal_id: uint256):
    self.voted[proposal_id][msg.sender] = True
    self.voters[proposal_id].append(msg.sender)
    log Voted(proposal_id=proposal_id, member=msg.sender)
    # All votes ever cast are at least those that count: the costly count is made when it can matter.
    if len(self.voters[proposal_id]) >= self._needed(proposal_id):
        tally: Tally = self._tally(proposal_id)
        if tally.approvals >= tally.needed:
            self._enact(proposal_id)


@internal
@view
def _check_open(proposal_id: uint256):
    assert self.proposals[proposal_id].kind > 0, "registry: no such proposal"
    assert not self.proposals[proposal_id].enacted, "registry: already decided"
    assert block.timestamp < self.proposals[proposal_id].expires_at, "registry: vote has expired"


@internal
@view
def _tally(proposal_id: uint256) -> Tally:
    approvals: uint256 = 0
    for i: uint256 in range(len(self.voters[proposal_id]), bound=MAX_VOTERS):
        if membership._may_vote(self.voters[proposal_id][i]):
            approvals += 1
    return Tally(approvals=approvals, needed=self._needed(proposal_id))


@internal
@view
def _needed(proposal_id: uint256) -> uint256:
    kind: uint8 = self.proposals[proposal_id].kind
    ordinary: uint256 = membership._more_than(membership.percent)
    if kind == EMERGENCY:
        # never one member alone where there are others to ask
        return min(ordinary, max(2, membership._more_than(self.emergency_percent)))
    if kind == QUORUM:
        # whoever asks for a higher quorum has to show that it can be reached
        return max(ordinary, membership._more_than(self.proposals[proposal_id].percent))
    return ordinary


@internal
def _enact(proposal_id: uint256):
    kind: uint8 = self.proposals[proposal_id].kind
    subject: address = self.proposals[proposal_id].subject
    self.proposals[proposal_id].enacted = True
    log Enacted(proposal_id=proposal_id)
    if kind == QUORUM:
        membership.percent = self.proposals[proposal_id].percent
        self.emergency_percent = self.proposals[proposal_id].emergency_percent
        membership._check_workable()
        log QuorumChanged(percent=membership.percent, emergency_percent=self.emergency_percent)
        return
    if kind == ADMISSION or kind == CHANGE:
        application: membership.Application = self.applications[proposal_id]
        self._check_application(application)  # again: the registry has changed since
        membership.application_used[membership._application_hash(application)] = True
        if kind == ADMISSION:
            membership._admit(application)
        else:
            membership._change(application)
        return
    self._check_subject(kind, subject)
    if kind == LIFTING:
        membership._lift(subject)
    elif kind == REMOVAL:
        membership._remove(subject, False)
    elif kind == EMERGENCY:
        membership._suspend_for_a_while(subject)
    else:
        membership._suspend_for_good(subject)


@internal
@view
def _check_subject(kind: uint8, subject: address):
    assert membership.records[subject].status == membership.LISTED, "registry: not a member"
    until: uint256 = membership.records[subject].suspended_until
    if kind == SUSPENSION:
        assert until != membership.FOR_GOOD, "registry: already suspended"
    elif kind == EMERGENCY:
        assert until <= block.timestamp, "registry: already suspended"
        assert block.timestamp >= membership.next_emergency[subject], "registry: needs the ordinary quorum"
    elif kind == LIFTING:
        assert until > block.timestamp, "registry: not suspended"


@internal
@view
def _check_application(application: membership.Application):
    assert application.valid_to > block.timestamp, "registry: validity is over"
    used: bool = membership.application_used[membership._application_hash(application)]
    assert not used, "registry: application already used"
    membership._check_record(application)


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
