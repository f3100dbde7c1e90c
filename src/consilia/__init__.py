"""Hospitals train a detector for medical images together, on a ledger that proves what each of them did."""

__version__ = "0.1.0"
