"""What a contract that holds money for its parties owes them, as its events tell."""

from __future__ import annotations

from dataclasses import dataclass, field

from consilia.values import Address


@dataclass
class Credits:
    """Amounts in wei; who is owed something fetches it by a call of its own."""

    credited_wei: dict[Address, int] = field(default_factory=dict)
    fetched_wei: dict[Address, int] = field(default_factory=dict)
    claims: dict[Address, int] = field(default_factory=dict)
    """How often each account has fetched its credit."""
    open_wei: int = 0
    """What the contract should hold: all that was paid in, less what was fetched."""

    def owed_wei(self, account: Address) -> int:
        """What an account can claim now."""
        return self.credited_wei.get(account, 0) - self.fetched_wei.get(account, 0)

    def credit(self, account: Address, amount_wei: int) -> None:
        """A deal or a query has ended, and this is the account's part."""
        self.credited_wei[account] = self.credited_wei.get(account, 0) + amount_wei

    def fetch(self, account: Address, amount_wei: int) -> None:
        """The account was paid what it was owed."""
        self.open_wei -= amount_wei
        self.fetched_wei[account] = self.fetched_wei.get(account, 0) + amount_wei
        self.claims[account] = self.claims.get(account, 0) + 1
