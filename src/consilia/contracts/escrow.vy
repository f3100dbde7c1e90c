# pragma version 0.4.3
# pragma evm-version london
# pragma nonreentrancy on
"""
@title Other people's money (docs/contracts.md, section 3)
@notice Holds one pool of wei per deal. Only the controller, the contract that knows what was agreed, says who
        gets how much; only the receiver fetches it. A wei is at each moment in exactly one of three places:
        not yet shared, refundable to the funder, or somebody's unclaimed share; their sum over all deals is
        `open_wei`, and that is what this contract holds. (Wei forced in by selfdestruct belong to nobody.)
"""

import registry

event Funded:
    deal_id: indexed(uint256)
    funder: indexed(address)
    amount_wei: uint256

event SharesSet:
    deal_id: indexed(uint256)
    members: DynArray[address, 64]
    shares_wei: DynArray[uint256, 64]

event Released:
    deal_id: indexed(uint256)
    amount_wei: uint256

event Claimed:
    deal_id: indexed(uint256)
    member: indexed(address)
    amount_wei: uint256

event Refunded:
    deal_id: indexed(uint256)
    funder: indexed(address)
    amount_wei: uint256

event UnclaimedWithdrawn:
    deal_id: indexed(uint256)
    funder: indexed(address)
    amount_wei: uint256

struct Pool:
    funder: address
    unshared_wei: uint256
    refundable_wei: uint256
    unclaimed_wei: uint256
    claim_deadline: uint256

# A quarter: long enough for a hospital's accountants, short enough that lost keys do not lock money for good.
CLAIM_SECONDS: public(constant(uint256)) = 90 * 86400
MAX_BATCH: constant(uint256) = 64

REGISTRY: immutable(registry.__interface__)
controller: public(immutable(address))

open_wei: public(uint256)
pools: HashMap[uint256, Pool]
shares_wei: HashMap[uint256, HashMap[address, uint256]]
share_is_set: HashMap[uint256, HashMap[address, bool]]


@deploy
def __init__(registry_: address, controller_: address):
    REGISTRY = registry.__interface__(registry_)
    controller = controller_


@external
@payable
def fund(deal_id: uint256, funder: address):
    """
    @notice Opens the pool of a deal with the wei sent along (it may be none).
    """
    assert msg.sender == controller, "escrow: not the controller"
    assert funder != empty(address), "escrow: no funder"
    assert self.pools[deal_id].funder == empty(address), "escrow: deal already funded"
    self.pools[deal_id].funder = funder
    self.pools[deal_id].unshared_wei = msg.value
    self.open_wei += msg.value
    log Funded(deal_id=deal_id, funder=funder, amount_wei=msg.value)


@external
def share(deal_id: uint256, members: DynArray[address, MAX_BATCH], amounts_wei: DynArray[uint256, MAX_BATCH]):
    """
    @notice Sets the shares of some members, each once. Together they never exceed what is unshared.
    """
    assert msg.sender == controller, "escrow: not the controller"
    assert len(members) == len(amounts_wei), "escrow: lengths differ"
    total_wei: uint256 = 0
    for i: uint256 in range(len(members), bound=MAX_BATCH):
        assert not self.share_is_set[deal_id][members[i]], "escrow: share already set"
        self.share_is_set[deal_id][members[i]] = True
        self.shares_wei[deal_id][members[i]] = amounts_wei[i]
        total_wei += amounts_wei[i]
    assert total_wei <= self.pools[deal_id].unshared_wei, "escrow: shares exceed the pool"
    self.pools[deal_id].unshared_wei -= total_wei
    self.pools[deal_id].unclaimed_wei += total_wei
    self.pools[deal_id].claim_deadline = block.timestamp + CLAIM_SECONDS
    log SharesSet(deal_id=deal_id, members=members, shares_wei=amounts_wei)


@external
def release(deal_id: uint256, amount_wei: uint256):
    """
    @notice Lets the funder have back what nobody can earn any more.
    """
    assert msg.sender == controller, "escrow: not the controller"
    assert amount_wei <= self.pools[deal_id].unshared_wei, "escrow: release exceeds the pool"
    self.pools[deal_id].unshared_wei -= amount_wei
    self.pools[deal_id].refundable_wei += amount_wei
    log Released(deal_id=deal_id, amount_wei=amount_wei)


@external
def claim(deal_id: uint256):
    """
    @notice A member fetches its share. It may do so until the funder has withdrawn what was left unclaimed.
    """
    amount_wei: uint256 = self.shares_wei[deal_id][msg.sender]
    assert amount_wei > 0, "escrow: nothing to claim"
    assert amount_wei <= self.pools[deal_id].unclaimed_wei, "escrow: withdrawn by the funder"
    self.shares_wei[deal_id][msg.sender] = 0
    self.pools[deal_id].unclaimed_wei -= amount_wei
    log Claimed(deal_id=deal_id, member=msg.sender, amount_wei=amount_wei)
    self._pay(msg.sender, amount_wei)


@external
def refund(deal_id: uint256):
    """
    @notice The funder fetches what was released to it.
    """
    self._only_funder(deal_id)
    amount_wei: uint256 = self.pools[deal_id].refundable_wei
    assert amount_wei > 0, "escrow: nothing to refund"
    self.pools[deal_id].refundable_wei = 0
    log Refunded(deal_id=deal_id, funder=msg.sender, amount_wei=amount_wei)
    self._pay(msg.sender, amount_wei)


@external
def withdraw_unclaimed(deal_id: uint256):
    """
    @notice The funder takes back shares that nobody fetched in the claim period. Only once the whole pool was
            shared: a funder that underpays gains nothing by it.
    """
    self._only_funder(deal_id)
    amount_wei: uint256 = self.pools[deal_id].unclaimed_wei
    assert amount_wei > 0, "escrow: nothing to withdraw"
    assert self.pools[deal_id].unshared_wei == 0, "escrow: pool not wholly shared"
    assert block.timestamp >= self.pools[deal_id].claim_deadline, "escrow: claim period still runs"
    self.pools[deal_id].unclaimed_wei = 0
    log UnclaimedWithdrawn(deal_id=deal_id, funder=msg.sender, amount_wei=amount_wei)
    self._pay(msg.sender, amount_wei)


@external
@view
def pool(deal_id: uint256) -> Pool:
    """
    @notice Where the wei of a deal are.
    """
    return self.pools[deal_id]


@external
@view
def share_wei(deal_id: uint256, member: address) -> uint256:
    """
    @notice What a member can claim now.
    """
    if self.shares_wei[deal_id][member] > self.pools[deal_id].unclaimed_wei:
        return 0  # the funder has withdrawn it
    return self.shares_wei[deal_id][member]


@external
@view
def has_share(deal_id: uint256, member: address) -> bool:
    """
    @notice Whether a member's share was set, claimed or not.
    """
    return self.share_is_set[deal_id][member]


@internal
def _only_funder(deal_id: uint256):
    assert msg.sender == self.pools[deal_id].funder, "escrow: not the funder"


@internal
def _pay(receiver: address, amount_wei: uint256):
    # A stolen key whose member was suspended fetches nothing: the money waits until the member is active again.
    assert staticcall REGISTRY.in_good_standing(receiver), "escrow: not an active member"
    self.open_wei -= amount_wei
    raw_call(receiver, b"", value=amount_wei)
