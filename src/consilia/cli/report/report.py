"""What a demo run leaves behind: one frozen value that is `report.json`, drawn by the page and the terminal.

Amounts are wei, times seconds, boxes pixels of the drawn slice. How good the models are is in `results`.
"""

from __future__ import annotations

import base64
import io
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from consilia.cli.report.consultation import ConsultationReport
from consilia.cli.report.results import Count, Part, PositiveSeconds, Results, Text, Unit, Wei
from consilia.errors import InputError

if TYPE_CHECKING:
    import numpy as np

SCHEMA_VERSION = 1

Status = Literal["included", "late", "rejected", "missing"]
RoleName = Literal["hospital", "server", "ledger", "store", "auditor"]

# The run


class Update(Part):
    """What became of one hospital's update in one round. `reason` says why it was not included."""

    hospital: str
    status: Status
    reason: str = ""
    num_examples: Count = 0
    loss: float | None = None
    bytes: Count = 0
    seconds: PositiveSeconds = 0.0


class Round(Part):
    """One round; the scores are those of the global model that came out of it, where it was evaluated."""

    round_index: Count
    map50: Unit | None = None
    map: Unit | None = None
    cpm: Unit | None = None
    updates: tuple[Update, ...]
    seconds: PositiveSeconds
    bytes: Count
    block_opened: Count
    block_closed: Count


class Seconds(Part):
    """Wall time by phase; `yardsticks` is the training alone and pooled, for comparison only."""

    setup: PositiveSeconds = 0.0
    data: PositiveSeconds = 0.0
    start_up: PositiveSeconds = 0.0
    enrol: PositiveSeconds = 0.0
    rounds: PositiveSeconds = 0.0
    settle: PositiveSeconds = 0.0
    consultation: PositiveSeconds = 0.0
    yardsticks: PositiveSeconds = 0.0
    evaluation: PositiveSeconds = 0.0
    audit: PositiveSeconds = 0.0
    total: PositiveSeconds = 0.0


class Bytes(Part):
    """Bytes by kind: sealed artifacts in the store, and the chain on one node's disk."""

    models: Count = 0
    updates: Count = 0
    key_strings: Count = 0
    other: Count = 0
    chain: Count = 0


class Miner(Part):
    """The blocks of the final chain that one hospital mined."""

    hospital: str
    account: str
    blocks: Count
    reward_wei: Wei


class Contracts(Part):
    """Where the contracts live on this chain."""

    registry: str
    training: str
    escrow: str
    exchange: str
    diagnosis: str


class Ledger(Part):
    """The chain at the end of the run. Secrets and money waited for `confirmations` blocks."""

    chain_id: Count
    height: Count
    head: str
    blocks_by_miner: tuple[Miner, ...]
    block_rewards_wei: Wei
    transactions: Count
    gas_used: Count
    reorgs: Count
    contracts: Contracts
    confirmations: Count


class Reward(Part):
    """What one hospital earned: its share of the task's pool, and what mining brought it."""

    hospital: str
    account: str
    num_examples: Count
    share_wei: Wei
    claimed: bool
    block_reward_wei: Wei


class SkippedStudy(Part):
    """A study, or file, that could not be used, and why."""

    name: str
    reason: str


class HospitalData(Part):
    """What one hospital trained on. `scanner` and `manufacturer` are empty where the images do not tell."""

    hospital: str
    scanner: str = ""
    manufacturer: str = ""
    patients: Count
    images: Count
    lesions: Count
    studies_used: Count
    studies_skipped: Count
    skipped: tuple[SkippedStudy, ...] = ()


class HeldOut(Part):
    """The patients that no training saw and every model was scored on."""

    patients: Count
    images: Count
    lesions: Count


class HitRule(Part):
    """When a prediction counts as a hit in the FROC curve."""

    kind: Literal["iou", "centre_in_box"] = "iou"
    min_iou: float | None = 0.5


class StoreSight(Part):
    """What lay in the store at the end: `envelopes` counts the objects that are sealed envelopes."""

    objects: Count
    envelopes: Count
    bytes: Count


class RoleSight(Part):
    """What one role could and could not see in this run."""

    role: RoleName
    could_see: tuple[Text, ...]
    could_not_see: tuple[Text, ...]


class Audit(Part):
    """How the run was audited: exit code 0, or 5 with the finding as `message`."""

    command: str
    exit_code: Count
    message: str = ""
    models_rederived: Count = 0
    seconds: PositiveSeconds = 0.0


class Box(Part):
    """A box in pixels of its slice (x1, y1, x2, y2); truth has no score."""

    xyxy: tuple[float, float, float, float]
    score: Unit | None = None
    label: str = ""


class Prediction(Part):
    """The boxes that one model draws on a slice; `hospital` names it where `model` is local."""

    model: Literal["federated", "pooled", "local"]
    boxes: tuple[Box, ...]
    hospital: str = ""


class Example(Part):
    """A held-out slice, its truth and what the models found; `image_png_base64` is an 8-bit PNG."""

    patient: str
    hospital: str
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    image_png_base64: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
    truth: tuple[Box, ...]
    predictions: tuple[Prediction, ...]
    window: str = ""


class Machine(Part):
    """Where it ran, so that the seconds mean something."""

    cpu_count: Count
    memory_bytes: Count
    platform: str


class Report(Part):
    """Everything that a run has to show; written as `report.json`, drawn as `report.html`."""

    schema_version: Literal[1] = 1
    command: str
    started_at: datetime
    versions: dict[str, str]
    machine: Machine
    seed: int
    detector: str
    data_source: str
    held_out: HeldOut
    hit_rule: HitRule
    results: Results
    rounds: tuple[Round, ...]
    seconds: Seconds
    bytes: Bytes
    ledger: Ledger
    rewards: tuple[Reward, ...]
    data: tuple[HospitalData, ...]
    store: StoreSight
    roles: tuple[RoleSight, ...]
    examples: tuple[Example, ...] = ()
    audit: Audit | None = None
    consultation: ConsultationReport | None = None
    """The second opinion that one hospital asked for with the trained model."""

    def to_json(self) -> str:
        """The report as indented JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            InputError: the text is no report of this schema version; the message names the first wrong key.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "the text"
            raise InputError(
                f"expected a report of schema version {SCHEMA_VERSION}, but {where}: {first['msg']}; "
                "write it again with this version of consilia"
            ) from error


def png_base64(pixels: np.ndarray) -> str:
    """A slice as the base64 text of a PNG.

    Args:
        pixels: uint8, (height, width) grey or (height, width, 3) RGB, already windowed.

    Raises:
        InputError: another type or shape.
    """
    from PIL import Image

    if pixels.dtype.name != "uint8" or pixels.ndim not in (2, 3):
        raise InputError(f"expected uint8 pixels, grey or RGB, got {pixels.dtype} of shape {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def read_report(path: Path) -> Report:
    """The report in a `report.json`.

    Raises:
        InputError: there is no such file, or it is no report.
    """
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a report at {path}, but it cannot be read: {error}") from error
