"""Artifacts that change hands: offers, deals, what a buyer finds, and who judges a dispute."""
