"""Digests, canonical JSON, and JSON that strangers wrote."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.values import MAX_JSON_DEPTH, ArtifactContext, ArtifactKind, Digest, canonical_json, parse_json

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_canonical_json_is_read_back_and_is_its_own_canonical_form(value: object) -> None:
    data = canonical_json(value)
    assert parse_json(data) == value
    assert canonical_json(parse_json(data)) == data


@given(st.dictionaries(st.text(), st.integers(), min_size=2), st.randoms())
def test_equal_values_have_equal_bytes(value: dict[str, int], random: object) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_written(number: float) -> None:
    with pytest.raises(ValueError):
        canonical_json({"x": number})


@given(st.binary(max_size=50))
def test_strange_bytes_are_refused_as_a_value_error_or_read(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        canonical_json(parse_json(data))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"NaN",
        b"[Infinity]",
        b"-1e999",
        b'"\\ud800"',
        b'{"a":1,"a":1}',
        b"\xff",
        b"1" * 5000,
        b"[1,]",
        b"01",
    ],
)
def test_json_that_could_not_be_written_again_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'["]",', b'["\\"]",', b'[{"]":'])
def test_deep_nesting_is_refused_before_the_stack_ends(opening: bytes) -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json(opening * 100_000)


def test_brackets_in_texts_do_not_count() -> None:
    text = '"' + "[" * 1000 + '\\"' + "{" * 1000 + '"'
    assert len(parse_json(text.encode())) == 2001
    assert parse_json(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH) is not None


def test_a_digest_has_32_bytes_and_shows_as_hex() -> None:
    digest = Digest.of(b"")
    assert str(digest) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert Digest.from_hex("0x" + str(digest)) == Digest.from_hex(str(digest)) == digest
    for size in (0, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            Digest(bytes(size))


def test_a_context_of_another_size_is_refused() -> None:
    good = ArtifactContext(1, "0x" + "aa" * 20, 1, 0, "0x" + "bb" * 20, ArtifactKind.MODEL)
    assert len(good.encode()) == len(b"consilia/context/v1") + 8 + 20 + 8 + 4 + 20 + 2 + 2
    for changes in (
        {"owner": "0x" + "bb" * 19},
        {"contract": "0x" + "aa" * 21},
        {"chain_id": -1},
        {"round_index": 2**32},
    ):
        with pytest.raises((ValueError, OverflowError)):
            ArtifactContext(**{**good.__dict__, **changes}).encode()
