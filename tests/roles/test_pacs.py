"""Import from a real PACS: DICOMweb, C-STORE to us, C-MOVE, C-GET; again it changes nothing, and originals are gone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilia.cli import app
from consilia.errors import InputError
from consilia.imaging.readers import read_dicom
from consilia.roles.pacs import Entity, Wanted
from tests.hospital_home import make_home
from tests.imaging.ct_files import ct, enhanced_ct, real_ct
from tests.orthanc import Pacs, free_port

SECRET = "Winnetou^Old Shatterhand"


def run_import(home: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", "import", "--home", str(home), "--format", "json", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def steps(output: str) -> dict[str, dict[str, object]]:
    return {line["step"]: line for line in map(json.loads, output.splitlines())}


@pytest.fixture
def filled(pacs: Pacs, tmp_path: Path) -> Pacs:
    """A PACS with two plain slices, an enhanced CT of three frames, and an MR that nobody wants."""
    files = [ct(tmp_path / f"{i}.dcm", PatientName=SECRET, StudyDate="20240102") for i in (0, 1)]
    files.append(enhanced_ct(tmp_path / "e.dcm"))
    mr = real_ct("MR_small.dcm")
    mr.save_as(tmp_path / "mr.dcm")
    pacs.store(*files, tmp_path / "mr.dcm")
    return pacs


def held(home: Path) -> list[Path]:
    return sorted((home / "data" / "dicom").rglob("*.dcm"))


def ways(pacs: Pacs) -> dict[str, list[str]]:
    study = str(real_ct().StudyInstanceUID)
    return {
        "dicomweb": ["--from", pacs.dicomweb_url, "--study", study],
        "get": ["--from", pacs.dimse, "--study", study, "--title", pacs.destination_aet],
        "move": [
            "--from", pacs.dimse, "--study", study,
            "--listen", f"{pacs.destination_aet}@127.0.0.1:{pacs.destination_port}",
        ],
    }  # fmt: skip


@pytest.mark.pacs
@pytest.mark.parametrize("way", ["dicomweb", "get", "move"])
def test_a_study_comes_from_the_pacs_once(filled: Pacs, tmp_path: Path, way: str) -> None:
    home = make_home(tmp_path / "home")
    first = steps(run_import(home, *ways(filled)[way]))
    assert first["slices"]["held"] == 5
    before = {path: path.stat().st_mtime_ns for path in held(home)}
    assert len(before) == 5

    again = run_import(home, *ways(filled)[way])
    assert steps(again)["files"].get("known", 0) == 3
    assert {path: path.stat().st_mtime_ns for path in held(home)} == before
    assert not (home / "incoming").exists()
    assert len(read_dicom(home / "data" / "dicom")) == 5


@pytest.mark.pacs
def test_what_is_fetched_another_way_is_the_same(filled: Pacs, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    found = []
    for way in ways(filled).values():
        run_import(home, *way)
        found.append([(path.name, path.read_bytes()) for path in held(home)])
        (home / "data").rename(tmp_path / f"data-{len(found)}")
    assert found[0] == found[1] == found[2]


@pytest.mark.pacs
def test_the_pacs_sends_and_we_listen(filled: Pacs, tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    own = f"{filled.destination_aet}@127.0.0.1:{filled.destination_port}"
    output: list[str] = []
    import_ = threading.Thread(
        target=lambda: output.append(run_import(home, "--listen", own, "--idle-seconds", "2"))
    )
    import_.start()
    wait_until(lambda: is_listening(filled.destination_port))
    ct_series = [s for s in filled.rest("GET", "/series") if modality(filled, s) == "CT"]
    filled.rest("POST", "/modalities/consilia/store", json.dumps(ct_series).encode())
    import_.join(60)
    assert steps(output[0])["files"]["imported"] == 3
    assert len(held(home)) == 5
    assert not (home / "incoming").exists()


def modality(pacs: Pacs, series: str) -> str:
    return str(pacs.rest("GET", f"/series/{series}")["MainDicomTags"]["Modality"])


def is_listening(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Callable[[], bool]) -> None:
    import time

    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.pacs
def test_studies_are_found_by_date(filled: Pacs, tmp_path: Path) -> None:
    for number, way in enumerate((filled.dicomweb_url, filled.dimse)):
        home = make_home(tmp_path / f"home-{number}")
        run_import(home, "--from", way, "--dates", "20240101-20240131", "--title", filled.destination_aet)
        assert len(held(home)) == 5
        other = make_home(tmp_path / f"other-{number}")
        run_import(other, "--from", way, "--dates", "19500101", "--title", filled.destination_aet)
        assert held(other) == []


@pytest.mark.pacs
def test_a_pacs_that_does_not_know_us_is_told_of(filled: Pacs, tmp_path: Path) -> None:
    from consilia.errors import PacsError

    home = make_home(tmp_path / "home")
    result = CliRunner().invoke(
        app,
        [
            "data",
            "import",
            "--home",
            str(home),
            "--from",
            filled.dimse,
            "--study",
            "1.2",
            "--title",
            "STRANGER",
        ],
    )
    assert isinstance(result.exception, PacsError)
    wrong = CliRunner().invoke(
        app, ["data", "import", "--home", str(home), "--from", f"{filled.rest_url}/nowhere", "--study", "1.2"]
    )
    assert isinstance(wrong.exception, PacsError)
    assert "1.2" not in str(wrong.exception)


def test_nobody_answers(tmp_path: Path) -> None:
    from consilia.errors import PacsUnreachableError

    home = make_home(tmp_path / "home")
    for source in (f"PACS@127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}/dicom-web"):
        result = CliRunner().invoke(
            app, ["data", "import", "--home", str(home), "--from", source, "--study", "1.2"]
        )
        assert isinstance(result.exception, PacsUnreachableError)
    assert not (home / "incoming").exists()


@pytest.mark.parametrize(
    "text", ["", "PACS", "PACS@host", "@host:1", "PACS@host:0", "PACS@host:70000", "P@h/x:1"]
)
def test_an_entity_is_title_host_and_port(text: str) -> None:
    with pytest.raises(InputError):
        Entity.parse(text)
    assert Entity.parse("MY PACS@[::1]:104") == Entity("MY PACS", "::1", 104)


@pytest.mark.parametrize("wish", [{}, {"studies": ("1.2*",)}, {"dates": "2024"}, {"dates": "20240101-"}])
def test_a_whole_pacs_is_not_asked_for(wish: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Wanted(**wish)
