"""Exchanges end to end: what is sold is what was registered, and whoever cheats or falls silent gains nothing."""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.crypto import envelope
from consilia.crypto.blinding import derive_t, unblind
from consilia.errors import InputError, TaskFailedError, VerificationError
from consilia.imaging.readers import read_dataset
from consilia.ledger.registry import Kind
from consilia.protocols.exchange import DealState, Verdict
from consilia.protocols.receipt import verify_receipt
from consilia.roles.audit.home import audit
from consilia.roles.exchange.attestation import attest, attest_update
from consilia.roles.exchange.deals import Exchange, Terms
from consilia.roles.exchange.fetching import await_delivery, take_in
from consilia.roles.progress import silent
from consilia.settings.sections import ExchangeSection
from consilia.values import Digest
from tests.consortium import Consortium, consortium
from tests.roles.trading import BOND_WEI, PATIENT, PRICE_WEI, Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer and an arbiter."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


def owned_wei(trade: Trade) -> list[int]:
    return [trade.town.hospitals[0].ledger.balance_wei(address) for address in trade.town.addresses]


# The ordinary course


def test_a_data_set_is_sold_paid_for_and_used(trade: Trade) -> None:
    root = trade.register()
    listing = trade.buyer.log().find(str(root)[:10])
    card = listing.described
    assert card is not None and card.dataset is not None
    assert (card.dataset.images, card.dataset.patients) == (4, 2)
    assert card.dataset.boxes_by_category == (("lesion", 4),)
    assert listing.price_wei == PRICE_WEI and listing.size > 4 * 48 * 64
    before = owned_wei(trade)
    deal = trade.run(trade.request(root))
    assert deal.state is DealState.PAID and (deal.buyer_wei, deal.seller_wei) == (0, PRICE_WEI + BOND_WEI)
    gained = [after - was for after, was in zip(owned_wei(trade), before, strict=True)]
    assert gained[0] > 0 > gained[1]  # less gas, of which nobody else's money is made
    trade.conserved()
    audit(trade.town.home, silent)
    home = trade.town.home / "hospital-2"
    target = take_in(trade.buyer, home, deal, train=False)
    assert target == take_in(trade.buyer, home, deal, train=False)  # again after a crash
    provenance = json.loads((target / "provenance.json").read_text())
    assert provenance["owner"] == deal.seller and provenance["root"] == str(root)
    assert provenance["deal"] == str(deal.deal_id)
    assert len(read_dataset(target)) == 4


def test_nothing_of_a_patient_leaves_the_hospital(trade: Trade) -> None:
    deal = trade.run(trade.request(trade.register()))
    folder = trade.buyer.delivered(deal)
    needle = PATIENT.encode()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 6  # four images, annotations, provenance
    assert not [path for path in files if needle in path.read_bytes() or PATIENT in path.name]
    chain = trade.town.home / "hospital-1" / "node" / "chain.sqlite"
    assert needle not in chain.read_bytes()
    assert needle not in b"".join(
        path.read_bytes() for path in (trade.town.home / "store").rglob("*") if path.is_file()
    )


def test_the_receipt_holds_offline_and_without_the_buyers_secrets(trade: Trade) -> None:
    deal = trade.run(trade.request(trade.register()))
    data = trade.buyer.receipt_file(deal).read_bytes()
    proven = verify_receipt(data)
    assert (proven.buyer, proven.owner, proven.root) == (deal.buyer, deal.seller, deal.request.root)
    assert proven.verdict is Verdict.AS_REGISTERED and proven.deal_id == deal.deal_id
    secret = trade.buyer.secret_of(deal)
    assert secret.hex().encode() not in data
    assert unblind(secret, bytes(32)) == secret  # what is looked for is the secret itself
    other = trade.run(trade.request(trade.register("chests", seed=8)))
    stranger = json.loads(trade.buyer.receipt_file(other).read_bytes())
    for part in ("request", "offer", "delivery"):
        forged = json.loads(data)
        forged[part] = stranger[part]
        text = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        with pytest.raises(VerificationError):
            verify_receipt(text)


def test_the_buyer_encrypts_again_and_finds_the_root_of_the_ledger(trade: Trade) -> None:
    """The source paper's check, by hand: the package, the secret and the owner's key give the registered root."""
    root = trade.register()
    deal = trade.run(trade.request(root))
    from consilia.roles.exchange.examination import place_of

    place = place_of(trade.buyer.log().find(str(root)), trade.town.deployment, {})
    secret = trade.buyer.secret_of(deal)
    plain = trade.town.home / "plain.tar"
    with trade.town.object_path(root).open("rb") as source, plain.open("wb") as target:
        envelope.open_with_secret(source, target, secret, place.recipients, place.context, root)
    with plain.open("rb") as source:
        assert envelope.reseal_root(source, secret, place.recipients, place.context) == root
    with tarfile.open(plain) as archive:  # any tar program reads it
        assert archive.getnames()[0] == "annotations.json"
    flipped = bytearray(plain.read_bytes())
    flipped[600] ^= 1
    plain.write_bytes(flipped)
    with plain.open("rb") as source:
        assert envelope.reseal_root(source, secret, place.recipients, place.context) != root


def test_an_update_of_a_task_is_sold(trade: Trade) -> None:
    town = trade.town
    town.start_server(max_hospitals=2)
    town.finish()
    listings = [item for item in trade.buyer.log().listings.values() if item.owner == town.addresses[0]]
    (listing,) = listings
    assert listing.price_wei is None and listing.kind.name == "UPDATE"
    deal = trade.run(trade.buyer.request(listing, trade.terms))
    assert deal.state is DealState.PAID
    from tests.consortium import read_weights

    weights = read_weights(
        take_in(trade.buyer, town.home / "hospital-2", deal, train=False) / "update.safetensors"
    )
    assert float(weights["scale"]) == 1.5  # a half, and the seller's number
    proven = verify_receipt(trade.buyer.receipt_file(deal).read_bytes())
    assert proven.root == listing.root
    attest(trade.buyer.party, listing, trade.buyer.secret_of(deal), Verdict.AS_REGISTERED, "trains well")
    assert attest_update(town.server, str(listing.root), "was in the average") is Verdict.AS_REGISTERED
    attested = trade.seller.log().find(str(listing.root)).attestations
    assert [(item.attester, item.note) for item in attested] == [
        (town.addresses[1], "trains well"),
        (town.server_address, "was in the average"),
    ]
    assert not list((town.home / "server" / "work").glob("attested*"))  # what it looked at does not stay
    with pytest.raises(InputError, match="no update of a task of this server"):
        attest_update(town.server, str(trade.register()), "never opened it")


def test_an_update_that_training_never_took_is_no_offer(trade: Trade) -> None:
    town = trade.town
    town.start_server(max_hospitals=2)
    task = town.finish()
    trade.seller.contract.register(
        "a lie",
        kind=trade.seller.log().listings.popitem()[1].kind,
        root=Digest.of(b"never handed in"),
        key_hash=Digest.of(b"whatever"),
        size=1,
        recipient_key=bytes(32),
        task_id=task.task_id,
        round_index=0,
        price_wei=1,
        card=b"{}",
    )
    listing = trade.buyer.log().find(str(Digest.of(b"never handed in")))
    assert not listing.genuine and listing.described is None
    with pytest.raises(InputError):
        trade.buyer.request(listing, trade.terms)


# Who decides


def test_a_person_decides_where_the_policy_says_so(trade: Trade) -> None:
    trade.seller.policy = ExchangeSection()
    deal_id = trade.request(trade.register())
    trade.seller.advance()
    trade.seller.advance()
    assert trade.deal(deal_id).state is DealState.OPEN
    assert len(trade.said(0, "request waits for a person")) == 1
    with pytest.raises(InputError):
        trade.buyer.grant(trade.deal(deal_id), trade.buyer.log())
    log = trade.seller.log()
    trade.seller.grant(log.deals[deal_id], log)
    assert trade.deal(deal_id).state is DealState.OFFERED
    with pytest.raises(InputError):
        trade.seller.deny(trade.deal(deal_id), trade.seller.log(), "too late")


def test_a_person_denies(trade: Trade) -> None:
    trade.seller.policy = ExchangeSection()
    deal_id = trade.request(trade.register())
    log = trade.seller.log()
    trade.seller.deny(log.deals[deal_id], log, "ethics board")
    deal = trade.deal(deal_id)
    assert deal.state is DealState.REFUNDED and deal.reason == "ethics board" and deal.buyer_wei == PRICE_WEI
    with pytest.raises(TaskFailedError, match="ethics board"):
        await_delivery(trade.buyer, str(deal_id), 0)


@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"minimum_price_wei": PRICE_WEI + 1}, "price"),
        ({"kinds": ("update",)}, "dataset"),
        ({"buyers": ("0x" + "11" * 20,)}, "buyer"),
        ({"arbiters": ("0x" + "11" * 20,)}, "arbiter"),
        ({"maximum_bond_wei": BOND_WEI - 1}, "bond"),
    ],
)
def test_the_policy_denies_and_says_why(trade: Trade, policy: dict[str, object], named: str) -> None:
    trade.seller.policy = ExchangeSection.model_validate({"decide": "policy", **policy})
    deal = trade.run(trade.request(trade.register()))
    assert deal.state is DealState.REFUNDED and named in deal.reason


def test_nobody_gets_it_below_the_price_that_was_named(trade: Trade) -> None:
    root = trade.register()
    trade.terms = Terms(PRICE_WEI - 1, BOND_WEI, trade.town.server_address)
    deal = trade.run(trade.request(root))
    assert deal.state is DealState.REFUNDED and "price" in deal.reason


# Whoever falls silent


@pytest.mark.parametrize(
    ("state", "days", "reason", "buyer_wei", "seller_wei"),
    [
        (DealState.OPEN, 8, "no offer", PRICE_WEI, 0),
        (DealState.OFFERED, 2, "no confirmation", PRICE_WEI, BOND_WEI),
        (DealState.CONFIRMED, 2, "no reveal", PRICE_WEI + BOND_WEI, 0),
        (DealState.REVEALED, 4, "", 0, PRICE_WEI + BOND_WEI),
        (DealState.DISPUTED, 15, "no ruling", BOND_WEI, PRICE_WEI + BOND_WEI),
    ],
)
def test_whoever_vanishes_costs_the_other_nothing(
    trade: Trade, state: DealState, days: float, reason: str, buyer_wei: int, seller_wei: int
) -> None:
    deal_id = trade.deal_in(state)
    trade.let_pass(days)
    silent_is_buyer = state in (DealState.OFFERED, DealState.REVEALED)
    (trade.seller if silent_is_buyer else trade.buyer).advance()
    deal = trade.deal(deal_id)
    assert deal.state.over and deal.reason == reason
    assert (deal.buyer_wei, deal.seller_wei) == (buyer_wei, seller_wei)
    trade.seller.advance()
    trade.buyer.advance()
    assert trade.seller.contract.open_wei() == 0  # everybody has fetched its own
    trade.conserved()


@pytest.mark.parametrize("state", [DealState.OPEN, DealState.OFFERED, DealState.CONFIRMED])
def test_a_suspended_hospital_gets_nothing_and_loses_nothing(trade: Trade, state: DealState) -> None:
    """The other one ends what was open, in its next step, and fetches its own; what the suspended one is owed waits."""
    deal_id = trade.deal_in(state)
    trade.town.decide(Kind.SUSPENSION, 1)
    trade.seller.advance()
    trade.buyer.advance()
    deal = trade.deal(deal_id)
    assert deal.reason == "party not active" and not deal.t
    assert (deal.buyer_wei, deal.seller_wei) == (PRICE_WEI, 0 if state is DealState.OPEN else BOND_WEI)
    trade.seller.advance()
    assert trade.seller.contract.open_wei() == PRICE_WEI  # the seller has its bond
    trade.town.decide(Kind.LIFTING, 1)
    trade.buyer.advance()
    assert trade.seller.contract.open_wei() == 0
    assert not trade.said(1, "claim refused") and not trade.said(1, "exchange step refused")


def test_a_seller_that_leaves_is_a_seller_that_is_silent(three: Consortium) -> None:
    """Its buyer has confirmed and waits for t: when the day is over, it fetches the price and the bond."""
    trade = Trade(three, seller=2)
    deal_id = trade.deal_in(DealState.CONFIRMED)
    trade.seller.party.ledger.registry.leave("leave")
    trade.seller.advance()
    trade.buyer.advance()
    assert trade.deal(deal_id).state is DealState.CONFIRMED and not trade.deal(deal_id).t
    trade.let_pass(1)
    trade.buyer.advance()
    deal = trade.deal(deal_id)
    assert deal.reason == "no reveal" and (deal.buyer_wei, deal.seller_wei) == (PRICE_WEI + BOND_WEI, 0)
    trade.buyer.advance()
    assert trade.buyer.contract.open_wei() == 0
    assert not trade.said(2, "exchange step refused") and not trade.said(1, "exchange step refused")


def test_a_seller_who_is_late_keeps_its_t(trade: Trade) -> None:
    deal_id = trade.deal_in(DealState.CONFIRMED)
    left_seconds = trade.deal(deal_id).deadline - trade.town.clock.time()
    trade.let_pass((left_seconds - 300) / 86_400)
    trade.seller.advance()
    assert trade.deal(deal_id).state is DealState.CONFIRMED
    trade.let_pass(1)
    trade.buyer.advance()
    assert trade.deal(deal_id).reason == "no reveal"


def test_t_is_revealed_only_when_the_confirmation_is_deep(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal_id = trade.deal_in(DealState.CONFIRMED)
    monkeypatch.setenv("CONSILIA_LEDGER__CONFIRMATIONS", "3")
    careful = trade.restart(0)
    assert careful.log().deals[deal_id].state is DealState.OPEN  # as far as it believes the chain
    trade.town.node.mine()
    assert careful.advance().deals[deal_id].state is DealState.OFFERED
    assert trade.deal(deal_id).state is DealState.CONFIRMED and not trade.deal(deal_id).t
    trade.town.node.mine()
    worker = threading.Thread(target=careful.advance)
    worker.start()
    for _ in range(200):  # blocks go on being made until it has seen its own deep enough
        if not worker.is_alive():
            break
        trade.town.node.mine()
        worker.join(0.05)
    assert trade.deal(deal_id).state is DealState.REVEALED


# Whoever cheats


def test_a_false_offer_is_declined(trade: Trade) -> None:
    root = trade.register()
    state = trade.seller.party.state
    known = state.artifact("dataset/heads")
    assert known is not None
    state.keep_artifact("dataset/heads", replace(known, secret=b"\x01" * 32))
    deal = trade.run(trade.request(root))
    assert deal.state is DealState.REFUNDED and "another secret" in deal.reason
    assert (deal.buyer_wei, deal.seller_wei) == (PRICE_WEI, BOND_WEI)


def test_a_seller_whose_secret_opens_nothing_loses_its_bond(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    false = b"\x05" * 32
    honest = envelope.seal

    def seal(*arguments: object, **named: object) -> envelope.Sealed:
        sealed = honest(*arguments, **named)
        return replace(sealed, secret=false, key_hash=envelope.key_hash(false))

    monkeypatch.setattr("consilia.roles.artifacts.seal", seal)
    deal = trade.run(trade.request(trade.register()))
    assert deal.state is DealState.DISPUTED  # the buyer's program complains by itself
    assert trade.said(1, "opened")[0]["verdict"] == "does_not_open"
    receipt = verify_receipt(trade.buyer.receipt_file(deal).read_bytes())
    assert receipt.verdict is Verdict.DOES_NOT_OPEN
    trade.arbiter.advance()
    deal = trade.deal(deal.deal_id)
    assert deal.state is DealState.REFUNDED and deal.buyer_wei == PRICE_WEI + 2 * BOND_WEI


def test_a_seller_whose_card_lies_loses_its_bond(trade: Trade, monkeypatch: pytest.MonkeyPatch) -> None:
    from consilia.roles.exchange import datasets

    honest = datasets.pack
    monkeypatch.setattr(
        "consilia.roles.exchange.datasets.pack", lambda *arguments: replace(honest(*arguments), images=4000)
    )
    deal = trade.run(trade.request(trade.register()))
    assert deal.state is DealState.REVEALED  # a person looks at it first
    assert "card promises" in str(trade.said(1, "opened")[0]["reason"])
    with pytest.raises(TaskFailedError):
        take_in(trade.buyer, trade.town.home / "hospital-2", deal, train=False)
    trade.buyer.dispute(deal)
    trade.arbiter.advance()
    assert trade.deal(deal.deal_id).buyer_wei == PRICE_WEI + 2 * BOND_WEI


def test_a_buyer_who_complains_falsely_loses_its_bond(trade: Trade) -> None:
    deal_id = trade.deal_in(DealState.DISPUTED)
    trade.arbiter.advance()
    deal = trade.deal(deal_id)
    assert deal.state is DealState.PAID and deal.seller_wei == PRICE_WEI + 2 * BOND_WEI
    assert deal.reason == "it opens as registered"
    work = trade.town.home / "server" / "work"
    assert not list(work.glob("judged-*"))  # an arbiter keeps nothing


def test_a_complaint_without_evidence_is_lost(trade: Trade) -> None:
    deal_id = trade.deal_in(DealState.REVEALED)
    trade.buyer.contract.dispute("by hand", deal_id, bytes(112), BOND_WEI)
    trade.arbiter.advance()
    deal = trade.deal(deal_id)
    assert deal.state is DealState.PAID and "no evidence" in deal.reason


def test_a_store_that_swaps_two_objects_is_caught_before_the_money_moves(trade: Trade) -> None:
    first, second = trade.register(), trade.register("chests", seed=8)
    deal_id = trade.deal_in(DealState.OFFERED, first)
    trade.swap_objects(first, second)
    trade.buyer.advance()
    assert trade.deal(deal_id).state is DealState.OFFERED
    assert "damaged" in str(trade.said(1, "exchange step failed")[0]["reason"])
    trade.swap_objects(first, second)
    assert trade.run(deal_id).state is DealState.PAID


def test_a_store_that_swaps_or_loses_after_the_confirmation_changes_nothing(trade: Trade) -> None:
    first, second = trade.register(), trade.register("chests", seed=8)
    deal_id = trade.deal_in(DealState.CONFIRMED, first)
    trade.swap_objects(first, second)
    trade.town.lose_object(second)
    assert trade.run(deal_id).state is DealState.PAID


def test_no_two_deals_share_a_t(trade: Trade) -> None:
    """Were it otherwise, the t of the first would open the second unpaid."""
    root = trade.register()
    first = trade.deal(trade.deal_in(DealState.CONFIRMED, root))
    trade.let_pass(2)
    trade.buyer.advance()  # refunded: the seller fell silent
    second = trade.deal(trade.deal_in(DealState.REVEALED, root))
    assert first.deal_id != second.deal_id and first.t_address != second.t_address
    secret = bytes.fromhex(trade.seller.party.state.fact("exchange/secret") or "")
    assert int.from_bytes(derive_t(secret, second.deal_id), "big") == second.t
    blinded = trade.buyer._blinded(first)
    assert envelope.key_hash(unblind(blinded, second.t.to_bytes(32, "big"))) != first.request.key_hash


def test_an_attestation_needs_the_secret(trade: Trade) -> None:
    root = trade.register()
    listing = trade.buyer.log().find(str(root))
    from consilia.errors import TransactionRevertedError

    with pytest.raises(TransactionRevertedError, match="not the secret's signature"):
        attest(trade.buyer.party, listing, b"\x07" * 32, Verdict.AS_REGISTERED, "I never saw it")
    assert trade.buyer.log().find(str(root)).attestations == ()


# Whoever dies


class Killed(BaseException):
    """As kill -9: nobody catches it."""


SELLER_DIES = [("contract", "register"), ("contract", "offer"), ("contract", "reveal"), ("contract", "claim")]
SELLER_DIES += [
    ("party.state", "keep_artifact"),
    ("party.state", "remember"),
    ("party.state", "remember_once"),
]
BUYER_DIES = [("contract", "request"), ("contract", "confirm"), ("contract", "settle")]
BUYER_DIES += [("party.store", "get"), ("party.state", "remember"), ("party.state", "remember_once")]


def die_at(exchange: Exchange, part: str, method: str, after: bool) -> None:
    owner: object = exchange
    for name in part.split("."):
        owner = getattr(owner, name)
    honest = getattr(owner, method)

    def fatal(*arguments: object, **named: object) -> object:
        setattr(owner, method, honest)
        if after:
            honest(*arguments, **named)
        raise Killed(method)

    setattr(owner, method, fatal)


def sell(trade: Trade) -> None:
    """The whole exchange; whoever dies is started again on its home, and everybody goes on."""
    root = deal_id = None
    for _ in range(8):
        try:
            root = root or trade.register()
            deal_id = deal_id or trade.request(root)
            if trade.run(deal_id).state is DealState.PAID:
                return
        except Killed:
            trade.restart(0)
            trade.restart(1)
    raise AssertionError("it was never paid")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("index", "part", "method"),
    [(0, *where) for where in SELLER_DIES] + [(1, *where) for where in BUYER_DIES],
)
def test_a_party_that_dies_goes_on(trade: Trade, index: int, part: str, method: str, after: bool) -> None:
    die_at((trade.seller, trade.buyer)[index], part, method, after)
    sell(trade)
    log = trade.buyer.log()
    assert len(log.deals) == 1 and len(log.listings) == 1
    (deal,) = log.deals.values()
    trade.seller.advance()
    assert trade.seller.contract.open_wei() == 0
    assert verify_receipt(trade.buyer.receipt_file(deal).read_bytes()).verdict is Verdict.AS_REGISTERED
