"""Ids and roots as people type them: whole, or their first digits."""

from __future__ import annotations

import re

from consilia.errors import InputError

LEAST_DIGITS = 4
"""The empty text begins every id: an unset variable of a shell must not pay for what happens to be there alone."""


def first_digits(text: str) -> str:
    """The digits that an id has to begin with, in lower case.

    Raises:
        InputError: fewer than LEAST_DIGITS, more than an id has, or no hex digits.
    """
    digits = text.removeprefix("0x").lower()
    if not re.fullmatch(f"[0-9a-f]{{{LEAST_DIGITS},64}}", digits):
        raise InputError(f"expected {LEAST_DIGITS} to 64 hex digits, the first of an id or all, got {text!r}")
    return digits
