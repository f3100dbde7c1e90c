"""Second opinions of a detector, of the kind that a server runs: what breaks it, and what a cheat could do with it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from consilia.detection.inference import Detector, load_detector
from consilia.protocols.diagnosis import ImageRole, QueryImage, QueryState
from consilia.protocols.findings import codes_of
from consilia.protocols.task_spec import parse_toml
from consilia.roles.diagnosis.diagnoser import DetectorDiagnoser
from tests.consortium import Consortium, spec_toml, write_first_model
from tests.detection.bright import bright_rectangles
from tests.detection.bright.bright_rectangles import BrightRectangles
from tests.detection.installed import install_detectors
from tests.roles.asking import BOND_WEI, LESION, OTHER, PRICE_WEI, SIZE, Clinic, case, picture
from tests.roles.training.cheating import SIGNALS, Cheat, check_guessing

ASKED, ANSWERED, _, _, _, RELEASED, FAILED, STOPPED = QueryState


class Fragile(BrightRectangles):
    """Fails as often as there are errors left."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = list(errors)

    def forward(self, images: list[Tensor], targets: object = None) -> list[dict[str, Tensor]]:
        if self.errors:
            raise self.errors.pop(0)
        return super().forward(images, targets)


def diagnoser(model: torch.nn.Module) -> DetectorDiagnoser:
    return DetectorDiagnoser(Detector(model, SIZE, ("lesion",)), [LESION], 0.5)


def refused(clinic: Clinic, reason: str, seed: int = 9000) -> None:
    """The query is refused with the fee, and no server has died."""
    opinion = clinic.run(clinic.ask(case(seed=seed)))
    assert opinion.query.state is STOPPED and opinion.query.reason == reason and opinion.failed
    assert opinion.query.hospital_wei == PRICE_WEI and opinion.query.server_wei == 0


def test_a_model_that_fails_costs_its_query_and_not_the_server(three: Consortium) -> None:
    errors = (
        RuntimeError("shape mismatch\nin a kernel"),
        MemoryError(),
        ValueError("nan"),
        torch.cuda.OutOfMemoryError(),
        IndexError("label 9"),
    )
    model = Fragile(*errors)
    clinic = Clinic(three, load=lambda: diagnoser(model))
    for number in range(len(errors)):
        refused(clinic, "this server's model failed", seed=9000 + 2000 * number)
    said = clinic.said("server", "the model failed")
    assert [item["error"] for item in said] == [type(error).__name__ for error in errors]
    assert said[0]["reason"] == "shape mismatch"
    assert clinic.run(clinic.ask()).query.state is RELEASED
    clinic.settled()


def test_weights_that_are_gone_cost_the_query_and_are_looked_for_again(
    three: Consortium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bright = Path(bright_rectangles.__file__).parent
    install_detectors(
        tmp_path / "site", monkeypatch, "bright", {"bright": "bright_rectangles:DETECTOR"}, bright
    )
    spec, weights = parse_toml(spec_toml(3, model='detector = "bright"')), tmp_path / "weights.safetensors"

    def load() -> DetectorDiagnoser:
        return diagnoser(load_detector(spec, weights).model)

    clinic = Clinic(three, load=load)
    refused(clinic, "this server's model failed")
    (said,) = clinic.said("server", "the model failed")
    assert str(tmp_path) not in str(said)
    write_first_model(spec, weights)
    assert clinic.run(clinic.ask()).query.state is RELEASED


def test_a_bond_that_is_not_there_refuses_the_query(three: Consortium) -> None:
    clinic = Clinic(three, bond_wei=10**22)
    refused(clinic, "this server cannot post its bond now")


def test_without_gas_a_server_waits_and_does_what_else_it_has_to_do(three: Consortium) -> None:
    ledger = three.server.ledger
    clinic = Clinic(three)
    query_id = clinic.ask()
    rest_wei = ledger.balance_wei(three.server_address) - BOND_WEI - 10**14
    ledger.pay("away", three.addresses[1], rest_wei)
    for _ in range(2):
        clinic.server.advance()
    assert clinic.query(query_id).state is ASKED
    (said,) = clinic.said("server", "the ledger's node refused a step")
    assert "insufficient funds" in str(said["reason"])
    three.hospitals[0].ledger.pay("help", three.server_address, 10**18)
    assert clinic.run(query_id).query.state is RELEASED


def test_a_hospital_that_opens_another_label_is_caught_and_its_silence_pays(three: Consortium) -> None:
    """Its model's answers are right; to save its fee it would have to say that they are not."""
    Clinic(three, load=lambda: diagnoser(BrightRectangles())).open_falsely()


def dealt(chance: random.Random) -> list[QueryImage]:
    """A case as an archive gives it: roles by chance, so that what an image shows says nothing of its role."""
    shown = [picture(number, healthy=number % 3 == 0) for number in range(32)]
    chance.shuffle(shown)
    roles = [ImageRole.REAL, *[ImageRole.AUDIT] * 20, *[ImageRole.COVER] * 11]
    return [
        QueryImage(f"{number}", role, pixels, truth if role is ImageRole.AUDIT else None)
        for number, (role, (pixels, truth)) in enumerate(zip(roles, shown, strict=True))
    ]


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_detector_cannot_tell_the_audits_before_it_has_committed(signal: str) -> None:
    """Of its 12 bad answers 7.5 fall on audit images, as if it had drawn lots, and the query fails."""
    chance = random.Random(signal)
    check_guessing(Cheat(diagnoser(BrightRectangles()), signal), lambda: dealt(chance), chance, queries=40)


def test_on_the_ledger_such_a_server_fails(three: Consortium) -> None:
    clinic = Clinic(three, load=lambda: Cheat(diagnoser(BrightRectangles()), "score"))
    query_id = clinic.ask(dealt(random.Random(6)))
    opinion = clinic.run(query_id)
    reports = clinic.server._kept(opinion.query).reports
    missed = sum(codes_of(reports[j]) == (OTHER,) for j in clinic.hospital.own(opinion.query).audits)
    assert opinion.query.scored_matches == 20 - missed
    assert opinion.query.state is (FAILED if missed > 4 else RELEASED)
    clinic.settled()
