"""A second opinion between real processes with real nodes: it comes though both are killed on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.protocols.diagnosis import ImageRole, QueryImage, QueryState
from consilia.roles.diagnosis.consultation import Consultation
from consilia.roles.party import Party
from consilia.roles.progress import silent
from consilia.settings import HospitalSettings, load
from tests.e2e.running import PartyProcess, RunningConsortium, audit
from tests.roles.asking import case

pytestmark = [pytest.mark.network, pytest.mark.slow]

SIZE = 64
OFFER = """
[diagnosis]
answer_seconds = 1

[[diagnosis.offers]]
model = "w.safetensors"
spec = "../task.toml"
price_wei = 1000
bond_wei = 100
score_threshold = 1.0
"""


def healthy_case() -> list[QueryImage]:
    """Images on which a detector that is sure of nothing is right."""
    return [
        QueryImage(
            image.name, image.role, bytes([number]) * SIZE * SIZE, () if image.truth is not None else None
        )
        for number, image in enumerate(case())
    ]


def serve(town: RunningConsortium) -> PartyProcess:
    home = town.home / "server"
    command = ["consilia", "server", "run", "--home", str(home), "--serve", "--format", "json"]
    town.parties["server"] = PartyProcess("server", command, home / "process.log")
    return town.parties["server"]


def test_an_opinion_comes_although_both_are_killed(tmp_path: Path) -> None:
    with RunningConsortium(tmp_path / "town", hospitals=2, rounds=1) as town:
        home = town.home / "server"
        settings = home / "consilia.toml"
        town.start()
        town.finish_work()
        weights.save(build("faster-rcnn", num_classes=1, image_size=SIZE, seed=9), home / "w.safetensors")
        settings.write_text(settings.read_text() + OFFER)
        serve(town).wait_for("model offered")
        own = town.home / town.names[0]
        asking = Consultation(Party(own, load(HospitalSettings, own), silent))
        while not asking.offers():
            asking.party.ledger.wait(asking.party.ledger.confirmed_block().number, 5.0)
        query_id = asking.ask(1, healthy_case(), 16)
        town.parties["server"].wait_for("answered")
        town.parties["server"].kill()
        town.parties[town.names[0]].wait_for("audit opened")
        town.parties[town.names[0]].kill()
        town.start_hospital(town.names[0]).wait_for("ready")  # its node is the one that the server asks
        serve(town)
        town.parties[town.names[0]].wait_for("diagnosis received")
        asking = Consultation(Party(own, load(HospitalSettings, own), silent))
        opinion = asking.opinion(asking.log().queries[query_id])
        town.stop()
    assert opinion.query.state is QueryState.RELEASED and opinion.query.matches == 20
    ((image, diagnosis),) = opinion.diagnoses
    assert image.role is ImageRole.REAL and diagnosis.codes == ()
    done = audit(town.home)
    assert done.returncode == 0, done.stderr
