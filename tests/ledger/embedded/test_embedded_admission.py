"""Who may mine follows the registry from the block after its decision, on every branch by its own history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consilia.errors import ChainError
from consilia.ledger.contracts import contract_abi
from consilia.ledger.deployment import Founder, contract_address, sign_founder
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.replay import replay
from consilia.ledger.embedded.rpc import ChainMethods
from consilia.ledger.embedded.transaction import Transaction, decode_transaction
from consilia.ledger.registry import NOBODY, Application, Kind
from consilia.values import Digest, Role
from tests.ledger.embedded.members import (
    CHAIN_ID,
    COINBASES,
    KEYS,
    Consortium,
    extend,
    genesis,
    sealed,
    sign,
    sign_as,
    work,
)

REGISTRY = contract_address(KEYS[0].address, 0)
FAR_FUTURE = 2**40
REGISTRY_GAS = 8_000_000


def founder(index: int, role: Role = Role.HOSPITAL, valid_to: int = FAR_FUTURE) -> Founder:
    record: dict[str, Any] = {"recipient_key": bytes([index + 1]) * 32, "role": role}
    record |= {"certificate_digest": Digest.of(b""), "valid_from": 0, "valid_to": valid_to}
    signature = sign_founder(KEYS[index], **record, chain_id=CHAIN_ID, registry=REGISTRY)
    return Founder(account=KEYS[index].address, signature=signature, **record)


def deployment(*founders: Founder) -> Transaction:
    """The transaction that makes the registry; the genesis names its place."""
    listed = [tuple(vars(item).values()) for item in founders]
    data = contract_abi("registry").deployment(listed)
    return decode_transaction(sign(0, 0, data=data, gas=REGISTRY_GAS))


def with_registry(*miners: int) -> Genesis:
    return genesis(registry=REGISTRY, miners=tuple(KEYS[index].address for index in miners))


def foreign_block(chain: Chain, index: int) -> Any:
    """A block with honest work by hospital `index`, whether it may or not."""
    return sealed(chain, chain.draft((), COINBASES[index]))


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Consortium]:
    made = Consortium(tmp_path, with_registry(0, 1))
    yield made
    made.close()


def test_the_founders_list_holds_until_the_registry_is_there(town: Consortium) -> None:
    chain = town.chain("a")
    extend(chain, index=1)
    assert chain.admission.miners_at(chain.head.header) == tuple(COINBASES[:2])
    with pytest.raises(ChainError, match="not an admitted miner"):
        chain.import_block(foreign_block(chain, 2))


def test_the_block_that_deploys_is_sealed_by_the_old_rule_and_its_child_by_the_new(town: Consortium) -> None:
    chain = town.chain("a")
    extend(chain, [deployment(founder(0), founder(2), founder(3, Role.SERVER))], index=1)
    assert chain.file.stored(chain.head.header.hash).receipts
    for refused in (1, 3):  # the one is not in the registry, the other no hospital
        with pytest.raises(ChainError, match="not an admitted miner"):
            chain.import_block(foreign_block(chain, refused))
    assert chain.import_block(foreign_block(chain, 2)) is not None
    assert chain.admission.miners_at(chain.head.header) == (COINBASES[0], COINBASES[2])


def test_each_branch_is_judged_by_its_own_history(town: Consortium) -> None:
    chain, other = town.chain("a"), town.chain("b")
    fork = [extend(other, index=1) for _ in range(2)]
    extend(chain, [deployment(founder(0), founder(2))])
    for block in fork:  # hospital 1 is out on the one branch, and in on the other, whichever is the head
        assert chain.import_block(block) is not None


def test_the_replay_judges_as_the_node_did(town: Consortium) -> None:
    chain = town.chain("a")
    extend(chain, [deployment(founder(0), founder(2))], index=1)
    extend(chain, index=2)
    chain.close()
    assert replay(chain.file.path, town.genesis).blocks_by_miner == {KEYS[1].address: 1, KEYS[2].address: 1}


def test_validity_ends_the_right_to_mine_unless_nobody_would_be_left(tmp_path: Path) -> None:
    rules = with_registry(0)
    now = rules.timestamp + 10
    clock = [now * 1000]
    town = Consortium(tmp_path, rules, clock_ms=lambda: clock[0])
    chain = town.chain("a")
    extend(chain, [deployment(founder(0, valid_to=now + 100), founder(1, valid_to=now + 200))])
    for seconds, admitted in ((100, (1,)), (200, (0, 1))):
        # the parent's time decides: its own child may still be sealed by whoever was valid then
        clock[0] = (now + seconds) * 1000
        extend(chain, index=1)
        expected = tuple(COINBASES[index] for index in admitted)
        assert chain.admission.miners_at(chain.head.header) == expected
    town.close()


def test_a_false_registry_does_not_stop_the_chain(town: Consortium) -> None:
    chain = town.chain("a")
    code = bytes.fromhex("6001600c60003960016000f300")  # a contract of one STOP
    extend(chain, [decode_transaction(sign(0, 0, data=code))])
    assert chain.admission.miners_at(chain.head.header) == tuple(COINBASES[:2])
    extend(chain, index=1)


def call(index: int, nonce: int, function: str, *arguments: Any) -> Transaction:
    """A member's call of the registry."""
    data = contract_abi("registry").call(function, *arguments)
    return decode_transaction(sign(index, nonce, to=REGISTRY, data=data))


def decided(kind: Kind, subject: int, nonce: int, proposal: int) -> list[Transaction]:
    """Hospital 0 proposes, hospital 1 and the server, number 3, agree: three of four."""
    propose = call(0, nonce + 1, "propose", int(kind), KEYS[subject].address)
    return [propose, *(call(voter, nonce, "vote", proposal) for voter in (1, 3))]


def test_a_suspended_hospitals_blocks_are_refused_from_the_next_block_on(town: Consortium) -> None:
    chain = town.chain("a")
    extend(chain, [deployment(*(founder(index) for index in range(3)), founder(3, Role.SERVER))])
    votes = decided(Kind.SUSPENSION, 2, nonce=0, proposal=1)
    early = foreign_block(chain, 2)  # its sister forks before the decision, and is as valid as ever
    extend(chain, votes, index=2)  # it even seals the block that decides
    with pytest.raises(ChainError, match="not an admitted miner"):
        chain.import_block(foreign_block(chain, 2))
    extend(chain)  # the heavier branch, whatever the hashes
    assert chain.import_block(early) is not None
    extend(chain, decided(Kind.LIFTING, 2, nonce=1, proposal=2))
    assert chain.import_block(foreign_block(chain, 2)) is not None


def test_a_suspended_hospital_cannot_mine_in_anothers_name(town: Consortium) -> None:
    """It has its node, its key, its work, and what the others signed for all to see; none of it makes a block."""
    chain = town.chain("a")
    extend(chain, [deployment(*(founder(index) for index in range(3)), founder(3, Role.SERVER))])
    theirs = extend(chain, index=1).header.miner_signature
    extend(chain, decided(Kind.SUSPENSION, 2, nonce=0, proposal=1))
    head, draft = chain.head, chain.draft((), COINBASES[1])
    own = sign_as(chain, draft.block.header, KEYS[2]).miner_signature
    for forged in (own, theirs, theirs[:65] + own[65:]):
        with pytest.raises(ChainError, match="expected the signature of"):
            chain.import_block(Block(work(replace(draft.block.header, miner_signature=forged)), ()))
    assert chain.head == head


def test_a_newcomer_mines_from_the_block_after_its_admission(town: Consortium) -> None:
    chain = town.chain("a")
    extend(chain, [deployment(founder(0), founder(1))])
    record = (
        KEYS[2].address,
        b"\x07" * 32,
        Role.HOSPITAL,
        Digest.of(b""),
        0,
        FAR_FUTURE,
        NOBODY,
        Digest.of(b""),
    )
    application = Application(*record)
    signature = application.sign(KEYS[2], CHAIN_ID, REGISTRY)
    propose = call(0, 1, "propose_application", record, signature, b"")
    extend(chain, [propose])
    with pytest.raises(ChainError, match="not an admitted miner"):
        chain.import_block(foreign_block(chain, 2))
    extend(chain, [call(1, 0, "vote", 1)])
    assert chain.import_block(foreign_block(chain, 2)) is not None
    assert chain.admission.miners_at(chain.head.header) == tuple(COINBASES[:3])
    town.chain("b").close()
    chain.close()
    assert replay(chain.file.path, town.genesis).blocks_by_miner[KEYS[2].address] == 1


def test_an_emergency_ends_by_the_parents_clock(tmp_path: Path) -> None:
    rules = with_registry(0)
    clock = [(rules.timestamp + 10) * 1000]
    town = Consortium(tmp_path, rules, clock_ms=lambda: clock[0])
    chain = town.chain("a")
    extend(chain, [deployment(*(founder(index) for index in range(3)), founder(3, Role.SERVER))])
    alarm = call(0, 1, "propose", int(Kind.EMERGENCY), KEYS[2].address)
    extend(chain, [alarm, call(1, 0, "vote", 1)])
    until = chain.head.header.timestamp + 14 * 86_400
    for moment, admitted in ((until - 1, False), (until, True)):
        clock[0] = moment * 1000
        extend(chain)
        assert (COINBASES[2] in chain.admission.miners_at(chain.head.header)) == admitted
    town.close()


def test_python_and_the_contract_say_the_same_of_a_members_standing(town: Consortium) -> None:
    """The chain reads the records and judges them itself; the contract is asked here what it thinks."""
    chain = town.chain("a")
    now = chain.head.header.timestamp
    founders = [founder(0), founder(1, valid_to=now + 10), founder(2), founder(3, Role.SERVER)]
    extend(chain, [deployment(*founders)])
    extend(chain, decided(Kind.SUSPENSION, 2, nonce=0, proposal=1))
    methods = ChainMethods(chain, None).table()
    for index in range(4):
        data = contract_abi("registry").call("is_active", KEYS[index].address, 1)
        request = {"to": REGISTRY, "data": "0x" + data.hex()}
        number = hex(chain.head.header.number)
        contract_says = int(str(methods["eth_call"](request, number)), 16) == 1
        assert chain.admission.may_mine(COINBASES[index], chain.head.header) == contract_says
