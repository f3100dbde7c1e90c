"""The code book: one number a finding, one spelling a book, and a TaskSpec that carries it."""

from __future__ import annotations

import json

import pytest

from consilia.errors import SpecError, VerificationError
from consilia.protocols.code_book import CodeBook, described, encode_codes, parse_code_book
from consilia.protocols.task_spec import parse_bytes, parse_toml
from tests.consortium import spec_toml

BOOK = CodeBook(findings=described(["haemorrhage", "mass", "cyst"]))
FINDINGS = """
[[findings]]
code = 7
category = "lesion"
en = "lesion of the lung"
zh = "肺部病灶"
coding = { scheme = "RADLEX", value = "RID5", meaning = "lesion" }
"""


def test_a_book_has_one_spelling():
    data = BOOK.to_bytes()
    assert parse_code_book(data) == BOOK
    assert (
        data
        == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    )
    for other in (
        data + b" ",
        json.dumps(json.loads(data)).encode(),
        data.replace(b'"code":1', b'"code":1.0'),
    ):
        with pytest.raises(VerificationError):
            parse_code_book(other)


@pytest.mark.parametrize(
    "change",
    [
        {"code": 0},
        {"code": 65536},
        {"code": 2},
        {"code": "1"},
        {"category": "mass"},
        {"category": ""},
        {"note": "x"},
        {"coding": {"scheme": "RADLEX", "value": "RID1"}},
        {"coding": {"scheme": "RADLEX", "value": "RID1", "meaning": "x" * 65}},
    ],
    ids=str,
)
def test_what_is_no_book_is_refused(change):
    raw = json.loads(BOOK.to_bytes())
    raw["findings"][0] |= change  # 2 and "mass" are the second finding's
    with pytest.raises(VerificationError, match="expected a code book"):
        parse_code_book(json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def test_names_are_read_in_both_languages_and_never_empty():
    bleed, _, cyst = BOOK.findings
    assert (bleed.name(), bleed.name("zh-CN")) == ("intracranial haemorrhage", "颅内出血")
    assert (cyst.name(), cyst.name("zh-CN"), cyst.coding) == ("cyst", "cyst", None)


def test_codes_and_categories_find_each_other():
    assert [BOOK.code_of(name) for name in ("haemorrhage", "mass", "cyst")] == [1, 2, 3]
    assert BOOK.finding(2).category == "mass"
    with pytest.raises(SpecError, match="'fracture'; its categories are haemorrhage, mass, cyst"):
        BOOK.code_of("fracture")
    with pytest.raises(VerificationError, match="got 4"):
        BOOK.finding(4)


def test_a_diagnosis_is_a_set():
    assert encode_codes([]) == b""
    assert encode_codes([258, 1, 258]) == encode_codes([1, 258]) == b"\x00\x01\x01\x02"
    # one code whose bytes look like two codes of one byte is still another diagnosis
    assert encode_codes([0x0102]) != encode_codes([1, 2])


def test_a_spec_carries_its_book():
    plain, coded = parse_toml(spec_toml(4)), parse_toml(spec_toml(4) + FINDINGS)
    assert [(f.code, f.name("zh")) for f in coded.code_book.findings] == [(7, "肺部病灶")]
    assert parse_bytes(coded.to_bytes()) == coded
    # the book is under the task's digest
    assert coded.digest != plain.digest
    assert parse_toml(spec_toml(4) + FINDINGS.replace("code = 7", "code = 8")).digest != coded.digest


def test_a_spec_without_a_book_keeps_its_bytes_and_has_the_plain_one():
    spec = parse_toml(spec_toml(4))
    assert b"findings" not in spec.to_bytes()
    assert spec.code_book == CodeBook.of_categories(spec.data.categories)
    assert [(f.code, f.category, f.en, f.coding) for f in spec.code_book.findings] == [
        (1, "lesion", "", None)
    ]
    # two spellings of one spec would have two digests
    raw = json.loads(spec.to_bytes()) | {"findings": None}
    with pytest.raises(SpecError, match="canonical"):
        parse_bytes(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('category = "lesion"', 'category = "cyst"', "one entry for each of data.categories"),
        ("code = 7", "code = 0", "findings.0.code"),
        ("code = 7", "number = 7", "findings.0.number: unknown key; the keys here are category, code,"),
        ('value = "RID5"', 'rid = "RID5"', "findings.0.coding.rid: unknown key; the keys here are meaning,"),
    ],
)
def test_a_bad_book_is_refused_by_the_path_of_its_key(old, new, message):
    assert old in FINDINGS
    with pytest.raises(SpecError) as refused:
        parse_toml(spec_toml(4) + FINDINGS.replace(old, new))
    assert message in str(refused.value)
