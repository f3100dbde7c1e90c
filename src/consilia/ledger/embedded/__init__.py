"""The embedded ledger: a proof-of-work EVM chain with one node per hospital (docs/ledger.md)."""
