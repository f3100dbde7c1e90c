"""What audits prove: the table of docs/protocols/diagnosis.md, exact intervals, and the sequential certificate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from consilia.protocols.answer import OwnAnswer
from consilia.protocols.assurance import (
    HIGH,
    STANDARD,
    AuditOutcome,
    Standing,
    accuracy_interval,
    certify,
    pass_probability,
)
from consilia.protocols.diagnosis import ImageRole, Place, QueryImage
from consilia.protocols.findings import Finding
from consilia.protocols.query import make_query

HERE = "0x" + "11" * 20
ACCURACIES = (0.7, 0.8, 0.9, 0.95)


@pytest.mark.parametrize(
    ("audits", "required", "expected"),
    [(10, 8, (0.383, 0.678, 0.930, 0.988)), (20, 16, (0.238, 0.630, 0.957, 0.997))],
)
def test_the_table_of_pass_probabilities(audits, required, expected):
    found = [pass_probability(audits, required, accuracy) for accuracy in ACCURACIES]
    assert found == pytest.approx(expected, abs=5e-4)


@given(st.integers(1, 500), st.integers(-1, 501), st.floats(0, 1))
def test_pass_probabilities_are_those_of_the_binomial(audits, required, accuracy):
    expected = binom.sf(required - 1, audits, accuracy)
    assert pass_probability(audits, required, accuracy) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_high_assurance_separates_seven_from_nine_in_ten():
    assert pass_probability(HIGH.audits, HIGH.required, 0.7) <= 0.05
    assert pass_probability(HIGH.audits, HIGH.required, 0.9) >= 0.95
    # and no query with fewer audits does: for each number the strictest threshold that still fails .7
    for audits in range(1, HIGH.audits):
        required = next(k for k in range(audits + 2) if pass_probability(audits, k, 0.7) <= 0.05)
        assert pass_probability(audits, required, 0.9) < 0.95


def test_the_sizes_of_queries():
    assert (STANDARD.images, HIGH.images) == (32, 64)
    assert float(STANDARD.threshold) == 0.8


@pytest.mark.parametrize("assurance", [STANDARD, HIGH], ids=["standard", "high"])
def test_a_query_counts_what_a_server_of_that_accuracy_gets_right(assurance):
    """The protocol's own hashes, for some of the queries that the next test draws ten thousand of: the same number."""
    random, place, queries, accuracy = np.random.default_rng(assurance.audits), Place(1, HERE), 150, 0.8
    passed = 0
    for number in range(queries):
        truths = [(Finding(int(code)),) if code else () for code in random.integers(0, 3, assurance.audits)]
        audits = [QueryImage(f"a{j}", ImageRole.AUDIT, b"a", truth) for j, truth in enumerate(truths)]
        covers = [QueryImage(f"c{j}", ImageRole.COVER, b"c") for j in range(assurance.covers)]
        images = [QueryImage("real", ImageRole.REAL, b"r"), *audits, *covers]
        query = make_query(place, HERE, images, assurance.required, number.to_bytes(32, "big"))
        right = random.random(assurance.images) < accuracy
        reports = [
            (image.truth or ()) if good else (Finding(9),)
            for image, good in zip(query.images, right, strict=True)
        ]
        secrets = tuple(query.secrets.label_secret(j) for j in range(assurance.images))
        answer = OwnAnswer(query.query_id, bytes(32), secrets, tuple(reports))
        matches = sum(answer.answer(j) == query.label(j) for j in query.audits)
        assert matches == right[query.audits].sum()
        passed += matches >= query.threshold
    expected = pass_probability(assurance.audits, assurance.required, accuracy)
    assert abs(passed / queries - expected) < 4 * np.sqrt(expected * (1 - expected) / queries)


@pytest.mark.parametrize("assurance", [STANDARD, HIGH], ids=["standard", "high"])
@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_ten_thousand_queries_pass_as_often_as_the_table_says(assurance, accuracy):
    queries = 10_000
    random = np.random.default_rng([assurance.audits, round(100 * accuracy)])
    right = random.random((queries, assurance.audits)) < accuracy  # every audit of every query
    passed = (right.sum(axis=1) >= assurance.required).mean()
    expected = pass_probability(assurance.audits, assurance.required, accuracy)
    error = np.sqrt(expected * (1 - expected) / queries)
    assert abs(passed - expected) < 4 * error


@pytest.mark.parametrize(
    ("matches", "audits"), [(16, 20), (20, 20), (0, 20), (1, 1), (34, 41), (9_400, 10_000)]
)
def test_intervals_are_those_of_clopper_and_pearson(matches, audits):
    low = beta.ppf(0.05, matches, audits - matches + 1) if matches else 0.0
    high = beta.ppf(0.95, matches + 1, audits - matches) if matches < audits else 1.0
    assert accuracy_interval(matches, audits) == pytest.approx((low, high), abs=1e-9)


def test_sixteen_of_twenty_means_only_six_in_ten():
    low, _ = accuracy_interval(16, 20)
    assert 0.595 < low < 0.605


def test_without_audits_nothing_is_known():
    assert accuracy_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="matches"):
        accuracy_interval(3, 2)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_what_was_seen(counts):
    matches, audits = counts
    low, high = accuracy_interval(matches, audits)
    assert 0.0 <= low <= matches / audits <= high <= 1.0


def queries(*counts):
    """Queries with (matches, audits), from hospital 0xA."""
    return [AuditOutcome(i, "0xA", audits, matches) for i, (matches, audits) in enumerate(counts, start=1)]


def test_no_query_no_certificate():
    empty = certify([])
    assert (empty.standing, empty.points, empty.interval) == (Standing.UNDECIDED, 0, (0.0, 1.0))


def test_one_perfect_query_certifies_and_a_passed_one_does_not():
    assert certify(queries((20, 20))).standing is Standing.CERTIFIED
    # 18 of 20 passes its query, and says little: 18 - 10 = 8 points
    one = certify(queries((18, 20)))
    assert (one.standing, one.points) == (Standing.UNDECIDED, 8)
    assert certify(queries((18, 20)) * 3).standing is Standing.CERTIFIED


def test_a_bad_query_revokes_what_was_certified():
    record = certify(queries((20, 20), (10, 20)))
    assert [decision.standing for decision in record.decisions] == [Standing.CERTIFIED, Standing.REVOKED]
    assert record.standing is Standing.REVOKED
    assert (record.matches, record.audits, record.points) == (30, 40, 0)


def test_silence_after_the_audits_were_opened_counts_as_misses():
    silent = AuditOutcome(2, "0xB", 20, 0, silent=True)
    record = certify([*queries((20, 20)), silent])
    assert record.standing is Standing.REVOKED
    assert (record.silent, record.matches, record.audits) == (1, 20, 40)


def test_praise_is_told_apart_by_who_asked():
    record = certify([AuditOutcome(1, "0xA", 20, 20), AuditOutcome(2, "0xB", 20, 12)])
    assert record.by_hospital() == {"0xA": (20, 20), "0xB": (12, 20)}


@pytest.mark.parametrize(
    ("accuracy", "right", "least"),
    [(0.95, Standing.CERTIFIED, 0.99), (0.9, Standing.CERTIFIED, 0.95), (0.75, Standing.REVOKED, 0.95)],
)
def test_the_first_decision_is_wrong_in_at_most_one_of_twenty(accuracy, right, least):
    random = np.random.default_rng(round(1000 * accuracy))
    decided = []
    for _ in range(2_000):
        matches = random.binomial(20, accuracy, size=40)
        record = certify(AuditOutcome(i, "0xA", 20, int(m)) for i, m in enumerate(matches))
        decided.append(record.decisions[0].standing)
    assert decided.count(right) / len(decided) >= least
