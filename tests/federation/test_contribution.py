"""Shares by samples: whole wei that add up, in the order of what was contributed."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from consilia.federation.contribution import shares_by_samples

ADDRESSES = st.integers(1, 2**160 - 1).map(lambda number: f"0x{number:040x}")
SAMPLES = st.dictionaries(ADDRESSES, st.integers(0, 2**64 - 1), max_size=20)


@given(SAMPLES, st.integers(0, 2**100))
def test_shares_add_up_to_the_last_wei(samples: dict[str, int], pool_wei: int) -> None:
    shares = shares_by_samples(samples, pool_wei)
    total = sum(samples.values())
    assert shares.keys() == {hospital for hospital, count in samples.items() if count}
    assert sum(shares.values()) == (pool_wei if total else 0)
    for hospital, share_wei in shares.items():
        exact, rest = divmod(samples[hospital] * pool_wei, total)
        assert share_wei - exact in ((0, 1) if rest else (0,))


@given(SAMPLES, st.integers(0, 2**100), st.randoms())
def test_shares_do_not_depend_on_the_order(samples: dict[str, int], pool_wei: int, random: object) -> None:
    shuffled = list(samples.items())
    random.shuffle(shuffled)
    assert shares_by_samples(dict(shuffled), pool_wei) == shares_by_samples(samples, pool_wei)


@given(SAMPLES, st.integers(0, 2**100))
def test_more_samples_are_never_paid_less(samples: dict[str, int], pool_wei: int) -> None:
    shares = shares_by_samples(samples, pool_wei)
    ranked = sorted(shares, key=lambda hospital: samples[hospital])
    for less, more in itertools.pairwise(ranked):
        assert shares[less] <= shares[more] or samples[less] == samples[more]
