"""What each hospital contributed, and its share of the reward."""

from __future__ import annotations

from collections.abc import Mapping

from consilia.values import Address


def shares_by_samples(samples: Mapping[Address, int], pool_wei: int) -> dict[Address, int]:
    """Split the pool in proportion to the examples in all included updates.

    Shares are whole wei and add up to the pool exactly: what rounding leaves over goes, one wei each, to the
    largest remainders, ties by address (Hamilton's method).
    """
    total = sum(samples.values())
    if total == 0:
        return {}
    exact = {hospital: count * pool_wei for hospital, count in samples.items() if count > 0}
    shares = {hospital: weight // total for hospital, weight in exact.items()}
    left_wei = pool_wei - sum(shares.values())
    by_remainder = sorted(exact, key=lambda hospital: (-(exact[hospital] % total), hospital.lower()))
    for hospital in by_remainder[:left_wei]:
        shares[hospital] += 1
    return shares
