"""TaskSpec: what a server publishes (docs/protocols/training.md, step 0); TOML for people, canonical on the ledger."""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from consilia.errors import SpecError
from consilia.protocols.code_book import CodeBook, FindingCode
from consilia.values import Digest, canonical_json, parse_json

MAX_SPEC_BYTES = 8192
"""The contract takes no longer spec; it would be gas for nothing."""

Aggregation = Literal["fedavg", "fedavgm", "fedadam"]
Augmentation = Literal["standard", "hu", "none"]
Privacy = Literal["transparent"]

LATER = object()
"""Marks a key that came after the first specs were published: at its default it is not written (ADR 0053)."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A spec that uses nothing new has the bytes, and so the digest, that it has always had."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in plain(self).items()
            if LATER not in fields[name].metadata or getattr(self, name) != fields[name].default
        }


class Purpose(_Section):
    """What is learnt and for what: the paper's object of learning, equipment and application."""

    object_of_learning: Annotated[str, Field(min_length=1, max_length=200)]
    application: Annotated[str, Field(min_length=1, max_length=40)]
    """The modality, such as CT; a hospital's policy names those that it admits."""
    equipment: Annotated[str, Field(max_length=200)] = "any"
    purpose: Annotated[str, Field(max_length=200)] = "research"


HuRange = Annotated[tuple[float, Annotated[float, Field(gt=0)]], Field(strict=False)]
"""(center, width) of a window in Hounsfield units."""


class DataSpec(_Section):
    """The training set that a hospital must bring."""

    format: Literal["dicom", "image"] = "dicom"
    categories: Annotated[tuple[str, ...], Field(min_length=1, max_length=255, strict=False)]
    """FindingCode classes, in the order of the labels 1..K."""
    window_center_hu: float | None = None
    window_width_hu: Annotated[float | None, Field(gt=0)] = None
    minimum_images: Annotated[int, Field(ge=1)] = 1
    windows_hu: Annotated[tuple[HuRange, ...], Field(strict=False), LATER] = ()
    """Three windows, each (center, width), that become the three channels of one CT slice."""
    neighbouring_slices: Annotated[bool, LATER] = False
    """2.5D: the slices below and above become the first and the third channel."""
    laterality_matters: Annotated[bool, LATER] = False
    """Left and right tell something here: no picture is ever mirrored."""

    @model_validator(mode="after")
    def _channels_fit(self) -> DataSpec:
        if self.windows_hu and len(self.windows_hu) != 3:
            raise ValueError(
                f"data.windows_hu: expected three windows, one a channel, got {len(self.windows_hu)}"
            )
        if self.windows_hu and self.neighbouring_slices:
            raise ValueError(
                "data.windows_hu and data.neighbouring_slices both fill the three channels: choose one"
            )
        if (self.windows_hu or self.neighbouring_slices) and self.format != "dicom":
            raise ValueError(
                "data.windows_hu and data.neighbouring_slices need Hounsfield units and the order of slices, "
                "which plain images do not have: use them with data.format 'dicom'"
            )
        return self

    @property
    def windows(self) -> tuple[HuRange, ...]:
        """The HU windows (center, width) that the task names: three, one, or none."""
        if self.windows_hu:
            return self.windows_hu
        if self.window_center_hu is None or self.window_width_hu is None:
            return ()
        return ((self.window_center_hu, self.window_width_hu),)


class ModelSpec(_Section):
    """The detector, and the digest of its initial weights w_0."""

    detector: str = "faster-rcnn"
    backbone: Annotated[str, Field(max_length=40), LATER] = ""
    """The network under the detector (docs/detection.md); empty takes the detector's own."""
    image_size: Annotated[int, Field(ge=64, le=2048)] = 192
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    initial_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """SHA-256 of the w_0 file; the server fills it in before it publishes."""
    pretrained_digest: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$"), LATER] = ""
    """SHA-256 of a safetensors file whose tensors of equal name and shape are in w_0; without it all are drawn."""


class TrainingSpec(_Section):
    """What happens in a round."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = 8
    local_epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """E of FedAvg: passes over a hospital's own images in a round, or a part of one pass."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 4
    aggregation: Aggregation = "fedavg"
    privacy: Privacy = "transparent"
    max_update_norm: Annotated[float, Field(gt=0)] = 1000.0
    """Bound on the Euclidean norm of w_k - w; an update beyond it is rejected by name."""
    proximal_mu: Annotated[float, Field(ge=0), LATER] = 0.0
    """FedProx (Li et al. 2020): mu/2 ||w_k - w||^2 is added to every hospital's loss."""
    server_learning_rate: Annotated[float | None, Field(gt=0, le=100), LATER] = None
    """Of `fedavgm` and `fedadam`; None is the rule's own, 1.0 and 0.003."""
    server_momentum: Annotated[float | None, Field(ge=0, lt=1), LATER] = None
    """beta of `fedavgm`, beta_1 of `fedadam`; None is the rule's own, 0.5 and 0.9."""
    local_norm: Annotated[bool, LATER] = False
    """FedBN (Li et al. 2021): each hospital keeps its own normalisation layers, which are never sent."""
    augmentation: Annotated[Augmentation, LATER] = "standard"
    """`hu` moves the intensity by what scanners differ in, in Hounsfield units; `none` changes nothing."""
    negatives_per_positive: Annotated[float, Field(ge=0, le=1000), LATER] = 1.0
    """Images without a lesion that are drawn per image with one, anew in every pass."""
    ema_decay: Annotated[float, Field(ge=0, lt=1), LATER] = 0.0
    """Hand in the exponential moving average of a round's weights; 0 hands in the last ones."""

    @model_validator(mode="after")
    def _rule_is_whole(self) -> TrainingSpec:
        own = (self.server_learning_rate, self.server_momentum)
        if self.aggregation == "fedavg" and own != (None, None):
            raise ValueError(
                "training.server_learning_rate and server_momentum: fedavg takes no step of its own; "
                "name fedavgm or fedadam"
            )
        return self

    def local_steps(self, num_examples: int) -> int:
        """How many steps a hospital with so many images takes in a round."""
        return max(1, round(self.local_epochs * num_examples / self.batch_size))


class Terms(_Section):
    """Who may take part, for how long each step waits, and what is paid."""

    quorum: Annotated[int, Field(ge=1, le=512)] = 2
    max_hospitals: Annotated[int, Field(ge=1, le=512)] = 64
    enrol_seconds: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    round_seconds: Annotated[int, Field(ge=1, le=30 * 86_400)] = 3600
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Once the quorum is there, how long the server waits for the rest of the enrolled hospitals."""
    reward_wei: Annotated[int, Field(ge=0)] = 0


class TaskSpec(_Section):
    """A training task, complete; equal specs have equal bytes and so equal digests."""

    title: Annotated[str, Field(min_length=1, max_length=200)]
    purpose: Purpose
    data: DataSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    terms: Terms = Terms()
    findings: Annotated[tuple[FindingCode, ...] | None, Field(strict=False)] = None
    """The code book's entries, one a category; None: codes 1..K in the categories' order."""

    @model_validator(mode="after")
    def _findings_fit(self) -> TaskSpec:
        if self.findings is not None:
            book = CodeBook(findings=self.findings)
            if sorted(finding.category for finding in book.findings) != sorted(self.data.categories):
                raise ValueError("findings: expected one entry for each of data.categories, and no other")
        return self

    @model_validator(mode="after")
    def _quorum_fits(self) -> TaskSpec:
        if self.terms.quorum > self.terms.max_hospitals:
            raise ValueError("terms.quorum is larger than terms.max_hospitals")
        return self

    @model_validator(mode="after")
    def _augmentation_fits(self) -> TaskSpec:
        if self.training.augmentation == "hu" and (self.data.format != "dicom" or not self.data.windows):
            raise ValueError(
                "training.augmentation 'hu' moves Hounsfield units: it needs data.format 'dicom' and the window "
                "in data.window_center_hu and window_width_hu, or data.windows_hu"
            )
        return self

    def to_bytes(self) -> bytes:
        """The canonical JSON that goes onto the ledger.

        Raises:
            SpecError: it is longer than the contract takes.
        """
        # a spec of the time before code books keeps its bytes, and so its digest
        left_out = {"findings"} if self.findings is None else None
        data = canonical_json(self.model_dump(mode="json", exclude=left_out))
        if len(data) > MAX_SPEC_BYTES:
            raise SpecError(
                f"a TaskSpec has at most {MAX_SPEC_BYTES} bytes, this one {len(data)}: shorten its texts"
            )
        return data

    @property
    def code_book(self) -> CodeBook:
        """What the codes of this task's findings mean."""
        if self.findings is None:
            return CodeBook.of_categories(self.data.categories)
        return CodeBook(findings=self.findings)

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes; the contract stores it."""
        return Digest.of(self.to_bytes())


def parse_toml(text: str | bytes) -> TaskSpec:
    """Read a TaskSpec from TOML, or from a file's bytes.

    Raises:
        SpecError: no TOML, no UTF-8, an unknown key, a missing one or a bad value; the message gives the key's path.
    """
    try:
        return _validated(tomllib.loads(text.decode() if isinstance(text, bytes) else text))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"expected a TaskSpec in TOML; {error}") from error


def parse_bytes(data: bytes) -> TaskSpec:
    """Read a TaskSpec from its canonical bytes, and from no others: what is signed is what is read.

    Raises:
        SpecError: not JSON, not a valid spec, or valid but not in canonical form.
    """
    try:
        raw = parse_json(data)
    except ValueError as error:
        raise SpecError(f"expected a TaskSpec as canonical JSON; {error}") from error
    spec = _validated(raw)
    if spec.to_bytes() != data:
        raise SpecError(
            "the TaskSpec on the ledger is not in canonical form, so its digest proves nothing; refuse it"
        )
    return spec


def _validated(raw: Any) -> TaskSpec:
    try:
        return TaskSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError("\n".join(_explain(item) for item in error.errors())) from error


def _explain(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"]) or "TaskSpec"
    if item["type"] == "extra_forbidden":
        known = ", ".join(sorted(_keys_at(item["loc"][:-1])))
        return f"{path}: unknown key; the keys here are {known}"
    if item["type"] == "missing":
        return f"{path}: this key is missing"
    if item["type"] == "value_error":  # of keys that do not fit together, which it names
        return str(item["ctx"]["error"])
    return f"{path}: {item['msg']}, got {item['input']!r}"


def _keys_at(location: tuple[int | str, ...]) -> set[str]:
    model: type[BaseModel] = TaskSpec
    for part in location:
        if isinstance(part, str):  # a number is a place in a list: the model stays that of its items
            model = _model_in(model.model_fields[part].annotation)
    return set(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel]:
    """The section that an annotation such as `tuple[FindingCode, ...] | None` is about."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_model_in(inner) for inner in get_args(annotation) if inner not in (type(None), Ellipsis))
