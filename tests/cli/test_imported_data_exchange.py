"""From a PACS's files to a buyer: nobody who was in them is in the package, the store, the ledger or any home."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_data_import import coco
from tests.cli.test_exchange_command import Cli, register, step
from tests.consortium import consortium
from tests.imaging.planted import NAME, NUMBER, UID_ROOT, leaks, planted_ct


def test_nobody_is_in_what_is_registered_stored_and_sold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / f"{NAME} {NUMBER}"
    source.mkdir()
    for number in (1, 2):
        planted_ct(number).save_as(source / f"{NAME}-{number}.dcm")
    images = [
        {"file_name": f"{NAME}-1.dcm", "patient": f"{NAME}-{NUMBER}", "study": f"{UID_ROOT}.1"},
        {"file_name": f"{UID_ROOT}.3.2", "patient": f"{NAME}-{NUMBER}"},
    ]
    coco(source / "annotations.json", images, [(0, [10, 10, 20, 20]), (1, [5, 5, 9, 9])])
    (tmp_path / "town").mkdir()
    with consortium(tmp_path / "town", monkeypatch, 2) as town:
        cli = Cli(town, monkeypatch, capsys)
        assert step(cli("data", "import", "--from", str(source)), "imported")["boxes"] == 2
        said = [register(cli)]
        (offer,) = cli("exchange", "offers", home="hospital-2")
        assert "2 images of 1 patient" in offer["description"]
        deal = str(step(cli("exchange", "request", said[0], home="hospital-2"), "requested")["deal"])
        cli("exchange", "grant", deal)
        cli("exchange", "fetch", deal, home="hospital-2", code=6)  # confirmed; the owner has to reveal
        town.hospitals[0].exchange.advance()
        got = cli("exchange", "fetch", deal, home="hospital-2")
        folder = Path(step(got, "added to the training data")["folder"])
        assert len(list(folder.rglob("*.dcm"))) == 2
        assert not list(leaks(town.home, str(offer), str(got), *map(str, town.steps.values())))
