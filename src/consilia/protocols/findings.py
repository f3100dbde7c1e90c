"""Findings as numbers that a contract can compare: words of 256 bits, sets of codes, and what a match is.

The words and the rule of `localised` are those of contracts/diagnosis.vy (docs/formats/query.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from consilia.errors import InputError, VerificationError

MAX_FINDINGS = 8
"""On one image, on either side; an image with more true boxes cannot be an audit image."""

Codes: TypeAlias = tuple[int, ...]
"""A diagnosis D: the sorted set of an image's finding codes (u16, 0 is none); empty: nothing was found."""

_MASK = 0xFFFF
SCORE_PARTS = 10_000
"""A score of 1.0 in a word."""


@dataclass(frozen=True)
class Finding:
    """A code and where it is seen, in pixels of the canonical image; a truth or a prediction.

    `box_xyxy` holds integers with x2 > x1 and y2 > y1; all zero: the finding is of the image as a whole.
    """

    code: int
    box_xyxy: tuple[int, int, int, int] = (0, 0, 0, 0)
    score: float = 0.0

    def to_word(self) -> int:
        """score | code | x1 | y1 | x2 | y2, 16 bits each, the last one lowest.

        Raises:
            InputError: a number does not fit, or the box is none.
        """
        x1, y1, x2, y2 = self.box_xyxy
        whole = not any(self.box_xyxy)
        if not (0 < self.code <= _MASK and (whole or (0 <= x1 < x2 <= _MASK and 0 <= y1 < y2 <= _MASK))):
            raise InputError(f"expected a code of 1 to 65535 and a box x1 < x2, y1 < y2, got {self}")
        word = min(max(round(self.score * SCORE_PARTS), 0), SCORE_PARTS)
        for part in (self.code, x1, y1, x2, y2):
            word = word << 16 | part
        return word

    @classmethod
    def from_word(cls, word: int) -> Finding:
        """Read a word.

        Raises:
            VerificationError: it is not what `to_word` writes.
        """
        x1, y1, x2, y2 = ((word >> shift) & _MASK for shift in (48, 32, 16, 0))
        found = cls((word >> 64) & _MASK, (x1, y1, x2, y2), (word >> 80) / SCORE_PARTS)
        try:
            same = found.to_word() == word
        except InputError:
            same = False
        if not same:
            raise VerificationError(f"expected a finding's word, got {word:064x}: the report is garbled")
        return found


def to_words(findings: Sequence[Finding]) -> tuple[int, ...]:
    """Eight words, sorted by code, zeros after the last: every report has the same size.

    Raises:
        InputError: more than eight findings.
    """
    if len(findings) > MAX_FINDINGS:
        raise InputError(
            f"expected at most {MAX_FINDINGS} findings on an image, got {len(findings)}: choose another image"
        )
    ordered = sorted(findings, key=lambda item: (item.code, item.box_xyxy, item.score))
    words = [item.to_word() for item in ordered]
    return (*words, *[0] * (MAX_FINDINGS - len(words)))


def from_words(words: Iterable[int]) -> tuple[Finding, ...]:
    """The findings of eight words.

    Raises:
        VerificationError: one of them is garbled, or they are not in the order of `to_words`.
    """
    taken = tuple(words)
    found = tuple(Finding.from_word(word) for word in taken if word)
    if to_words(found) != taken:
        raise VerificationError("expected findings sorted by code, zeros last: the report is garbled")
    return found


def codes_of(findings: Iterable[Finding]) -> Codes:
    """The diagnosis D of findings."""
    return tuple(sorted({item.code for item in findings}))


def codes_word(codes: Codes) -> int:
    """A diagnosis as one number: its codes in ascending order, 16 bits each.

    Raises:
        InputError: not a sorted set of at most 16 codes.
    """
    if list(codes) != sorted(set(codes)) or len(codes) > 16 or any(not 0 < code <= _MASK for code in codes):
        raise InputError(f"expected a sorted set of at most 16 codes of 1 to 65535, got {codes}")
    word = 0
    for code in codes:
        word = word << 16 | code
    return word


def localised(truth: Sequence[int], reported: Sequence[int]) -> bool:
    """Whether reported words show all true ones, with the same codes and at most one finding beside them.

    Each true box takes the first reported one of its code that is not taken and overlaps it with IoU >= 1/2, in
    integers; a true finding without a box takes any of its code. A liar's words never agree and never fail.
    """
    if _codes_in_order(truth) != _codes_in_order(reported) or any(word >> 96 for word in reported):
        return False
    used: set[int] = set()
    wanted = [word for word in truth if word]
    for true in wanted:
        free = (j for j, word in enumerate(reported) if word and j not in used and _overlap(true, word))
        met = next(free, None)
        if met is None:
            return False
        used.add(met)
    return sum(1 for word in reported if word) <= len(wanted) + 1


def _codes_in_order(words: Sequence[int]) -> list[int]:
    codes: list[int] = []
    for word in words:
        code = (word >> 64) & _MASK
        if word and code != (codes or [0])[-1]:
            codes.append(code)
    return codes


def _overlap(a: int, b: int) -> bool:
    if (a >> 64) & _MASK != (b >> 64) & _MASK:
        return False
    if a & (1 << 64) - 1 == 0:
        return True
    ax1, ay1, ax2, ay2 = ((a >> shift) & _MASK for shift in (48, 32, 16, 0))
    bx1, by1, bx2, by2 = ((b >> shift) & _MASK for shift in (48, 32, 16, 0))
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    if width <= 0 or height <= 0:
        return False
    return 3 * width * height >= (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1)
