"""No label and no diagnosis is on the ledger, in clear or guessable from public values: every byte is searched.

For a query of each end, and under every candidate; what a challenge opens is the one exception.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from consilia.ledger.rpc import Rpc, data_bytes, quantity
from consilia.protocols.code_book import encode_codes
from consilia.protocols.consultation import Query
from consilia.protocols.diagnosis import LABEL_TAG, QueryState
from consilia.protocols.findings import Codes, codes_of, codes_word, to_words
from consilia.values import Digest
from tests.consortium import Consortium, consortium
from tests.roles.asking import LESION, OTHER, Clinic, Seer, case, picture, wrong_half, wrong_place

BOOK = (40_000, LESION, OTHER, 65_535)
CANDIDATES: list[Codes] = [(), *[(code,) for code in BOOK], *itertools.combinations(BOOK[:3], 2)]


class Ledger:
    """All that anybody can read of a query: calldata, logs, the storage of the contract, and the raw chain file."""

    def __init__(self, town: Consortium, query_id: Digest) -> None:
        rpc = Rpc(town.url)
        calldata, logs = [], []
        for number in range(quantity(rpc.call("eth_blockNumber")) + 1):
            block: Any = rpc.call("eth_getBlockByNumber", hex(number), True)
            for transaction in block["transactions"]:
                if (transaction["to"] or "").lower() == town.deployment.diagnosis.lower():
                    calldata.append((transaction["hash"], data_bytes(transaction["input"])[4:]))
        found: Any = rpc.call(
            "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest", "address": town.deployment.diagnosis}
        )
        for log in found:
            told = b"".join(map(data_bytes, log["topics"])) + data_bytes(log["data"])
            if query_id in told:
                logs.append((log["transactionHash"], told))
        spoken = {transaction for transaction, _ in logs}
        self.calldata = [data for transaction, data in calldata if transaction in spoken]
        self.logs = [told for _, told in logs]
        self.storage = [
            data_bytes(rpc.call("eth_getStorageAt", town.deployment.diagnosis, hex(slot), "latest"))
            for slot in _slots(query_id)
        ]
        self.file = b"".join(
            path.read_bytes() for path in (town.home / "hospital-1" / "node").glob("chain.sqlite*")
        )

    def texts(self) -> list[bytes]:
        return [*self.calldata, *self.logs, *self.storage, self.file]

    def words(self) -> set[bytes]:
        """Every aligned word of 32 bytes."""
        texts = [*self.calldata, *self.logs, *self.storage]
        return {text[at : at + 32] for text in texts for at in range(0, len(text) - 31, 32)}


def _slots(query_id: Digest) -> Iterator[int]:
    """The first words of the contract, and those of the query's struct wherever Vyper has put the map."""
    for slot in range(12):
        yield slot
        first = int.from_bytes(keccak(slot.to_bytes(32, "big") + query_id), "big")
        yield from range(first, first + 9)


def given_away(ledger: Ledger, query_id: Digest, secrets: Iterable[bytes], hashed: set[bytes]) -> set[bytes]:
    """Every x or y of the ledger that is the hash of a candidate with one of these as its secret."""
    tried = [(codes_word(codes)).to_bytes(32, "big") for codes in CANDIDATES]
    found = set()
    for secret in secrets:
        for position in range(32):
            head = LABEL_TAG + query_id + position.to_bytes(32, "big") + secret
            found |= {digest for word in tried if (digest := keccak(head + word)) in hashed}
    return found


def in_clear(ledger: Ledger, needles: Iterable[bytes]) -> list[object]:
    """What is on the ledger as it is, or hashed with nothing: needles anywhere, candidates as words.

    No finding is the word zero, which many things are; `test_no_finding_is_no_word_more` looks for it.
    """
    found: list[object] = [needle for text in ledger.texts() for needle in needles if needle in text]
    words = ledger.words()
    for codes in CANDIDATES:
        as_it_is = {codes_word(codes).to_bytes(32, "big")} if codes else set()
        hashes = {function(form) for form in _forms(codes) for function in (keccak, Digest.of)}
        found += [codes] * bool((as_it_is | hashes) & words)
    return found


def secret_bytes(clinic: Clinic, query_id: Digest) -> list[bytes]:
    """Secrets, images, names and boxes of a query; of an image that was challenged r_j and boxes are public."""
    queries = clinic.hospital.log().queries
    shown = {box for query in queries.values() for j in _opened(query) for box in _boxes(clinic, query, j)}
    query = queries[query_id]
    own, answer = clinic.hospital.own(query), clinic.server._kept(query)
    secrets = [own.secrets.seed, answer.secret, *(image.pixels[:64] for image in own.images)]
    boxes: set[bytes] = set()
    for j in {*range(32)} - _opened(query):
        secrets += [own.secrets.label_secret(j), own.secrets.truth_salt(j)]
        boxes |= _boxes(clinic, query, j)
    names = [image.name.encode() for image in own.images]
    return [*secrets, *(item.hex().encode() for item in secrets), *(boxes - shown), *names]


def _opened(query: Query) -> set[int]:
    return {j for j in range(32) if query.challenged >> j & 1}


def _boxes(clinic: Clinic, query: Query, position: int) -> set[bytes]:
    """Codes and boxes, true and reported; few pixels have few boxes, so that one may be another image's too."""
    reported = clinic.server._kept(query).reports[position]
    words = {*clinic.hospital.own(query).truth_words(position), *to_words(reported)} - {0}
    return {(word & (1 << 80) - 1).to_bytes(10, "big") for word in words}


def _forms(codes: Codes) -> list[bytes]:
    word = codes_word(codes)
    return [encode_codes(codes), word.to_bytes(32, "big"), str(list(codes)).encode(), str(word).encode()]


RELEASED, HEALTHY, FAILED, CHALLENGED, DECLINED, EXPIRED = range(6)
ENDS = (
    QueryState.RELEASED,
    QueryState.RELEASED,
    QueryState.FAILED,
    QueryState.FAILED,
    QueryState.STOPPED,
    QueryState.STOPPED,
)

Run = tuple[Clinic, list[Digest]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A query of every end, one after the other on one ledger."""
    with pytest.MonkeyPatch.context() as patch, consortium(tmp_path_factory.mktemp("t"), patch, 1) as town:
        clinic = Clinic(town)
        asked = [_ask(clinic, end) for end in range(6)]
        clinic.settled()
        assert tuple(clinic.query(query_id).state for query_id in asked) == ENDS
        yield clinic, asked


def _ask(clinic: Clinic, end: int) -> Digest:
    images = case(seed=1000 + 4000 * end)
    if end == HEALTHY:  # the patient and all covers
        images = [
            replace(image, pixels=picture(number, healthy=True)[0]) if image.truth is None else image
            for number, image in enumerate(images)
        ]
    query_id = clinic.ask(images)
    clinic.seer.spoil = {FAILED: wrong_half, CHALLENGED: wrong_place}.get(end, Seer().spoil)
    clinic.server.advance()
    root = clinic.query(query_id).reports_root
    if end == DECLINED and root is not None:
        clinic.town.lose_object(root)
    clinic.hospital.advance()
    if end == EXPIRED:
        clinic.town.let_pass(86_401)
        clinic.hospital.advance()
    elif end != DECLINED:
        clinic.run(query_id)
    return query_id


@pytest.fixture(scope="module")
def ledgers(run: Run) -> list[Ledger]:
    clinic, asked = run
    return [Ledger(clinic.town, query_id) for query_id in asked]


def test_what_is_searched_is_all_there_is(run: Run, ledgers: list[Ledger]) -> None:
    """The search would find: what is known to be public is found in each of the four places."""
    clinic, asked = run
    query, ledger = clinic.query(asked[RELEASED]), ledgers[RELEASED]
    assert len(ledger.calldata) == 6 and len(ledger.logs) == 7  # from the question to the release
    assert any(query.xs[0] in text for text in ledger.calldata)
    assert any(query.xs[0] in text for text in ledger.logs)
    assert keccak(_abi_list(query.xs)) in ledger.storage
    assert query.root in ledger.file
    challenged = clinic.query(asked[CHALLENGED])
    assert len(ledgers[CHALLENGED].calldata) == 4 + challenged.challenged.bit_count() == 9


@pytest.mark.parametrize(
    "end", range(6), ids=["released", "healthy", "failed", "challenged", "declined", "expired"]
)
def test_nothing_is_there_in_clear(run: Run, ledgers: list[Ledger], end: int) -> None:
    assert not in_clear(ledgers[end], secret_bytes(run[0], run[1][end]))


def test_the_search_finds_what_is_planted(run: Run, ledgers: list[Ledger]) -> None:
    """Each label that there is, as a word or hashed with nothing; a secret and a box in the chain's file."""
    clinic, asked = run
    ledger, needles = ledgers[FAILED], secret_bytes(clinic, asked[FAILED])
    before, ledger.file = ledger.file, b""
    places = itertools.cycle((ledger.logs, ledger.calldata, ledger.storage))
    for codes in filter(None, CANDIDATES):
        place = next(places)
        for planted in (codes_word(codes).to_bytes(32, "big"), keccak(encode_codes(codes))):
            place.append(planted)
            assert in_clear(ledger, needles) == [codes]
            place.pop()
    own = clinic.hospital.own(clinic.query(asked[FAILED]))
    box = next(needle for needle in needles if len(needle) == 10)
    for planted in (own.secrets.label_secret(3), box, b"the patient"):
        ledger.file = before + planted
        assert in_clear(ledger, needles) == [planted]
    ledger.file = before


def _zeros(ledger: Ledger) -> list[list[int]]:
    """Where a word is zero, in everything that is told of a query, in order."""
    texts = [*ledger.calldata, *ledger.logs, *ledger.storage]
    return [[at for at in range(0, len(text) - 31, 32) if not any(text[at : at + 32])] for text in texts]


def test_no_finding_is_no_word_more(run: Run, ledgers: list[Ledger]) -> None:
    """No finding is the word zero: healthy patient and covers put each zero where lesions put it, and no other."""
    clinic, asked = run
    answers = [clinic.server._kept(clinic.query(asked[end])).reports for end in (RELEASED, HEALTHY)]
    hidden = [
        set(range(32)) - {*clinic.hospital.own(clinic.query(asked[end])).audits}
        for end in (RELEASED, HEALTHY)
    ]
    assert all(answers[0][j] for j in hidden[0]) and not any(answers[1][j] for j in hidden[1])
    assert _zeros(ledgers[RELEASED]) == _zeros(ledgers[HEALTHY])
    ledgers[HEALTHY].logs[-1] += bytes(32)
    assert _zeros(ledgers[RELEASED]) != _zeros(ledgers[HEALTHY])
    ledgers[HEALTHY].logs[-1] = ledgers[HEALTHY].logs[-1][:-32]


@pytest.mark.parametrize(
    "end", range(6), ids=["released", "healthy", "failed", "challenged", "declined", "expired"]
)
def test_nothing_public_gives_a_label_or_a_diagnosis_away(run: Run, ledgers: list[Ledger], end: int) -> None:
    """Whoever tries the whole code book with every word of the ledger as the secret learns nothing; with r_j, all.

    But for what a challenge opened.
    """
    clinic, asked = run
    query, ledger = clinic.query(asked[end]), ledgers[end]
    openings = query.openings()
    assert len(openings) == (
        32 if query.state is QueryState.RELEASED else 20 if end in (FAILED, CHALLENGED) else 0
    )
    hashed = {*query.xs, *(y for _, y in openings.values())}
    told = {y for j, (_, y) in openings.items() if query.challenged >> j & 1}
    assert given_away(ledger, asked[end], ledger.words() | {bytes(32)}, hashed) == told
    own = clinic.hospital.own(query)
    with_secrets = given_away(ledger, asked[end], [own.secrets.label_secret(j) for j in range(32)], hashed)
    assert with_secrets == hashed  # the same search, by who may


def test_audit_and_hidden_images_look_alike_until_they_are_opened(run: Run, ledgers: list[Ledger]) -> None:
    """Equal diagnoses have different hashes everywhere, and no hash of a hidden image is there before the release."""
    clinic, asked = run
    query = clinic.query(asked[RELEASED])
    own = clinic.hospital.own(query)
    answer = clinic.server._kept(query)
    assert len({codes_of(report) for report in answer.reports}) == 2
    assert (
        len({*query.xs, *(y for _, y in query.openings().values())}) == 32
    )  # x = y of an audit image that matched
    hidden = {y for j, (_, y) in query.openings().items() if j not in own.audits}
    before_release = ledgers[RELEASED].calldata[:-1]
    assert not [y for y in hidden if any(y in text for text in before_release)]


def _abi_list(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return b"".join(((32).to_bytes(32, "big"), len(listed).to_bytes(32, "big"), *listed))


def test_the_store_holds_nothing_in_clear(run: Run) -> None:
    clinic, asked = run
    store: Path = clinic.town.home / "store"
    held = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    images = [image for query_id in asked for image in clinic.hospital.own(clinic.query(query_id)).images]
    assert held and not [image.name for image in images if image.pixels[:48] in held]
