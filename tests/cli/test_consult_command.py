"""A second opinion by its commands: from a study on disk to the PACS, ERROR, and what is said meanwhile and later."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilia.imaging.ct_file import SliceIdentity, write_ct_file
from consilia.imaging.phantom import SITES
from consilia.protocols.task_spec import parse_toml
from tests.cli.running import Cli
from tests.consortium import Consortium, ServerThread, consortium, spec_toml, write_first_model
from tests.detection.installed import install_detectors
from tests.orthanc import Pacs

BRIGHT = Path(__file__).parents[1] / "detection" / "bright"
SIZE, PRICE_WEI = 64, 10**15
OFFER = f"""
[diagnosis]
answer_seconds = 0

[[diagnosis.offers]]
task = 1
price_wei = {PRICE_WEI}
bond_wei = 1000
"""
SCANNER = replace(SITES[0].scanner, matrix=SIZE)


def slice_hu(number: int, lesion: bool) -> np.ndarray:
    """Quiet tissue; a lesion is brighter than the window."""
    noise = np.random.default_rng(number)
    hu = noise.normal(20, 3, (SIZE, SIZE)).astype(np.float32)
    if lesion:
        left, top = noise.integers(8, 30, 2)
        hu[top : top + 14, left : left + 18] = 90
    return hu


def write_slices(folder: Path, numbers: Sequence[int], boxes_right: bool = True) -> Path:
    """CT slices, one a patient, every other with a lesion, and COCO beside them; or boxes where nothing is."""
    (folder / "images").mkdir(parents=True)
    images, boxes = [], []
    for number in numbers:
        hu, name = slice_hu(number, lesion=number % 2 == 1), f"{number}.dcm"
        write_ct_file(folder / "images" / name, hu, SCANNER, SliceIdentity(f"patient-{number}", 1, 0.0, 5.0))
        images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
        rows, columns = np.nonzero(hu > 80)
        if len(rows):
            left, top = (int(columns.min()), int(rows.min())) if boxes_right else (0, 0)
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [left, top, 18, 14]})
    coco = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "lesion"}]}
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """A task has ended, and its server answers for the model; the hospital has an archive of 110 slices."""
    install_detectors(
        tmp_path / "site", monkeypatch, "bright", {"bright": "bright_rectangles:DETECTOR"}, BRIGHT
    )
    with consortium(tmp_path / "town", monkeypatch, 2) as made:
        for index, name in enumerate(made.names):
            settings = made.home / name / "consilia.toml"
            settings.write_text(settings.read_text() + '[policy]\ndetectors = ["bright"]\n')
            made.restart_hospital(index)
        made.start_server(model='detector = "bright"')
        made.finish()
        write_slices(made.home / "hospital-1" / "data", range(110))
        settings = made.home / "server" / "consilia.toml"
        settings.write_text(settings.read_text() + OFFER)
        made.server = made.new_server()
        made.thread = ServerThread(made.server.serve)
        made.until(lambda tasks: made.hospitals[0].consultation.offers())
        yield made
        made.silence_the_server()


@pytest.fixture
def cli(town: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on the homes of `town`."""
    return Cli(town, monkeypatch, capsys)


def shown_by(said: list[dict[str, Any]]) -> dict[str, Any]:
    """The consultation among what a command said."""
    return next(line for line in said if "outcome" in line)


@pytest.mark.pacs
def test_from_a_folder_of_slices_to_the_pacs(town: Consortium, cli: Cli, tmp_path: Path, pacs: Pacs) -> None:
    study = write_slices(tmp_path / "study", [901]) / "images"
    pacs.store(*study.iterdir())
    said = cli("consult", "ask", str(study), "--assurance", "high", "--pacs", pacs.dicomweb_url)
    shown = shown_by(said)
    assert shown["outcome"] == "answer" and (shown["matches"], shown["audits"]) == (41, 41)
    assert pacs.count("series") == 3 and pacs.count("studies") == 1
    query = shown["query"]
    (line,) = cli("consult", "ls")
    assert line["query"] == query and (line["state"], line["matches"]) == ("released", "41/41")
    assert not cli("consult", "inbox")
    (again,) = cli("consult", "show", query[:10])
    assert again == shown
    assert not town.server_said("failed")


def test_error_waiting_and_a_model_that_is_withdrawn(town: Consortium, cli: Cli, tmp_path: Path) -> None:
    studies = write_slices(tmp_path / "studies", range(902, 908)) / "images"
    misread = write_slices(tmp_path / "misread", range(200, 250), boxes_right=False)
    ask = ("consult", "ask", str(studies / "903.dcm"), "--archive", str(misread))
    failed = shown_by(cli(*ask, code=1))
    assert failed["outcome"] == "failed" and failed["matches"] == failed["required"] - 1 == 15
    assert failed["boxes_apart"] == 5  # all codes were right
    assert failed["hospital_wei"] >= PRICE_WEI and not any(case["findings"] for case in failed["cases"])
    assert shown_by(cli("consult", "show", failed["query"], code=1)) == failed
    cli(*ask, "--pacs", "http://127.0.0.1:1", code=1)  # asked once ever; ERROR is nothing for a PACS

    both = tmp_path / "both"
    both.mkdir()
    for name in ("904.dcm", "905.dcm"):
        (both / name).write_bytes((studies / name).read_bytes())
    early = shown_by(cli("consult", "ask", str(both), "--wait-seconds", "0"))
    assert early["outcome"] == "waiting" and not any(case["findings"] for case in early["cases"])
    while waiting := cli("consult", "inbox"):
        assert [line["query"] for line in waiting] == [early["query"]]
        town.hospitals[0].consultation.advance()  # as `hospital run` does
    batch = shown_by(cli("consult", "show", early["query"]))
    assert {case["name"]: bool(case["findings"]) for case in batch["cases"]} == {
        "904.dcm": False,
        "905.dcm": True,
    }

    (offer,) = town.hospitals[0].consultation.offers()
    cli("server", "withdraw", str(offer.offer_id), home="server")
    cli("consult", "ask", str(studies / "906.dcm"), code=2)
    assert "On offer: none" in cli.errors
    assert len(cli("consult", "ls")) == 2


def test_an_offer_by_files_is_asked_with_its_spec(town: Consortium, cli: Cli, tmp_path: Path) -> None:
    """The server read a model that no task of this ledger registered; the hospital has its TaskSpec from it."""
    home = town.home / "server"
    spec = parse_toml(spec_toml(2, model='detector = "bright"'))
    write_first_model(spec, home / "own.safetensors")
    for path in (home / "task.toml", tmp_path / "task.toml"):
        path.write_text(spec_toml(2, model='detector = "bright"'))
    settings = home / "consilia.toml"
    settings.write_text(
        settings.read_text().replace("task = 1", 'model = "own.safetensors"\nspec = "task.toml"')
    )
    town.silence_the_server()
    town.server = town.new_server()
    town.thread = ServerThread(town.server.serve)
    town.until(lambda tasks: len(town.hospitals[0].consultation.offers()) == 2)
    study = write_slices(tmp_path / "study", [901]) / "images" / "901.dcm"
    ask = ("consult", "ask", str(study), "--offer", "2")
    cli(*ask, code=2)
    assert "give it with --spec" in cli.errors
    other = tmp_path / "other.toml"
    other.write_text(spec_toml(2, model='detector = "bright"').replace("image_size = 64", "image_size = 96"))
    cli(*ask, "--spec", str(other), code=2)
    assert "expected a TaskSpec with the offer's codes and 64 x 64 pixels, it has 96 x 96" in cli.errors
    other.write_bytes(b"\xff\xfe")
    cli(*ask, "--spec", str(other), code=2)
    assert "expected a TaskSpec in TOML" in cli.errors
    shown = shown_by(cli(*ask, "--spec", str(tmp_path / "task.toml")))
    assert shown["outcome"] == "answer"
    assert shown_by(cli("consult", "show", shown["query"])) == shown  # later, without the file


def test_words_that_lead_nowhere(town: Consortium, cli: Cli, tmp_path: Path) -> None:
    study = write_slices(tmp_path / "study", [901, 902]) / "images"
    for words, code, message in (
        (("ask", str(study / "901.dcm"), "--assurance", "total"), 2, "expected standard or high, got total"),
        (("ask", str(tmp_path / "absent")), 2, "absent"),
        (("ask", str(study / "901.dcm"), "--offer", "7"), 2, "expected one offer, 0 fit"),
        (("ask", str(study / "901.dcm"), "--archive", str(study.parent)), 4, "30 are missing"),
        (("show", "abcdef"), 2, "abcdef"),
    ):
        cli("consult", *words, code=code)
        assert message in cli.errors and "Traceback" not in cli.errors
    assert not cli("consult", "ls") and not cli("consult", "inbox") and not town.server_said("answered")
    assert "no queries yet" in cli.text("consult", "ls") and "nothing waits" in cli.text("consult", "inbox")
    party = town.hospitals[1]  # which mines nothing
    party.ledger.pay("away", town.server_address, party.ledger.balance_wei(party.address) - PRICE_WEI)
    archive = str(town.home / "hospital-1" / "data")
    cli("consult", "ask", str(study / "901.dcm"), "--archive", archive, home="hospital-2", code=2)
    assert "the account lacks" in cli.errors and not party.state.consulted()
