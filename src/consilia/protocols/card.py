"""The card of an artifact that others may ask for: what a buyer knows before it pays; public, on the ledger."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consilia.errors import InputError, VerificationError
from consilia.values import canonical_json, parse_json

MAX_CARD_BYTES = 8192
"""What contracts/exchange.vy takes."""
MAX_TITLE, MAX_DESCRIPTION = 200, 4000
"""In characters."""

DEIDENTIFICATION = (
    "rewritten from pixels and geometry; patients, studies and images renamed with a key; whole HU; "
    "text inside the pixels is looked for when CT slices are imported from DICOM, not in other images"
)


class Counts(BaseModel):
    """What is in a data set; `members_digest` is over the salted digests of its members."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    images: Annotated[int, Field(ge=1)]
    images_with_boxes: Annotated[int, Field(ge=0)]
    patients: Annotated[int, Field(ge=1)]
    studies: Annotated[int, Field(ge=1)]
    modality: str
    boxes_by_category: tuple[tuple[str, int], ...]
    members_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Card(BaseModel):
    """What the owner says of an artifact. Equal cards have equal bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal["consilia/card/v1"] = "consilia/card/v1"
    title: Annotated[str, Field(min_length=1, max_length=MAX_TITLE)]
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION)] = ""
    dataset: Counts | None = None
    deidentification: str = ""

    def to_bytes(self) -> bytes:
        """The canonical JSON that goes onto the ledger.

        Raises:
            InputError: it is longer than the contract takes.
        """
        data = canonical_json(self.model_dump(mode="json"))
        if len(data) > MAX_CARD_BYTES:
            raise InputError(f"a card has at most {MAX_CARD_BYTES} bytes, this one {len(data)}: shorten it")
        return data

    @property
    def text(self) -> str:
        """The card for a person, one fact a line."""
        lines = [self.title, self.description]
        if self.dataset:
            counts = self.dataset
            boxes = ", ".join(f"{count} {name}" for name, count in counts.boxes_by_category)
            lines.append(
                f"{counts.modality}: {counts.images} images of {counts.patients} patients in {counts.studies} "
                f"studies, {counts.images_with_boxes} with boxes ({boxes or 'none'})"
            )
            lines.append(f"de-identification: {self.deidentification or 'not stated'}")
        return "\n".join(line for line in lines if line)


def parse_card(data: bytes) -> Card:
    """Read a card from the ledger, in canonical form or not at all.

    Raises:
        VerificationError: it is no card.
    """
    try:
        card = Card.model_validate(parse_json(data))
    except (ValueError, ValidationError) as error:
        raise VerificationError(f"expected an artifact's card as canonical JSON; {error}") from error
    if card.to_bytes() != data:
        raise VerificationError("expected an artifact's card in canonical form, got another spelling")
    return card
