# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title A second opinion on hidden images (docs/contracts.md, section 5; docs/protocols/diagnosis.md)
@notice Labels and answers are compared as hashes, and only those of audit images before the server is paid.
        ASKED -> ANSWERED -> OPENED -> PASSED -> ACCEPTED -> RELEASED; FAILED below the threshold, STOPPED where
        somebody does not go on, or may not act any more; states never go back. A deadline is the first second at
        which it is too late. A wei is at each moment held for one open query or credited to one account; `open_wei`
        is their sum.
"""

import box_agreement
import registry

event ModelOffered:
    offer_id: indexed(uint256)
    server: indexed(address)
    model_digest: indexed(bytes32)
    code_book: bytes32
    price_wei: uint256
    bond_wei: uint256
    recipient_key: bytes32
    card: Bytes[8192]

event OfferWithdrawn:
    offer_id: indexed(uint256)

event Asked:
    query_id: indexed(bytes32)
    hospital: indexed(address)
    offer_id: indexed(uint256)
    images: uint256
    audits: uint256
    threshold: uint256
    root: bytes32
    key_hash: bytes32
    size: uint256
    recipient_key: bytes32
    deadline: uint256

event Answered:
    query_id: indexed(bytes32)
    reports: bytes32
    root: bytes32
    key_hash: bytes32
    size: uint256
    deadline: uint256

event AuditOpened:
    query_id: indexed(bytes32)
    roles: uint256
    xs: DynArray[bytes32, 128]
    deadline: uint256

event Scored:
    query_id: indexed(bytes32)
    matches: uint256
    matched: uint256
    answers: DynArray[bytes32, 128]
    us: DynArray[bytes32, 128]
    ys: DynArray[bytes32, 128]
    deadline: uint256

event Challenged:
    query_id: indexed(bytes32)
    position: uint256
    matches: uint256

event Accepted:
    query_id: indexed(bytes32)
    deadline: uint256

event AnswersReleased:
    query_id: indexed(bytes32)
    us: DynArray[bytes32, 128]
    ys: DynArray[bytes32, 128]

event QueryClosed:
    query_id: indexed(bytes32)
    state: uint8
    hospital_wei: uint256
    server_wei: uint256
    reason: String[128]

event DiagnosisCreditPaid:
    account: indexed(address)
    amount_wei: uint256

struct Offer:
    server: address
    price_wei: uint256
    bond_wei: uint256
    withdrawn: bool

struct Terms:
    offer_id: uint256
    images: uint256
    audits: uint256
    threshold: uint256

struct Query:
    hospital: address
    terms: uint256  # offer_id | images | audits | threshold: a word costs more than all the arithmetic here
    progress: uint256  # deadline | matches | state
    labels: bytes32  # keccak of all L_j
    roles: bytes32  # a commitment, then the bitmap itself: bit j is an audit image
    answers: bytes32  # keccak of (keccak of all A_j, W)
    opened: bytes32  # keccak of the x_j of audit images
    challenged: uint256  # bitmap

struct Record:
    hospital: address
    offer_id: uint256
    images: uint256
    audits: uint256
    threshold: uint256
    state: uint8
    matches: uint256
    deadline: uint256

ASKED: public(constant(uint8)) = 1
ANSWERED: public(constant(uint8)) = 2
OPENED: public(constant(uint8)) = 3
PASSED: public(constant(uint8)) = 4
ACCEPTED: public(constant(uint8)) = 5
RELEASED: public(constant(uint8)) = 6
FAILED: public(constant(uint8)) = 7
STOPPED: public(constant(uint8)) = 8

# Long enough for a process that is down over a night; who is there goes on at once.
STEP_SECONDS: public(constant(uint256)) = 86400
MAX_IMAGES: constant(uint256) = 128
MAX_WEI: constant(uint256) = 2**128

QUERY_TAG: constant(bytes32) = keccak256("consilia/diagnosis/query/v1")
LABEL_TAG: constant(bytes32) = keccak256("consilia/diagnosis/label/v1")
TRUTH_TAG: constant(bytes32) = keccak256("consilia/diagnosis/truth/v1")
MARK_TAG: constant(bytes32) = keccak256("consilia/diagnosis/mark/v1")
ANSWER_TAG: constant(bytes32) = keccak256("consilia/diagnosis/answer/v1")
ROLES_TAG: constant(bytes32) = keccak256("consilia/diagnosis/roles/v1")
PAD_TAG: constant(bytes32) = keccak256("consilia/diagnosis/pad/v1")

REGISTRY: immutable(registry.__interface__)

open_wei: public(uint256)
credit_wei: public(HashMap[address, uint256])
offer_count: public(uint256)
offers: HashMap[uint256, Offer]
queries: HashMap[bytes32, Query]


@deploy
def __init__(registry_: address):
    REGISTRY = registry.__interface__(registry_)


@external
def offer(
    model_digest: bytes32,
    code_book: bytes32,
    price_wei: uint256,
    bond_wei: uint256,
    recipient_key: bytes32,
    card: Bytes[8192],
) -> uint256:
    """
    @notice Step 0: a server names a model that it answers for.
    @param code_book Digest of the list of finding codes that its answers are made of.
    @param recipient_key What queries are sealed to.
    @param card What a hospital should know of it, in canonical JSON.
    @return The offer's number, from 1.
    """
    assert staticcall REGISTRY.is_active(msg.sender, registry.SERVER), "diagnosis: not an active server"
    assert price_wei < MAX_WEI and bond_wei < MAX_WEI, "diagnosis: too much money"
    assert model_digest != empty(bytes32) and code_book != empty(bytes32), "diagnosis: empty digest"
    assert recipient_key != empty(bytes32), "diagnosis: empty recipient key"
    offer_id: uint256 = self.offer_count + 1
    self.offer_count = offer_id
    self.offers[offer_id] = Offer(server=msg.sender, price_wei=price_wei, bond_wei=bond_wei, withdrawn=False)
    log ModelOffered(
        offer_id=offer_id,
        server=msg.sender,
        model_digest=model_digest,
        code_book=code_book,
        price_wei=price_wei,
        bond_wei=bond_wei,
        recipient_key=recipient_key,
        card=card,
    )
    return offer_id


@external
def withdraw(offer_id: uint256):
    """
    @notice The server takes no more queries for a model, for good. Open queries go on.
    """
    assert msg.sender == self.offers[offer_id].server, "diagnosis: not your offer"
    assert not self.offers[offer_id].withdrawn, "diagnosis: already withdrawn"
    self.offers[offer_id].withdrawn = True
    log OfferWithdrawn(offer_id=offer_id)


@external
@payable
def ask(
    terms: Terms,
    salt: bytes32,
    labels: bytes32,
    roles: bytes32,
    root: bytes32,
    key_hash: bytes32,
    size: uint256,
    recipient_key: bytes32,
) -> bytes32:
    """
    @notice Step 1: a hospital asks about sealed images, with the fee. It is bound to the truth of its audit images.
    @param labels keccak of all L_j, `roles` the salted commitment to which of them are audit images.
    @param root The sealed images in the store; `recipient_key` is what the reports are sealed to.
    @return The query's id: of this chain, contract, hospital and salt alone.
    """
    wanted: Offer = self.offers[terms.offer_id]
    assert wanted.server != empty(address), "diagnosis: no such offer"
    assert not wanted.withdrawn, "diagnosis: offer withdrawn"
    assert msg.value == wanted.price_wei, "diagnosis: not the price"
    assert staticcall REGISTRY.is_active(msg.sender, registry.HOSPITAL), "diagnosis: not an active hospital"
    assert staticcall REGISTRY.is_active(wanted.server, registry.SERVER), "diagnosis: server not active"
    assert terms.images <= MAX_IMAGES and terms.audits < terms.images, "diagnosis: no image is hidden"
    assert terms.threshold > 0 and terms.threshold <= terms.audits, "diagnosis: threshold out of range"
    assert root != empty(bytes32) and recipient_key != empty(bytes32), "diagnosis: empty root or key"
    query_id: bytes32 = keccak256(abi_encode(QUERY_TAG, chain.id, self, msg.sender, salt))
    assert self.queries[query_id].hospital == empty(address), "diagnosis: already asked"
    self.open_wei += msg.value
    query: Query = empty(Query)
    query.hospital = msg.sender
    query.terms = terms.offer_id << 24 | terms.images << 16 | terms.audits << 8 | terms.threshold
    query.labels = labels
    query.roles = roles
    self.queries[query_id] = query
    log Asked(
        query_id=query_id,
        hospital=msg.sender,
        offer_id=terms.offer_id,
        images=terms.images,
        audits=terms.audits,
        threshold=terms.threshold,
        root=root,
        key_hash=key_hash,
        size=size,
        recipient_key=recipient_key,
        deadline=self._advance(query_id, ASKED, 0),
    )
    return query_id


@external
def refuse(query_id: bytes32, reason: String[128]):
    """
    @notice Step 2: the server cannot or will not answer; the hospital has its fee back.
    """
    self._check_server(query_id, ASKED, False)
    self._close(query_id, STOPPED, self._price(query_id), 0, reason)


@external
@payable
def answer(
    query_id: bytes32, answers: bytes32, reports: bytes32, root: bytes32, key_hash: bytes32, size: uint256
):
    """
    @notice Step 2: the server is bound to an answer for every image, and posts its bond.
    @param answers keccak of all A_j; `reports` is W, over all encrypted reports, which lie sealed under `root`.
    """
    self._check_server(query_id, ASKED, True)
    assert self._both_active(query_id), "diagnosis: a party is not active"
    bond_wei: uint256 = self._bond(query_id)
    assert msg.value == bond_wei, "diagnosis: not the bond"
    assert root != empty(bytes32), "diagnosis: empty root"
    self.open_wei += bond_wei
    self.queries[query_id].answers = keccak256(abi_encode(answers, reports))
    log Answered(
        query_id=query_id,
        reports=reports,
        root=root,
        key_hash=key_hash,
        size=size,
        deadline=self._advance(query_id, ANSWERED, 0),
    )


@external
def decline(query_id: bytes32, reason: String[128]):
    """
    @notice Step 3: the reports are not in the store, or are others than W says; each side has its own back.
    """
    self._check_hospital(query_id, ANSWERED, False)
    self._close(query_id, STOPPED, self._price(query_id), self._bond(query_id), reason)


@external
def open_audit(
    query_id: bytes32,
    roles: uint256,
    salt: bytes32,
    labels: DynArray[bytes32, 128],
    marks: DynArray[bytes32, 128],
    xs: DynArray[bytes32, 128],
):
    """
    @notice Step 3: which are audit images, and their hashed labels: those of step 1 and no others.
    @param labels All L_j; `marks` and `xs` are s_j and x_j of the audit images, in the order of their positions.
    """
    self._check_hospital(query_id, ANSWERED, True)
    terms: Terms = self._terms(query_id)
    committed: bytes32 = keccak256(abi_encode(ROLES_TAG, query_id, salt, roles))
    assert committed == self.queries[query_id].roles, "diagnosis: other roles than asked"
    assert len(labels) == terms.images, "diagnosis: not a label for each image"
    assert len(marks) == terms.audits and len(xs) == terms.audits, "diagnosis: not every audit image"
    assert keccak256(abi_encode(labels)) == self.queries[query_id].labels, "diagnosis: other labels than asked"
    count: uint256 = 0
    for j: uint256 in range(terms.images, bound=128):
        if (roles >> j) & 1 == 1:
            mark: bytes32 = keccak256(abi_encode(MARK_TAG, marks[count], xs[count]))
            assert mark == labels[j], "diagnosis: another label than asked"
            count += 1
    assert count == terms.audits and roles >> terms.images == 0, "diagnosis: roles and numbers differ"
    self.queries[query_id].opened = keccak256(abi_encode(xs))
    self.queries[query_id].roles = convert(roles, bytes32)
    log AuditOpened(query_id=query_id, roles=roles, xs=xs, deadline=self._advance(query_id, OPENED, 0))


@external
def score(
    query_id: bytes32,
    answers: DynArray[bytes32, 128],
    reports: bytes32,
    us: DynArray[bytes32, 128],
    ys: DynArray[bytes32, 128],
    xs: DynArray[bytes32, 128],
):
    """
    @notice Step 4: the answers of audit images; the contract counts. Below the threshold nothing else is opened.
    @param answers All A_j; `us`, `ys` and `xs` are of the audit images, in the order of their positions.
    """
    self._check_server(query_id, OPENED, True)
    terms: Terms = self._terms(query_id)
    assert keccak256(abi_encode(xs)) == self.queries[query_id].opened, "diagnosis: other labels than opened"
    roles: uint256 = convert(self.queries[query_id].roles, uint256)
    self._check_answers(query_id, roles, terms.images, answers, reports, us, ys)
    matches: uint256 = 0
    matched: uint256 = 0
    count: uint256 = 0
    for j: uint256 in range(terms.images, bound=128):
        if (roles >> j) & 1 == 1:
            if ys[count] == xs[count]:
                matches += 1
                matched |= 1 << j
            count += 1
    deadline: uint256 = self._advance(query_id, PASSED, matches)
    log Scored(
        query_id=query_id, matches=matches, matched=matched, answers=answers, us=us, ys=ys, deadline=deadline
    )
    if matches < terms.threshold:
        self._close(query_id, FAILED, self._price(query_id), self._bond(query_id), "too few matches")


@external
def accept(query_id: bytes32):
    """
    @notice Step 4: the hospital has looked at the boxes of the audit images, and will not challenge.
    """
    self._check_hospital(query_id, PASSED, True)
    matches: uint256 = self._matches(query_id)
    log Accepted(query_id=query_id, deadline=self._advance(query_id, ACCEPTED, matches))


@external
def challenge(
    query_id: bytes32,
    position: uint256,
    label_secret: bytes32,
    truth_salt: bytes32,
    truth: uint256[8],
    u: bytes32,
    report: uint256[8],
    labels: DynArray[bytes32, 128],
    answers: DynArray[bytes32, 128],
    digests: DynArray[bytes32, 128],
):
    """
    @notice Step 4: one audit image is opened whose codes matched and whose boxes do not. Everything is of step 1 and 2.
    @param truth The true boxes (docs/formats/query.md); `report` is c_j, `u` its u_j.
    @param labels All L_j; `answers` all A_j; `digests` the keccak of each c_j.
    """
    self._check_hospital(query_id, PASSED, True)
    query: Query = self.queries[query_id]
    bit: uint256 = 1 << position
    assert convert(query.roles, uint256) & bit != 0, "diagnosis: not an audit image"
    assert query.challenged & bit == 0, "diagnosis: already challenged"
    # the same codes on both sides: x_j and y_j are one value, and only an image that matched can be challenged
    codes: uint256 = box_agreement._codes(truth)
    x: bytes32 = keccak256(abi_encode(LABEL_TAG, query_id, position, label_secret, codes))
    mark: bytes32 = keccak256(abi_encode(TRUTH_TAG, query_id, position, truth_salt, truth))
    assert keccak256(abi_encode(labels)) == query.labels, "diagnosis: other labels than asked"
    assert labels[position] == keccak256(abi_encode(MARK_TAG, mark, x)), "diagnosis: another truth than asked"
    bound: bytes32 = keccak256(abi_encode(keccak256(abi_encode(answers)), keccak256(abi_encode(digests))))
    assert bound == query.answers, "diagnosis: other answers than given"
    assert answers[position] == keccak256(abi_encode(ANSWER_TAG, u, x)), "diagnosis: not a match"
    assert digests[position] == keccak256(abi_encode(report)), "diagnosis: another report than given"
    found: uint256[8] = report
    for i: uint256 in range(8):
        found[i] ^= convert(keccak256(abi_encode(PAD_TAG, query_id, position, u, i)), uint256)
    assert not box_agreement._agree(truth, found), "diagnosis: the boxes agree"
    matches: uint256 = self._matches(query_id) - 1
    self.queries[query_id].challenged = query.challenged | bit
    self.queries[query_id].progress -= 1 << 8
    log Challenged(query_id=query_id, position=position, matches=matches)
    if matches < query.terms & 255:
        self._close(query_id, FAILED, self._price(query_id), self._bond(query_id), "boxes do not agree")


@external
def release(
    query_id: bytes32,
    answers: DynArray[bytes32, 128],
    reports: bytes32,
    us: DynArray[bytes32, 128],
    ys: DynArray[bytes32, 128],
):
    """
    @notice Step 5: the answers of the hidden images against the money, in one transaction.
    @param answers All A_j; `us` and `ys` are of the hidden images, in the order of their positions.
    """
    query: Query = self.queries[query_id]
    state: uint256 = query.progress & 255
    deadline: uint256 = query.progress >> 16
    assert msg.sender == self._server(query_id), "diagnosis: not the server"
    if state == convert(PASSED, uint256):
        assert block.timestamp >= deadline, "diagnosis: the hospital may still challenge"
        deadline += STEP_SECONDS
    else:
        assert state == convert(ACCEPTED, uint256), "diagnosis: nothing to release"
    assert block.timestamp < deadline, "diagnosis: too late"
    assert self._both_bound(query_id), "diagnosis: a party is not active"
    terms: Terms = self._terms(query_id)
    hidden: uint256 = ~convert(query.roles, uint256) & ((1 << terms.images) - 1)
    self._check_answers(query_id, hidden, terms.images, answers, reports, us, ys)
    log AnswersReleased(query_id=query_id, us=us, ys=ys)
    self._close(query_id, RELEASED, 0, self._price(query_id) + self._bond(query_id), "")


@external
def expire(query_id: bytes32):
    """
    @notice Anybody ends a query that went no further in time; who stopped pays for it. A query of a party that may not
            act ends at any time, and each side has its own back: else whoever cheats it could have it suspended. Who
            leaves has stopped: else it could look at the audit, or have its answer, and go.
    """
    progress: uint256 = self.queries[query_id].progress
    state: uint8 = convert(progress & 255, uint8)
    deadline: uint256 = progress >> 16
    assert state >= ASKED and state <= ACCEPTED, "diagnosis: nothing to expire"
    bound: bool = self._both_active(query_id) if state == ASKED else self._both_bound(query_id)
    if not bound:
        held_wei: uint256 = self._bond(query_id) if state > ASKED else 0
        self._close(query_id, STOPPED, self._price(query_id), held_wei, "party not active")
        return
    if state == PASSED:
        deadline += STEP_SECONDS  # the hospital may be silent; then the server has its time
    assert block.timestamp >= deadline, "diagnosis: still in time"
    price_wei: uint256 = self._price(query_id)
    bond_wei: uint256 = self._bond(query_id)
    if state == ASKED:
        self._close(query_id, STOPPED, price_wei, 0, "no answer")
    elif state == ANSWERED:
        self._close(query_id, STOPPED, 0, price_wei + bond_wei, "audit not opened")
    elif state == OPENED:
        self._close(query_id, STOPPED, price_wei + bond_wei, 0, "no score")
    else:
        self._close(query_id, STOPPED, price_wei + bond_wei, 0, "no release")


@external
def claim():
    """
    @notice A member fetches all that is credited to it.
    """
    amount_wei: uint256 = self.credit_wei[msg.sender]
    assert amount_wei > 0, "diagnosis: nothing to claim"
    # A stolen key whose member was suspended fetches nothing: the money waits until the member is active again.
    assert staticcall REGISTRY.in_good_standing(msg.sender), "diagnosis: not an active member"
    self.credit_wei[msg.sender] = 0
    self.open_wei -= amount_wei
    log DiagnosisCreditPaid(account=msg.sender, amount_wei=amount_wei)
    raw_call(msg.sender, b"", value=amount_wei)


@external
@view
def model_offer(offer_id: uint256) -> Offer:
    """
    @notice An offer; all zero if there is none of this number.
    """
    return self.offers[offer_id]


@external
@view
def query(query_id: bytes32) -> Record:
    """
    @notice Where a query stands; all zero if there is none of this id.
    """
    found: Query = self.queries[query_id]
    terms: Terms = self._terms(query_id)
    return Record(
        hospital=found.hospital,
        offer_id=terms.offer_id,
        images=terms.images,
        audits=terms.audits,
        threshold=terms.threshold,
        state=convert(found.progress & 255, uint8),
        matches=self._matches(query_id),
        deadline=found.progress >> 16,
    )


@internal
@view
def _check_answers(
    query_id: bytes32,
    wanted: uint256,
    images: uint256,
    answers: DynArray[bytes32, 128],
    reports: bytes32,
    us: DynArray[bytes32, 128],
    ys: DynArray[bytes32, 128],
):
    # `wanted`: bit j is set where u_j and y_j are opened now. All must be what step 2 committed to.
    bound: bytes32 = keccak256(abi_encode(keccak256(abi_encode(answers)), reports))
    assert bound == self.queries[query_id].answers, "diagnosis: other answers than given"
    assert len(answers) == images and len(us) == len(ys), "diagnosis: not an answer for each image"
    count: uint256 = 0
    for j: uint256 in range(images, bound=128):
        if (wanted >> j) & 1 == 1:
            assert count < len(us), "diagnosis: not every answer"
            opened: bytes32 = keccak256(abi_encode(ANSWER_TAG, us[count], ys[count]))
            assert opened == answers[j], "diagnosis: another answer than given"
            count += 1
    assert count == len(us), "diagnosis: not every answer"


@internal
@view
def _both_active(query_id: bytes32) -> bool:
    hospital: bool = staticcall REGISTRY.is_active(self.queries[query_id].hospital, registry.HOSPITAL)
    return hospital and staticcall REGISTRY.is_active(self._server(query_id), registry.SERVER)


@internal
@view
def _both_bound(query_id: bytes32) -> bool:
    # Each may act, or could if it had not left of its own accord.
    hospital: address = self.queries[query_id].hospital
    server: address = self._server(query_id)
    if not staticcall REGISTRY.is_active(hospital, registry.HOSPITAL):
        if not staticcall REGISTRY.has_left(hospital):
            return False
    if staticcall REGISTRY.is_active(server, registry.SERVER):
        return True
    return staticcall REGISTRY.has_left(server)


@internal
@view
def _check_server(query_id: bytes32, state: uint8, in_time: bool):
    assert msg.sender == self._server(query_id), "diagnosis: not the server"
    self._check_state(query_id, state, in_time)


@internal
@view
def _check_hospital(query_id: bytes32, state: uint8, in_time: bool):
    assert msg.sender == self.queries[query_id].hospital, "diagnosis: not the hospital"
    self._check_state(query_id, state, in_time)


@internal
@view
def _check_state(query_id: bytes32, state: uint8, in_time: bool):
    progress: uint256 = self.queries[query_id].progress
    assert progress & 255 == convert(state, uint256), "diagnosis: not the time for this step"
    assert not in_time or block.timestamp < progress >> 16, "diagnosis: too late"


@internal
@view
def _terms(query_id: bytes32) -> Terms:
    terms: uint256 = self.queries[query_id].terms
    return Terms(
        offer_id=terms >> 24,
        images=(terms >> 16) & 255,
        audits=(terms >> 8) & 255,
        threshold=terms & 255,
    )


@internal
@view
def _matches(query_id: bytes32) -> uint256:
    return (self.queries[query_id].progress >> 8) & 255


@internal
@view
def _server(query_id: bytes32) -> address:
    return self.offers[self.queries[query_id].terms >> 24].server


@internal
@view
def _price(query_id: bytes32) -> uint256:
    return self.offers[self.queries[query_id].terms >> 24].price_wei


@internal
@view
def _bond(query_id: bytes32) -> uint256:
    return self.offers[self.queries[query_id].terms >> 24].bond_wei


@internal
def _advance(query_id: bytes32, state: uint8, matches: uint256) -> uint256:
    deadline: uint256 = block.timestamp + STEP_SECONDS
    self.queries[query_id].progress = deadline << 16 | matches << 8 | convert(state, uint256)
    return deadline


@internal
def _close(query_id: bytes32, state: uint8, hospital_wei: uint256, server_wei: uint256, reason: String[128]):
    hospital: address = self.queries[query_id].hospital
    server: address = self._server(query_id)
    # the matches stay: the certificate of a model is made of them
    self.queries[query_id].progress = (self.queries[query_id].progress & (255 << 8)) | convert(state, uint256)
    self.credit_wei[hospital] += hospital_wei
    self.credit_wei[server] += server_wei
    log QueryClosed(
        query_id=query_id, state=state, hospital_wei=hospital_wei, server_wei=server_wei, reason=reason
    )
