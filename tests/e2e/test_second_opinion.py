"""Second opinions by a detector that was trained here, on a mined chain: who passes, who is caught, who pays."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.protocols.assurance import STANDARD
from consilia.protocols.diagnosis import ImageRole, QueryImage, QueryState
from consilia.protocols.findings import Finding
from consilia.roles.diagnosis.answering import Diagnoser
from consilia.roles.diagnosis.diagnoser import offered_models
from consilia.settings.sections import OfferSection
from tests.consortium import Consortium, consortium, spec_toml
from tests.detection.squares import square_example
from tests.roles.asking import SILENCES, Clinic
from tests.roles.training.cheating import SIGNALS, Cheat, check_guessing

pytestmark = pytest.mark.slow

SIZE, STEPS = 64, 120
PRICE_WEI, BOND_WEI = 10**15, 10**14


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Weights that find bright rectangles, after a minute of training."""
    folder = tmp_path_factory.mktemp("weights")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    weights.save(build("faster-rcnn", num_classes=1, image_size=SIZE, seed=9), folder / "start")
    examples = [square_example(i, size=SIZE, lesions=int(i % 5 > 0)) for i in range(60)]
    trainer = Trainer("faster-rcnn", 1, SIZE, Recipe(batch_size=4, warmup_steps=10), examples, 1)
    trainer.train(folder / "start", StepBudget(STEPS, 0, STEPS), folder / "trained")
    yield folder / "trained"
    torch.set_num_threads(threads)


def image(number: int, role: ImageRole) -> QueryImage:
    """A picture that training has not seen; one in five is healthy."""
    example = square_example(1000 + number, size=SIZE, lesions=int(number % 5 > 0))
    truth = tuple(Finding(1, tuple(int(edge) for edge in box)) for box in example.boxes_xyxy)
    pixels = np.asarray(example.pixels, np.uint8).tobytes()
    return QueryImage(f"case-{number}", role, pixels, truth if role is ImageRole.AUDIT else None)


def case(first: int) -> list[QueryImage]:
    roles = [ImageRole.REAL] + [ImageRole.AUDIT] * STANDARD.audits + [ImageRole.COVER] * STANDARD.covers
    return [image(first + number, role) for number, role in enumerate(roles, 1)]


@dataclass
class Careless:
    """Half of what it says is made up."""

    honest: Diagnoser

    def __post_init__(self) -> None:
        self.image_format = self.honest.image_format

    def diagnose(self, images: list[bytes]) -> list[tuple[Finding, ...]]:
        found = self.honest.diagnose(images)
        made_up = ((), (Finding(1, (0, 0, 9, 9)),))
        return [report if place % 2 else made_up[not report] for place, report in enumerate(found)]


class Answers:
    """The trained model of a server, and a clinic where it answers."""

    def __init__(self, town: Consortium, home: Path, trained: Path) -> None:
        (home / "w.safetensors").write_bytes(trained.read_bytes())
        (home / "task.toml").write_text(spec_toml(2))  # images of 64 pixels
        offer = OfferSection(
            model=Path("w.safetensors"),
            spec=Path("task.toml"),
            price_wei=PRICE_WEI,
            bond_wei=BOND_WEI,
        )
        (self.model,) = offered_models([offer], home, town.server.state, {})
        self.clinic = Clinic(town)
        self.clinic.server.withdraw(1)
        self.clinic.server.models = (self.model,)
        self.clinic.server.offer()

    @property
    def diagnoser(self) -> Diagnoser:
        return self.model.load()


@pytest.fixture
def answers(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    with consortium(tmp_path, monkeypatch, 1) as town:
        yield Answers(town, tmp_path / "server", trained)


def test_a_trained_model_passes_and_a_careless_one_fails(answers: Answers) -> None:
    clinic = answers.clinic
    opinion = clinic.run(clinic.ask(case(0)))
    query = opinion.query
    assert query.state is QueryState.RELEASED and query.matches >= STANDARD.required
    ((asked, diagnosis),) = opinion.diagnoses
    example = square_example(1001, size=SIZE, lesions=1)
    assert asked.name == "case-1" and diagnosis.codes == (1,)
    found, true = np.array(diagnosis.findings[0].box_xyxy), example.boxes_xyxy[0]
    assert np.abs(found - true).max() < 8
    careless = Careless(answers.diagnoser)
    clinic.server._loaded[answers.model.model_digest] = careless
    failed = clinic.run(clinic.ask(case(100)))
    assert failed.query.state is QueryState.FAILED and failed.failed
    assert failed.query.hospital_wei == PRICE_WEI and not failed.query.hidden_openings
    clinic.settled()


def test_a_hospital_that_opens_another_label_is_caught(answers: Answers) -> None:
    answers.clinic.open_falsely(case(0))


def test_silence_costs_whom_the_protocol_says(answers: Answers) -> None:
    for number, silence in enumerate(SILENCES):
        answers.clinic.fall_silent(silence, case(100 * number))


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_trained_model_cannot_tell_the_audits_before_it_has_committed(
    answers: Answers, signal: str
) -> None:
    chance = random.Random(signal)

    def dealt() -> list[QueryImage]:
        first = chance.randrange(10_000)
        roles = [ImageRole.REAL] + [ImageRole.AUDIT] * STANDARD.audits + [ImageRole.COVER] * STANDARD.covers
        chance.shuffle(roles)  # as an archive gives them: what an image shows says nothing of its role
        return [image(first + number, role) for number, role in enumerate(roles)]

    check_guessing(Cheat(answers.diagnoser, signal), dealt, chance, queries=10)
