"""Accounts as people type them."""

from __future__ import annotations


def parse_account(text: str) -> str:
    """An account in its checksummed form.

    Raises:
        InputError: it is none.
    """
    from eth_utils.address import is_address, to_checksum_address

    from consilia.errors import InputError

    if not is_address(text):
        raise InputError(f"expected an account as `consilia network members` shows it, got {text!r}")
    return str(to_checksum_address(text))
