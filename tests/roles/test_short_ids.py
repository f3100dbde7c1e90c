"""An id is found by its first digits, and by hardly a digit of it never."""

from __future__ import annotations

import pytest

from consilia.errors import InputError
from consilia.roles.diagnosis.query_log import DiagnosisLog
from consilia.roles.exchange.deal_log import ExchangeLog
from consilia.roles.short_ids import first_digits


def test_digits_are_read_with_or_without_0x() -> None:
    assert first_digits("0xABcd12") == first_digits("abcd12") == "abcd12"
    assert first_digits("00" * 32) == "00" * 32


@pytest.mark.parametrize("text", ["", "0x", "abc", "wxyz", "abcd\n", "½½½½", "00" * 33])
def test_what_could_begin_anything_or_nothing_is_refused(text: str) -> None:
    for find in (first_digits, ExchangeLog().find, ExchangeLog().find_deal, DiagnosisLog().find):
        with pytest.raises(InputError, match="4 to 64 hex digits"):
            find(text)
