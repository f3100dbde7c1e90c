"""Ids and roots as people type them: whole, or their first digits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from consilia.errors import InputError
from consilia.values import Digest

Found = TypeVar("Found")

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


def one_that_begins(items: Mapping[Digest, Found], text: str, what: str) -> Found:
    """The one item whose id begins so; `what` it is, for the message.

    Raises:
        InputError: there is none, or several, or hardly a digit of it.
    """
    wanted = first_digits(text)
    found = [item for item_id, item in items.items() if str(item_id).startswith(wanted)]
    if len(found) != 1:
        raise InputError(f"expected the id of one {what}, {text!r} begins that of {len(found)}")
    return found[0]
