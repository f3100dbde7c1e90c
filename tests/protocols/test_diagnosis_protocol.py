"""The equations of a second opinion, without a chain: what is bound, what is hidden, how likely a server passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.errors import InputError, VerificationError
from consilia.protocols.answer import OwnAnswer, codes_behind, read_reports, recover, write_reports
from consilia.protocols.assurance import HIGH, STANDARD, pass_probability
from consilia.protocols.code_book import encode_codes
from consilia.protocols.consultation import OfferCard
from consilia.protocols.diagnosis import ImageFormat, Place, label_hash, list_digest, reports_digest
from consilia.protocols.findings import Finding, codes_word, from_words, localised, to_words
from consilia.protocols.query import make_query, read_package, write_package
from consilia.values import Digest
from tests.contracts.asking import HERE, THERE, images

PLACE = Place(5, "0x" + "11" * 20)
HOSPITAL = "0x" + "22" * 20
FORMAT = ImageFormat(2, 2)
QUERY = make_query(PLACE, HOSPITAL, images(4, 3), 3, bytes(32))
ANSWER = OwnAnswer(
    QUERY.query_id,
    b"\x05" * 32,
    tuple(QUERY.secrets.label_secret(j) for j in range(7)),
    tuple(image.truth or (Finding(7, HERE, 0.5),) for image in QUERY.images),
)
BOXES = st.tuples(*[st.integers(0, 65_534)] * 2, *[st.integers(1, 40)] * 2).map(
    lambda b: (b[0], b[1], min(b[0] + b[2], 65_535), min(b[1] + b[3], 65_535))
)
FINDINGS = st.builds(
    Finding, st.integers(1, 65_535), BOXES, st.integers(0, 10_000).map(lambda part: part / 10_000)
)


@given(st.lists(FINDINGS, max_size=8))
def test_findings_come_back_from_their_words(findings: list[Finding]) -> None:
    words = to_words(findings)
    assert len(words) == 8 and all(word < 2**96 for word in words)
    assert sorted(from_words(words), key=repr) == sorted(findings, key=repr)
    assert localised(words, words)


@pytest.mark.parametrize(
    "finding",
    [Finding(0), Finding(65_536), Finding(1, (5, 5, 5, 9)), Finding(1, (9, 5, 5, 9)), Finding(1, (-1, 0, 2, 2)),
     Finding(1, (0, 0, 65_536, 2))],
)  # fmt: skip
def test_what_is_no_finding_has_no_word(finding: Finding) -> None:
    with pytest.raises(InputError):
        finding.to_word()


@pytest.mark.parametrize(
    "words",
    [(1, *[0] * 7), (0, Finding(1).to_word(), *[0] * 6), (Finding(2).to_word(), Finding(1).to_word(), *[0] * 6),
     (Finding(1).to_word() | 1 << 96, *[0] * 7), (Finding(1, (3, 3, 9, 9)).to_word() ^ 9 << 16, *[0] * 7)],
)  # fmt: skip
def test_words_that_are_not_canonical_are_garbled(words: tuple[int, ...]) -> None:
    with pytest.raises(VerificationError, match="garbled"):
        from_words(words)


def test_a_match_is_half_of_the_union_and_one_more_at_most() -> None:
    true = [Finding(7, (0, 0, 30, 10))]
    for shift, fits in ((0, True), (10, True), (11, False)):  # IoU 1, 20/40, 19/41
        assert localised(to_words(true), to_words([Finding(7, (shift, 0, shift + 30, 10))])) is fits
    beside = [*true, Finding(7, THERE)]
    assert localised(to_words(true), to_words(beside))
    assert not localised(to_words(true), to_words([*beside, Finding(7, (200, 0, 210, 10))]))
    assert not localised(to_words(true), to_words([]))
    assert not localised(to_words(true), to_words([Finding(8, (0, 0, 30, 10))]))
    assert not localised(to_words([*true, *true]), to_words(true))  # one finding meets one lesion
    assert localised(to_words([Finding(7)]), to_words([Finding(7, THERE)]))
    assert localised(to_words([]), to_words([]))


def test_codes_are_the_code_books_bytes() -> None:
    assert codes_word((1, 2, 258)) == int.from_bytes(encode_codes([258, 1, 2]), "big")
    for bad in ((2, 1), (1, 1), (0,), (65_536,), tuple(range(1, 18))):
        with pytest.raises(InputError):
            codes_word(bad)


def test_a_label_holds_for_one_query_position_secret_and_diagnosis_alone() -> None:
    other = Digest.of(b"another query")
    r, s = b"\x01" * 32, b"\x02" * 32
    hashes = {
        label_hash(q, j, secret, codes)
        for q in (QUERY.query_id, other)
        for j in (0, 1)
        for secret in (r, s)
        for codes in ((), (1,), (2,), (1, 2), (258,))
    }
    assert len(hashes) == 40


def test_a_query_is_of_one_chain_contract_hospital_and_salt() -> None:
    ids = {
        Place(chain, "0x" + contract * 20).query_id("0x" + hospital * 20, salt)
        for chain in (5, 6)
        for contract in ("11", "33")
        for hospital in ("22", "44")
        for salt in (bytes(32), b"\x01" * 32)
    }
    assert len(ids) == 16


def test_everything_of_a_query_follows_from_its_seed_and_nothing_is_used_twice() -> None:
    again = make_query(PLACE, HOSPITAL, images(4, 3), 3, bytes(32))
    assert again == QUERY and again.commitments() == QUERY.commitments()
    secrets = QUERY.secrets
    drawn = [secrets.salt(), secrets.roles_salt()]
    for j in range(7):
        drawn += [secrets.label_secret(j), secrets.truth_salt(j), secrets.hidden_commitment(j)]
    assert len(set(drawn)) == len(drawn)
    other = make_query(PLACE, HOSPITAL, images(4, 3), 3, b"\x01" * 32)
    assert not set(other.commitments()) & set(QUERY.commitments())


def test_each_order_is_as_likely_as_any_other() -> None:
    places = [
        make_query(PLACE, HOSPITAL, images(4, 3), 3, n.to_bytes(32, "big")).real[0] for n in range(1400)
    ]
    counts = np.bincount(places, minlength=7)
    assert ((counts - 200) ** 2 / 200).sum() < 22.5  # chi-squared, 6 degrees of freedom: one in a thousand


def test_a_package_comes_back_and_of_nothing_else() -> None:
    data = write_package(QUERY, FORMAT)
    package = read_package(data, QUERY.query_id, 7, FORMAT)
    assert package.pixels == tuple(image.pixels for image in QUERY.images)
    assert package.label_secrets == ANSWER.label_secrets
    for changed, query_id, count, size in (
        (data, Digest.of(b"x"), 7, FORMAT),
        (data, QUERY.query_id, 6, FORMAT),
        (data, QUERY.query_id, 7, ImageFormat(4, 1)),
        (data + b"\0", QUERY.query_id, 7, FORMAT),
        (data[:-1], QUERY.query_id, 7, FORMAT),
        (b"X" + data[1:], QUERY.query_id, 7, FORMAT),
        (b"", QUERY.query_id, 7, FORMAT),
    ):
        with pytest.raises(VerificationError):
            read_package(changed, query_id, count, size)


def test_nothing_in_a_package_depends_on_what_an_image_is() -> None:
    """With roles exchanged the server gets the same bytes, but for the secrets of the order."""
    data = write_package(QUERY, FORMAT)
    swapped = replace(QUERY, images=tuple(replace(i, role=QUERY.images[0].role) for i in QUERY.images))
    assert write_package(swapped, FORMAT) == data


def test_reports_have_one_size_and_open_with_their_secret_alone() -> None:
    sealed = ANSWER.sealed_reports()
    assert {len(item) for item in sealed} == {256}
    data = write_reports(ANSWER)
    assert read_reports(data, QUERY.query_id, 7, reports_digest(sealed)) == sealed
    for bad in (data[:-1] + b"\0" if data[-1] else data[:-1] + b"\1", data[:-1], data + b"\0"):
        with pytest.raises(VerificationError):
            read_reports(bad, QUERY.query_id, 7, reports_digest(sealed))
    (real,) = QUERY.real
    us, ys = ANSWER.opening([real])
    found = recover(QUERY.query_id, real, ANSWER.label_secrets[real], us[0], ys[0], sealed[real])
    assert found.codes == (7,) and found.findings[0].box_xyxy == HERE
    other = (real + 1) % 7
    for u, y, c in (
        (ANSWER.answer_secret(other), ys[0], sealed[real]),
        (us[0], ANSWER.answer(other), sealed[other]),
        (us[0], Digest.of(b"y"), sealed[real]),
    ):
        with pytest.raises(VerificationError):
            recover(QUERY.query_id, real, ANSWER.label_secrets[real], u, y, c)


def test_before_the_score_the_hospital_cannot_try_the_code_book() -> None:
    """It knows r_j and every code, and has the ledger: without u_j no candidate can be told from another."""
    (real,) = QUERY.real
    r = ANSWER.label_secrets[real]
    candidates = [(), *[(code,) for code in range(1, 300)]]
    guesses = {label_hash(QUERY.query_id, real, r, codes) for codes in candidates}
    assert ANSWER.answer(real) in guesses  # with y_j it would be found
    assert codes_behind(QUERY.query_id, real, r, ANSWER.answer(real), candidates) == (7,)
    public = {*ANSWER.commitments(), list_digest(ANSWER.commitments())}
    assert not guesses & public


def test_a_card_comes_back_or_is_refused() -> None:
    card = OfferCard("heads", FORMAT)
    assert OfferCard.from_bytes(card.to_bytes()) == card
    for bad in (b"{}", b"", card.to_bytes() + b" ", card.to_bytes().replace(b'"height":2', b'"height":0')):
        with pytest.raises(VerificationError):
            OfferCard.from_bytes(bad)


@pytest.mark.parametrize(
    ("assurance", "table"),
    [
        (STANDARD, {0.5: 0.0059, 0.7: 0.238, 0.8: 0.630, 0.9: 0.957, 0.95: 0.997}),
        (HIGH, {0.7: 0.046, 0.8: 0.407, 0.9: 0.952, 0.95: 0.999}),
    ],
)
def test_ten_thousand_queries_pass_as_the_protocol_says(assurance: object, table: dict[float, float]) -> None:
    """Images of a query are right or wrong by chance, audit images are drawn among them; m of n is counted."""
    assert assurance in (STANDARD, HIGH)
    made = STANDARD if assurance is STANDARD else HIGH
    rng, queries = np.random.default_rng(6), 10_000
    for accuracy, told in table.items():
        right = rng.random((queries, made.images)) < accuracy
        order = rng.random((queries, made.images)).argsort(axis=1)[:, : made.audits]
        passed = np.take_along_axis(right, order, axis=1).sum(axis=1) >= made.required
        deviation = (told * (1 - told) / queries) ** 0.5
        assert abs(passed.mean() - told) < 4 * deviation + 0.0006  # the table has three digits
        assert abs(pass_probability(made.audits, made.required, accuracy) - told) < 0.0006
