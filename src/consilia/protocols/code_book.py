"""The code book: which number stands for which finding (docs/formats/code-book.md)."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from consilia.errors import SpecError, VerificationError
from consilia.values import Digest, canonical_json, parse_json

CODE_BYTES = 2

Name = Annotated[str, Field(max_length=100)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Coding(_Frozen):
    """A term of a public terminology; `scheme` as in DICOM PS3.16, 8, such as RADLEX."""

    scheme: Annotated[str, Field(min_length=1, max_length=16)]
    value: Annotated[str, Field(min_length=1, max_length=64)]
    meaning: Annotated[str, Field(min_length=1, max_length=64)]


class FindingCode(_Frozen):
    """One kind of finding."""

    code: Annotated[int, Field(ge=1, le=65535)]
    category: Annotated[str, Field(min_length=1, max_length=200)]
    """The class as data sets name it."""
    en: Name = ""
    zh: Name = ""
    coding: Coding | None = None

    def name(self, language: str = "en") -> str:
        """What a person reads, in `en` or `zh`."""
        return (self.zh if language.startswith("zh") else self.en) or self.category


KNOWN_FINDINGS: dict[str, tuple[str, str, Coding]] = {
    "haemorrhage": ("intracranial haemorrhage", "颅内出血", Coding(
        scheme="RADLEX", value="RID4700", meaning="hemorrhage")),
    "hemorrhage": ("intracranial haemorrhage", "颅内出血", Coding(
        scheme="RADLEX", value="RID4700", meaning="hemorrhage")),
    "mass": ("mass", "占位性病变", Coding(scheme="RADLEX", value="RID3874", meaning="mass")),
    "nodule": ("nodule", "结节", Coding(scheme="RADLEX", value="RID3875", meaning="nodule")),
}  # fmt: skip
"""Names and RadLex terms of what our data sets call findings; a consortium writes its own."""


def described(categories: Iterable[str]) -> tuple[FindingCode, ...]:
    """Findings with codes 1..K for these categories, with the names and terms that are known here."""
    findings = []
    for code, category in enumerate(categories, start=1):
        en, zh, coding = KNOWN_FINDINGS.get(category, ("", "", None))
        findings.append(FindingCode(code=code, category=category, en=en, zh=zh, coding=coding))
    return tuple(findings)


class CodeBook(_Frozen):
    """All findings that a model can report. Equal books have equal bytes and so equal digests."""

    format: Literal["consilia/code-book/v1"] = "consilia/code-book/v1"
    findings: Annotated[tuple[FindingCode, ...], Field(min_length=1, max_length=255, strict=False)]

    @model_validator(mode="after")
    def _unambiguous(self) -> CodeBook:
        codes = [finding.code for finding in self.findings]
        if codes != sorted(set(codes)):
            raise ValueError("findings: expected rising codes, each once")
        if len({finding.category for finding in self.findings}) != len(codes):
            raise ValueError("findings: expected each category once")
        return self

    @classmethod
    def of_categories(cls, categories: Iterable[str]) -> CodeBook:
        """The book of a task that names none: codes 1..K, no names, no terms; the same for ever."""
        findings = (FindingCode(code=i, category=name) for i, name in enumerate(categories, start=1))
        return cls(findings=tuple(findings))

    def to_bytes(self) -> bytes:
        """The canonical JSON."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes."""
        return Digest.of(self.to_bytes())

    @cached_property
    def _by_code(self) -> dict[int, FindingCode]:
        return {finding.code: finding for finding in self.findings}

    @cached_property
    def _by_category(self) -> dict[str, FindingCode]:
        return {finding.category: finding for finding in self.findings}

    def finding(self, code: int) -> FindingCode:
        """What a code stands for.

        Raises:
            VerificationError: it is not in the book.
        """
        if code not in self._by_code:
            raise VerificationError(f"expected a code of the task's code book, got {code}")
        return self._by_code[code]

    def code_of(self, category: str) -> int:
        """The code of a data set's category.

        Raises:
            SpecError: the book does not have it.
        """
        if category not in self._by_category:
            known = ", ".join(self._by_category)
            raise SpecError(f"the code book has no {category!r}; its categories are {known}")
        return self._by_category[category].code


def encode_codes(codes: Iterable[int]) -> bytes:
    """A diagnosis as bytes: the ascending codes, each once, two bytes each; empty for no finding."""
    return b"".join(code.to_bytes(CODE_BYTES, "big") for code in sorted(set(codes)))


def parse_code_book(data: bytes) -> CodeBook:
    """Read a book from its canonical bytes, and from no others.

    Raises:
        VerificationError: it is no code book, or in another spelling.
    """
    try:
        book = CodeBook.model_validate(parse_json(data))
    except (ValueError, ValidationError) as error:
        raise VerificationError(f"expected a code book as canonical JSON; {error}") from error
    if book.to_bytes() != data:
        raise VerificationError("expected a code book in canonical form, got another spelling")
    return book
