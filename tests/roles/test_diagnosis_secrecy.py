"""No label and no diagnosis is on the ledger, in clear or guessable from public values: every byte is searched."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak

from consilia.ledger.rpc import Rpc, data_bytes, quantity
from consilia.protocols.code_book import encode_codes
from consilia.protocols.diagnosis import LABEL_TAG, QueryState
from consilia.protocols.findings import Codes, codes_of, codes_word, to_words
from consilia.values import Digest
from tests.consortium import Consortium, consortium
from tests.roles.asking import LESION, OTHER, Clinic

BOOK = (LESION, OTHER, *range(40_000, 40_020))
CANDIDATES: list[Codes] = [(), *[(code,) for code in BOOK], *itertools.combinations(BOOK[:4], 2)]


class Ledger:
    """All that anybody can read: calldata, logs, the storage of the contract, and the raw chain file."""

    def __init__(self, town: Consortium, query_id: Digest) -> None:
        rpc = Rpc(town.url)
        self.calldata, self.logs = [], []
        for number in range(quantity(rpc.call("eth_blockNumber")) + 1):
            block: Any = rpc.call("eth_getBlockByNumber", hex(number), True)
            for transaction in block["transactions"]:
                if (transaction["to"] or "").lower() == town.deployment.diagnosis.lower():
                    self.calldata.append(data_bytes(transaction["input"])[4:])
        found: Any = rpc.call(
            "eth_getLogs", {"fromBlock": "0x0", "toBlock": "latest", "address": town.deployment.diagnosis}
        )
        for log in found:
            self.logs.append(b"".join(map(data_bytes, log["topics"])) + data_bytes(log["data"]))
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Clinic, Digest, Ledger]]:
    """A whole query that passes, and the ledger after it."""
    with pytest.MonkeyPatch.context() as patch, consortium(tmp_path_factory.mktemp("t"), patch, 1) as town:
        clinic = Clinic(town)
        query_id = clinic.ask()
        assert clinic.run(query_id).query.state is QueryState.RELEASED
        clinic.settled()
        yield clinic, query_id, Ledger(town, query_id)


def test_what_is_searched_is_all_there_is(run: tuple[Clinic, Digest, Ledger]) -> None:
    """The search would find: what is known to be public is found in each of the four places."""
    clinic, query_id, ledger = run
    query = clinic.query(query_id)
    assert len(ledger.calldata) == 8 and len(ledger.logs) == 9  # from the offer to the claim
    assert any(query.xs[0] in text for text in ledger.calldata)
    assert any(query.xs[0] in text for text in ledger.logs)
    assert keccak(_abi_list(query.xs)) in ledger.storage
    assert query.root in ledger.file


def test_nothing_is_there_in_clear(run: tuple[Clinic, Digest, Ledger]) -> None:
    clinic, query_id, ledger = run
    own = clinic.hospital.own(clinic.query(query_id))
    answer = clinic.server._kept(clinic.query(query_id))
    secrets = [own.secrets.seed, answer.secret]
    for j, image in enumerate(own.images):
        secrets += [own.secrets.label_secret(j), own.secrets.truth_salt(j), image.pixels[:64]]
    needles = [*secrets, *(bytes.fromhex(str(item.hex())) for item in secrets)]
    words = [
        word
        for report in (*answer.reports, *(i.truth or () for i in own.images))
        for word in to_words(report)
    ]
    needles += [(word & (1 << 80) - 1).to_bytes(10, "big") for word in words if word]  # code and box
    needles += [image.name.encode() for image in own.images]
    for text in ledger.texts():
        assert not [needle for needle in needles if needle in text]
    high = [codes for codes in CANDIDATES if max(codes, default=0) >= 40_000 or len(codes) > 1]
    clear = {codes_word(codes).to_bytes(32, "big") for codes in high}  # small numbers stand for other things
    hashes = {
        function(form) for codes in CANDIDATES for form in _forms(codes) for function in (keccak, Digest.of)
    }
    assert not (clear | hashes) & ledger.words()


def test_nothing_public_gives_a_label_or_a_diagnosis_away(run: tuple[Clinic, Digest, Ledger]) -> None:
    """Whoever tries the whole code book with every word of the ledger as the secret learns nothing; with r_j, all."""
    clinic, query_id, ledger = run
    query = clinic.query(query_id)
    hashed = {*query.xs, *(y for _, y in query.openings().values())}
    assert len(query.openings()) == 32
    public = ledger.words() | {bytes(32)}
    assert len(public) > 150
    assert not given_away(ledger, query_id, public, hashed)
    own = clinic.hospital.own(query)
    with_secrets = given_away(ledger, query_id, [own.secrets.label_secret(j) for j in range(32)], hashed)
    assert with_secrets == hashed  # the same search, by who may


def test_audit_and_hidden_images_look_alike_until_they_are_opened(run: tuple[Clinic, Digest, Ledger]) -> None:
    """Equal diagnoses have different hashes everywhere, and no hash of a hidden image is there before the release."""
    clinic, query_id, ledger = run
    query = clinic.query(query_id)
    own = clinic.hospital.own(query)
    answer = clinic.server._kept(query)
    assert len({codes_of(report) for report in answer.reports}) == 2
    assert (
        len({*query.xs, *(y for _, y in query.openings().values())}) == 32
    )  # x = y of an audit image that matched
    hidden = {y for j, (_, y) in query.openings().items() if j not in own.audits}
    before_release = ledger.calldata[:-2]
    assert not [y for y in hidden if any(y in text for text in before_release)]


def _forms(codes: Codes) -> list[bytes]:
    word = codes_word(codes)
    return [encode_codes(codes), word.to_bytes(32, "big"), str(list(codes)).encode(), str(word).encode()]


def _abi_list(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return b"".join(((32).to_bytes(32, "big"), len(listed).to_bytes(32, "big"), *listed))


def test_the_store_holds_nothing_in_clear(run: tuple[Clinic, Digest, Ledger]) -> None:
    clinic, query_id, _ = run
    own = clinic.hospital.own(clinic.query(query_id))
    store: Path = clinic.town.home / "store"
    held = b"".join(path.read_bytes() for path in store.rglob("*") if path.is_file())
    assert held and not [image.name for image in own.images if image.pixels[:48] in held]
