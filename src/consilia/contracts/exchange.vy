# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title An artifact against money (docs/contracts.md, section 4; docs/protocols/exchange.md)
@notice The envelope is in the store already; what changes hands is its 32-byte secret, behind a fresh number t.
        OPEN -> OFFERED -> CONFIRMED -> REVEALED -> PAID, and back to the buyer (REFUNDED) wherever the seller
        stops; states never go back. While a party is not an active hospital a deal goes no further until t is out,
        and anybody may end it without loss to either. A deadline is the first second at which it is too late. A wei is at each
        moment held for one open deal or credited to one account; `open_wei` is their sum.
"""

import registry
import training
import typed_data

event ArtifactRegistered:
    owner: indexed(address)
    root: indexed(bytes32)
    kind: uint8
    key_hash: bytes32
    size: uint256
    recipient_key: bytes32
    task_id: uint256
    round_index: uint256
    price_wei: uint256
    card: Bytes[8192]

event ArtifactWithdrawn:
    owner: indexed(address)
    root: indexed(bytes32)

event Attested:
    owner: indexed(address)
    root: indexed(bytes32)
    attester: indexed(address)
    key_hash: bytes32
    verdict: uint8
    note: String[256]

event Requested:
    deal_id: indexed(bytes32)
    owner: indexed(address)
    buyer: indexed(address)
    root: bytes32
    key_hash: bytes32
    task_id: uint256
    round_index: uint256
    arbiter: address
    price_wei: uint256
    bond_wei: uint256
    recipient_key: bytes32
    nonce: uint256
    deadline: uint256
    signature: Bytes[65]

event Offered:
    deal_id: indexed(bytes32)
    t_address: address
    message: Bytes[256]
    signature: Bytes[65]
    deadline: uint256

event Confirmed:
    deal_id: indexed(bytes32)
    deadline: uint256

event Revealed:
    deal_id: indexed(bytes32)
    t: uint256
    deadline: uint256

event Disputed:
    deal_id: indexed(bytes32)
    evidence: Bytes[256]
    deadline: uint256

event DealClosed:
    deal_id: indexed(bytes32)
    state: uint8
    buyer_wei: uint256
    seller_wei: uint256
    reason: String[128]

event CreditPaid:
    account: indexed(address)
    amount_wei: uint256

struct Artifact:
    key_hash: bytes32  # zero: never registered
    withdrawn: bool

struct Request:
    owner: address
    root: bytes32
    key_hash: bytes32
    task_id: uint256  # 0: registered here; else an update that the training contract took
    round_index: uint256
    arbiter: address
    price_wei: uint256
    bond_wei: uint256
    recipient_key: bytes32
    nonce: uint256
    deadline: uint256

struct Deal:
    buyer: address
    seller: address
    arbiter: address
    state: uint8
    deadline: uint256
    price_wei: uint256
    bond_wei: uint256
    t_address: address  # that of the key t

UPDATE: public(constant(uint8)) = 3
DATASET: public(constant(uint8)) = 5

OPEN: public(constant(uint8)) = 1
OFFERED: public(constant(uint8)) = 2
CONFIRMED: public(constant(uint8)) = 3
REVEALED: public(constant(uint8)) = 4
DISPUTED: public(constant(uint8)) = 5
PAID: public(constant(uint8)) = 6
REFUNDED: public(constant(uint8)) = 7

# Long enough for a process that is down over a night, short enough that nobody's money is stuck for long.
CONFIRM_SECONDS: public(constant(uint256)) = 86400
REVEAL_SECONDS: public(constant(uint256)) = 86400
DISPUTE_SECONDS: public(constant(uint256)) = 3 * 86400
RULING_SECONDS: public(constant(uint256)) = 14 * 86400
MAX_REQUEST_SECONDS: public(constant(uint256)) = 30 * 86400
MAX_VERDICT: constant(uint8) = 3
MAX_WEI: constant(uint256) = 2**128

NAME: constant(String[64]) = "Consilia exchange"
REQUEST_TYPE: constant(bytes32) = keccak256(
    "Request(address owner,bytes32 root,bytes32 keyHash,uint256 taskId,uint256 roundIndex,address arbiter,"
    "uint256 priceWei,uint256 bondWei,bytes32 recipientKey,uint256 nonce,uint256 deadline)"
)
OFFER_TYPE: constant(bytes32) = keccak256("Offer(bytes32 dealId,address tAddress,bytes32 messageDigest)")
ATTESTATION_TYPE: constant(bytes32) = keccak256(
    "Attestation(address attester,address owner,bytes32 root,bytes32 keyHash,uint8 verdict,bytes32 noteDigest)"
)
# The x coordinate of secp256k1's generator, whose y is even.
GENERATOR_X: constant(uint256) = 55066263022277343669578718895168534326250603453777594175500187360389116729240

REGISTRY: immutable(registry.__interface__)
TRAINING: immutable(training.__interface__)

open_wei: public(uint256)
credit_wei: public(HashMap[address, uint256])
nonces: public(HashMap[address, uint256])
artifacts: HashMap[address, HashMap[bytes32, Artifact]]
deals: HashMap[bytes32, Deal]


@deploy
def __init__(registry_: address, training_: address):
    REGISTRY = registry.__interface__(registry_)
    TRAINING = training.__interface__(training_)


@external
def register(
    kind: uint8,
    root: bytes32,
    key_hash: bytes32,
    size: uint256,
    recipient_key: bytes32,
    task_id: uint256,
    round_index: uint256,
    price_wei: uint256,
    card: Bytes[8192],
):
    """
    @notice Step 0: a hospital names an artifact of its own that others may ask for, and its price.
    @param key_hash keccak256 of the envelope's sigma * G (docs/formats/envelope.md).
    @param recipient_key What a data set is sealed to; empty for an update, whose recipients its task tells.
    @param task_id 0 for a data set; else the task that took the update, in the round `round_index`.
    @param card What a person should know of it, in canonical JSON.
    """
    assert staticcall REGISTRY.is_active(msg.sender, registry.HOSPITAL), "exchange: not an active hospital"
    assert kind == DATASET or kind == UPDATE, "exchange: unknown kind"
    assert (kind == UPDATE) == (task_id > 0), "exchange: kind and task differ"
    assert (kind == UPDATE) == (recipient_key == empty(bytes32)), "exchange: kind and recipient differ"
    assert task_id == 0 or self._handed_in(task_id, msg.sender), "exchange: no update in this task"
    assert root != empty(bytes32) and key_hash != empty(bytes32), "exchange: empty root or key hash"
    assert self.artifacts[msg.sender][root].key_hash == empty(bytes32), "exchange: already registered"
    self.artifacts[msg.sender][root].key_hash = key_hash
    log ArtifactRegistered(
        owner=msg.sender,
        root=root,
        kind=kind,
        key_hash=key_hash,
        size=size,
        recipient_key=recipient_key,
        task_id=task_id,
        round_index=round_index,
        price_wei=price_wei,
        card=card,
    )


@external
def withdraw(root: bytes32):
    """
    @notice The owner takes no more requests for an artifact, for good. Open deals go on.
    """
    assert self.artifacts[msg.sender][root].key_hash != empty(bytes32), "exchange: not your artifact"
    assert not self.artifacts[msg.sender][root].withdrawn, "exchange: already withdrawn"
    self.artifacts[msg.sender][root].withdrawn = True
    log ArtifactWithdrawn(owner=msg.sender, root=root)


@external
def attest(
    owner: address, root: bytes32, key_hash: bytes32, verdict: uint8, note: String[256], signature: Bytes[65]
):
    """
    @notice Somebody who has opened an artifact says what it found. Only who holds the envelope's secret can: the
            signature is the secret's own, and its address is the end of the key hash.
    @param key_hash Checked against the registration here; for an update that was not registered here, readers
           compare it with the training contract's event.
    """
    assert staticcall REGISTRY.in_good_standing(msg.sender), "exchange: not an active member"
    assert msg.sender != owner, "exchange: the owner cannot attest"
    assert verdict > 0 and verdict <= MAX_VERDICT, "exchange: unknown verdict"
    known: bytes32 = self.artifacts[owner][root].key_hash
    assert known == empty(bytes32) or known == key_hash, "exchange: another key hash is registered"
    statement: bytes32 = keccak256(
        abi_encode(ATTESTATION_TYPE, msg.sender, owner, root, key_hash, verdict, keccak256(note))
    )
    signer: address = typed_data._signer(typed_data._digest(NAME, statement), signature)
    key_address: address = convert(convert(key_hash, uint256) % 2**160, address)
    assert signer != empty(address) and signer == key_address, "exchange: not the secret's signature"
    log Attested(owner=owner, root=root, attester=msg.sender, key_hash=key_hash, verdict=verdict, note=note)


@external
@payable
def request(buyer: address, wanted: Request, signature: Bytes[65]) -> bytes32:
    """
    @notice Step 1: a buyer's signed wish, with the price. Anybody may bring it.
    @return The deal's id: the digest that the buyer signed, so it is of this chain, contract and nonce alone.
    """
    assert block.timestamp < wanted.deadline, "exchange: request out of date"
    assert wanted.deadline <= block.timestamp + MAX_REQUEST_SECONDS, "exchange: deadline too far"
    assert wanted.nonce == self.nonces[buyer], "exchange: nonce already used"
    deal_id: bytes32 = typed_data._digest(NAME, keccak256(abi_encode(REQUEST_TYPE, wanted)))
    signer: address = typed_data._signer(deal_id, signature)
    assert signer != empty(address) and signer == buyer, "exchange: not the buyer's signature"
    assert msg.value == wanted.price_wei, "exchange: not the price signed"
    assert wanted.price_wei < MAX_WEI and wanted.bond_wei < MAX_WEI, "exchange: too much money"
    assert staticcall REGISTRY.is_active(buyer, registry.HOSPITAL), "exchange: not an active hospital"
    assert staticcall REGISTRY.is_active(wanted.owner, registry.HOSPITAL), "exchange: seller not active"
    assert buyer != wanted.owner, "exchange: buyer is the owner"
    assert wanted.recipient_key != empty(bytes32), "exchange: empty recipient key"
    self._check_arbiter(wanted.arbiter, buyer, wanted.owner)
    self._check_artifact(wanted)
    self.nonces[buyer] += 1
    self.open_wei += msg.value
    self.deals[deal_id] = Deal(
        buyer=buyer,
        seller=wanted.owner,
        arbiter=wanted.arbiter,
        state=OPEN,
        deadline=wanted.deadline,
        price_wei=wanted.price_wei,
        bond_wei=wanted.bond_wei,
        t_address=empty(address),
    )
    log Requested(
        deal_id=deal_id,
        owner=wanted.owner,
        buyer=buyer,
        root=wanted.root,
        key_hash=wanted.key_hash,
        task_id=wanted.task_id,
        round_index=wanted.round_index,
        arbiter=wanted.arbiter,
        price_wei=wanted.price_wei,
        bond_wei=wanted.bond_wei,
        recipient_key=wanted.recipient_key,
        nonce=wanted.nonce,
        deadline=wanted.deadline,
        signature=signature,
    )
    return deal_id


@external
def deny(deal_id: bytes32, reason: String[128]):
    """
    @notice Step 2: the seller does not want to; the buyer has its money back.
    """
    assert msg.sender == self.deals[deal_id].seller, "exchange: not the seller"
    assert self.deals[deal_id].state == OPEN, "exchange: not open"
    self._close(deal_id, REFUNDED, self.deals[deal_id].price_wei, 0, reason)


@external
@payable
def offer(deal_id: bytes32, t_address: address, message: Bytes[256], signature: Bytes[65]):
    """
    @notice Step 2: the seller posts s^ = sigma + t, sealed to the buyer, and its bond.
    @param signature The seller's over (deal, t_address, SHA-256 of the message): part of the buyer's receipt.
    """
    deal: Deal = self.deals[deal_id]
    assert msg.sender == deal.seller, "exchange: not the seller"
    assert deal.state == OPEN, "exchange: not open"
    assert block.timestamp < deal.deadline, "exchange: too late"
    assert self._both_active(deal), "exchange: a party is not an active hospital"
    assert msg.value == deal.bond_wei, "exchange: not the bond signed"
    assert t_address != empty(address), "exchange: no t"
    statement: bytes32 = keccak256(abi_encode(OFFER_TYPE, deal_id, t_address, sha256(message)))
    signer: address = typed_data._signer(typed_data._digest(NAME, statement), signature)
    assert signer == msg.sender, "exchange: not the seller's signature"
    self.open_wei += msg.value
    self.deals[deal_id].t_address = t_address
    deadline: uint256 = self._advance(deal_id, OFFERED, CONFIRM_SECONDS)
    log Offered(
        deal_id=deal_id, t_address=t_address, message=message, signature=signature, deadline=deadline
    )


@external
def decline(deal_id: bytes32, reason: String[128]):
    """
    @notice Step 3: the buyer finds the offer false, or has thought better of it; each side has its own back.
    """
    deal: Deal = self.deals[deal_id]
    assert msg.sender == deal.buyer, "exchange: not the buyer"
    assert deal.state == OFFERED, "exchange: not offered"
    self._close(deal_id, REFUNDED, deal.price_wei, deal.bond_wei, reason)


@external
def confirm(deal_id: bytes32):
    """
    @notice Step 3: the buyer has checked s^ * G == S + T: the t of this offer must give it the registered secret.
    """
    deal: Deal = self.deals[deal_id]
    assert msg.sender == deal.buyer, "exchange: not the buyer"
    assert deal.state == OFFERED, "exchange: not offered"
    assert block.timestamp < deal.deadline, "exchange: too late"
    assert self._both_active(deal), "exchange: a party is not an active hospital"
    deadline: uint256 = self._advance(deal_id, CONFIRMED, REVEAL_SECONDS)
    log Confirmed(deal_id=deal_id, deadline=deadline)


@external
def reveal(deal_id: bytes32, t: uint256):
    """
    @notice Step 4: the seller opens t. Only the t of the offer passes; to everybody but the buyer it is noise.
            To a buyer that was suspended meanwhile the data must not go any more.
    """
    deal: Deal = self.deals[deal_id]
    assert msg.sender == deal.seller, "exchange: not the seller"
    assert deal.state == CONFIRMED, "exchange: not confirmed"
    assert block.timestamp < deal.deadline, "exchange: too late"
    assert self._both_active(deal), "exchange: a party is not an active hospital"
    assert t > 0 and t < typed_data.ORDER, "exchange: t out of range"
    assert self._address_of(t) == deal.t_address, "exchange: another t was offered"
    deadline: uint256 = self._advance(deal_id, REVEALED, DISPUTE_SECONDS)
    log Revealed(deal_id=deal_id, t=t, deadline=deadline)


@external
@payable
def dispute(deal_id: bytes32, evidence: Bytes[256]):
    """
    @notice Step 5: the buyer says that the artifact does not open to what was registered; its bond is at stake.
            A suspended one may: else whoever cheats it could have it suspended and be paid.
    @param evidence s^, sealed to the arbiter, who can check it against t and the key hash.
    """
    deal: Deal = self.deals[deal_id]
    assert msg.sender == deal.buyer, "exchange: not the buyer"
    assert deal.state == REVEALED, "exchange: not revealed"
    assert block.timestamp < deal.deadline, "exchange: too late"
    assert msg.value == deal.bond_wei, "exchange: not the bond signed"
    self.open_wei += msg.value
    deadline: uint256 = self._advance(deal_id, DISPUTED, RULING_SECONDS)
    log Disputed(deal_id=deal_id, evidence=evidence, deadline=deadline)


@external
def rule(deal_id: bytes32, for_buyer: bool, reason: String[128]):
    """
    @notice Step 5: the arbiter has opened the artifact itself; who was wrong loses its bond to the other.
    """
    deal: Deal = self.deals[deal_id]
    assert msg.sender == deal.arbiter, "exchange: not the arbiter"
    assert deal.state == DISPUTED, "exchange: not disputed"
    assert block.timestamp < deal.deadline, "exchange: too late"
    assert staticcall REGISTRY.in_good_standing(msg.sender), "exchange: not an active member"
    if for_buyer:
        self._close(deal_id, REFUNDED, deal.price_wei + 2 * deal.bond_wei, 0, reason)
    else:
        self._close(deal_id, PAID, 0, deal.price_wei + 2 * deal.bond_wei, reason)


@external
def settle(deal_id: bytes32):
    """
    @notice Step 5: the seller is paid: by the buyer at once, by anybody when the time to dispute is over, or when
            the arbiter did not rule in time, for t is proven and the complaint is not.
    """
    deal: Deal = self.deals[deal_id]
    late: bool = block.timestamp >= deal.deadline
    if deal.state == REVEALED:
        assert late or msg.sender == deal.buyer, "exchange: the buyer may still dispute"
        self._close(deal_id, PAID, 0, deal.price_wei + deal.bond_wei, "")
    else:
        assert deal.state == DISPUTED, "exchange: nothing to settle"
        assert late, "exchange: the arbiter may still rule"
        self._close(deal_id, PAID, deal.bond_wei, deal.price_wei + deal.bond_wei, "no ruling")


@external
def refund(deal_id: bytes32):
    """
    @notice Anybody ends a deal that went no further in time. Who confirmed and saw no t gets the seller's bond too.
            A deal of a party that is not an active hospital ends at any time, and each side has its own back; but
            for a seller that leaves while it owes its t, that is silence.
    """
    deal: Deal = self.deals[deal_id]
    assert deal.state >= OPEN and deal.state <= CONFIRMED, "exchange: nothing to refund"
    if not self._both_bound(deal):
        bond_wei: uint256 = deal.bond_wei if deal.state > OPEN else 0
        self._close(deal_id, REFUNDED, deal.price_wei, bond_wei, "party not active")
        return
    assert block.timestamp >= deal.deadline, "exchange: still in time"
    if deal.state == OPEN:
        self._close(deal_id, REFUNDED, deal.price_wei, 0, "no offer")
    elif deal.state == OFFERED:
        self._close(deal_id, REFUNDED, deal.price_wei, deal.bond_wei, "no confirmation")
    else:
        self._close(deal_id, REFUNDED, deal.price_wei + deal.bond_wei, 0, "no reveal")


@external
def claim():
    """
    @notice A member fetches all that is credited to it.
    """
    amount_wei: uint256 = self.credit_wei[msg.sender]
    assert amount_wei > 0, "exchange: nothing to claim"
    # A stolen key whose member was suspended fetches nothing: the money waits until the member is active again.
    assert staticcall REGISTRY.in_good_standing(msg.sender), "exchange: not an active member"
    self.credit_wei[msg.sender] = 0
    self.open_wei -= amount_wei
    log CreditPaid(account=msg.sender, amount_wei=amount_wei)
    raw_call(msg.sender, b"", value=amount_wei)


@external
@view
def artifact(owner: address, root: bytes32) -> Artifact:
    """
    @notice What is registered here of an artifact; all zero if it is not.
    """
    return self.artifacts[owner][root]


@external
@view
def deal(deal_id: bytes32) -> Deal:
    """
    @notice The state of a deal; all zero if there is none of this id.
    """
    return self.deals[deal_id]


@internal
@view
def _handed_in(task_id: uint256, hospital: address) -> bool:
    enrolment: training.Enrolment = staticcall TRAINING.enrolment(task_id, hospital)
    return enrolment.updates > 0


@internal
@view
def _check_artifact(wanted: Request):
    known: Artifact = self.artifacts[wanted.owner][wanted.root]
    if known.key_hash == empty(bytes32):
        # The training contract keeps roots in its events alone. Whether this update is among them the buyer has
        # looked up before it signed, and the arbiter will; the contract sees that there are updates at all.
        assert wanted.task_id > 0, "exchange: no such artifact"
        assert self._handed_in(wanted.task_id, wanted.owner), "exchange: no update in this task"
    else:
        assert known.key_hash == wanted.key_hash, "exchange: another key hash is registered"
        assert not known.withdrawn, "exchange: artifact withdrawn"


@internal
@view
def _check_arbiter(arbiter: address, buyer: address, seller: address):
    assert arbiter != buyer and arbiter != seller, "exchange: arbiter is a party"
    auditor: bool = staticcall REGISTRY.is_active(arbiter, registry.AUDITOR)
    assert auditor or staticcall REGISTRY.is_active(arbiter, registry.SERVER), "exchange: no such arbiter"


@internal
@view
def _both_active(deal: Deal) -> bool:
    buyer: bool = staticcall REGISTRY.is_active(deal.buyer, registry.HOSPITAL)
    return buyer and staticcall REGISTRY.is_active(deal.seller, registry.HOSPITAL)


@internal
@view
def _both_bound(deal: Deal) -> bool:
    # Each may act, or the seller could if it had not left of its own accord while its buyer waits for t.
    if self._both_active(deal):
        return True
    owes_t: bool = deal.state == CONFIRMED and staticcall REGISTRY.has_left(deal.seller)
    return owes_t and staticcall REGISTRY.is_active(deal.buyer, registry.HOSPITAL)


@internal
@pure
def _address_of(t: uint256) -> address:
    # ecrecover computes (s * R - z * G) / r. With z = 0, R = G, r = G's x and s = t * r that is t * G.
    return ecrecover(empty(bytes32), 27, GENERATOR_X, uint256_mulmod(t, GENERATOR_X, typed_data.ORDER))


@internal
def _advance(deal_id: bytes32, state: uint8, seconds: uint256) -> uint256:
    deadline: uint256 = block.timestamp + seconds
    self.deals[deal_id].state = state
    self.deals[deal_id].deadline = deadline
    return deadline


@internal
def _close(deal_id: bytes32, state: uint8, buyer_wei: uint256, seller_wei: uint256, reason: String[128]):
    self.deals[deal_id].state = state
    self.credit_wei[self.deals[deal_id].buyer] += buyer_wei
    self.credit_wei[self.deals[deal_id].seller] += seller_wei
    log DealClosed(deal_id=deal_id, state=state, buyer_wei=buyer_wei, seller_wei=seller_wei, reason=reason)
