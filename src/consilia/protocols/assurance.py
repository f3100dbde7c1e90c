"""What audits prove: how likely a server passes, how good it is at least, and a certificate over all its queries.

Pure arithmetic on counts, without a statistics library: docs/consulting.md explains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from consilia.values import Address


@dataclass(frozen=True)
class Assurance:
    """How a query is composed: `audits` known cases, of which `required` must match, and `covers` to hide among."""

    audits: int
    required: int
    covers: int

    @property
    def images(self) -> int:
        """N, all images of a query with one real case."""
        return self.audits + self.covers + 1

    @property
    def threshold(self) -> Fraction:
        """T: the part of the audits that must match."""
        return Fraction(self.required, self.audits)


STANDARD = Assurance(audits=20, required=16, covers=11)
"""A server that is right in 9 of 10 cases passes with .957, one that is right in 6 of 10 with .051."""

HIGH = Assurance(audits=41, required=34, covers=22)
"""Fails a server of accuracy .7 and passes one of .9, each with .95 or better; twice the audit images."""

ASSURANCES = {"standard": STANDARD, "high": HIGH}
"""By the name that `consilia consult ask --assurance` takes."""

BOUND_CONFIDENCE = 0.95
"""Each bound of `accuracy_interval` holds with this confidence."""


def pass_probability(audits: int, required: int, accuracy: float) -> float:
    """P(at least `required` of `audits` match) for a server right with probability `accuracy`, each anew."""
    if required <= 0 or accuracy >= 1.0:
        return 1.0 if required <= audits else 0.0
    if required > audits or accuracy <= 0.0:
        return 0.0
    # The tail is the regularised incomplete beta function I_p(k, n - k + 1) (DLMF 8.17.5)
    return _incomplete_beta(required, audits - required + 1, accuracy)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b) for 0 < x < 1 by its continued fraction (DLMF 8.17.22), which converges fast below its mean."""
    if x > (a + 1.0) / (a + b + 2.0):
        return 1.0 - _incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    # Lentz's algorithm, with its usual guard against a division by zero
    tiny = 1e-300
    above, below = 1.0, 1.0 - (a + b) * x / (a + 1.0)
    below = 1.0 / (below or tiny)
    fraction = below
    for m in range(1, 10_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            below = 1.0 / (1.0 + term * below or tiny)
            above = 1.0 + term / above or tiny
            fraction *= above * below
        if abs(above * below - 1.0) < 1e-16:
            break
    return front * fraction


def accuracy_interval(matches: int, audits: int, confidence: float = BOUND_CONFIDENCE) -> tuple[float, float]:
    """Lower and upper bound of the server's accuracy after `matches` of `audits` (Clopper and Pearson 1934).

    Each bound alone holds with `confidence`: the accuracy is at least the lower one with 95 %. Never too narrow,
    whatever the accuracy is. Without audits nothing is known: (0, 1).

    Raises:
        ValueError: the counts are impossible.
    """
    if not 0 <= matches <= audits:
        raise ValueError(f"expected 0 to {audits} matches, got {matches}")
    tail = 1.0 - confidence
    low = 0.0 if matches == 0 else _solve(lambda p: pass_probability(audits, matches, p) - tail)
    high = 1.0
    if matches < audits:
        high = _solve(lambda p: tail - (1.0 - pass_probability(audits, matches + 1, p)))
    return low, high


def _solve(rising: Callable[[float], float]) -> float:
    """Where a function that rises on [0, 1] crosses zero: 60 halvings, as fine as a float."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rising(middle) < 0.0 else (low, middle)
    return (low + high) / 2.0


# The sequential test (Wald 1945): is the accuracy .90, or only .75? Both errors at most .05.
# A match weighs ln(.90/.75) = .182, a miss ln(.10/.25) = -.916: one to five, in whole numbers, so that every
# party computes the same certificate. The bounds ln(.95/.05) = 2.94 are 16.2 matches: 17.
GOOD_ACCURACY = 0.90
BAD_ACCURACY = 0.75
MATCH_POINTS = 1
MISS_POINTS = -5
DECISION_POINTS = 17


class Standing(StrEnum):
    """What the sequential test last decided."""

    UNDECIDED = "undecided"
    CERTIFIED = "certified"
    REVOKED = "revoked"


@dataclass(frozen=True)
class AuditOutcome:
    """One query's audits as the ledger tells them.

    A server that saw which images were audits and then stayed `silent` could have hidden a failure: its audits
    count as misses.
    """

    query_id: int
    hospital: Address
    audits: int
    matches: int
    silent: bool = False

    @property
    def counted_matches(self) -> int:
        """The matches that the test counts."""
        return 0 if self.silent else self.matches


@dataclass(frozen=True)
class Decision:
    """After which query the test decided, and how."""

    query_id: int
    standing: Standing


@dataclass(frozen=True)
class Certificate:
    """A model's record over all its queries. The same ledger gives everybody the same certificate."""

    outcomes: tuple[AuditOutcome, ...]
    decisions: tuple[Decision, ...]
    points: int
    """Where the running test stands, between -17 and 17; it starts again at 0 after each decision."""

    @property
    def standing(self) -> Standing:
        """The last decision; UNDECIDED before the first."""
        return self.decisions[-1].standing if self.decisions else Standing.UNDECIDED

    @property
    def audits(self) -> int:
        """All audits so far."""
        return sum(outcome.audits for outcome in self.outcomes)

    @property
    def matches(self) -> int:
        """Those that matched; of silent queries none."""
        return sum(outcome.counted_matches for outcome in self.outcomes)

    @property
    def silent(self) -> int:
        """Queries in which the server saw the audits and answered nothing."""
        return sum(outcome.silent for outcome in self.outcomes)

    @property
    def interval(self) -> tuple[float, float]:
        """`accuracy_interval` over all audits."""
        return accuracy_interval(self.matches, self.audits)

    def by_hospital(self) -> dict[Address, tuple[int, int]]:
        """(matches, audits) of each hospital that asked: one that asks itself for praise stands there by name."""
        found: dict[Address, tuple[int, int]] = {}
        for outcome in self.outcomes:
            matches, audits = found.get(outcome.hospital, (0, 0))
            found[outcome.hospital] = (matches + outcome.counted_matches, audits + outcome.audits)
        return found


def certify(outcomes: Iterable[AuditOutcome]) -> Certificate:
    """The rolling certificate: a sequential test over the audits of all queries, in the ledger's order.

    Points are counted query by query, since within a query the order of the images means nothing. After a decision
    the test starts again: a certificate must be earned anew, and can be lost.
    """
    counted: list[AuditOutcome] = []
    decisions: list[Decision] = []
    points = 0
    for outcome in outcomes:
        counted.append(outcome)
        misses = outcome.audits - outcome.counted_matches
        points += MATCH_POINTS * outcome.counted_matches + MISS_POINTS * misses
        if abs(points) >= DECISION_POINTS:
            standing = Standing.CERTIFIED if points > 0 else Standing.REVOKED
            decisions.append(Decision(outcome.query_id, standing))
            points = 0
    return Certificate(tuple(counted), tuple(decisions), points)
