"""PACS by DIMSE that lose instances, or answer with anything: the rest comes, what does not is counted and told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from typer.testing import CliRunner, Result

from consilia.cli import app
from consilia.errors import DatasetError, PacsError
from consilia.imaging.deidentification import Pseudonymiser
from consilia.imaging.holdings import Holdings
from consilia.imaging.importing import Importer
from consilia.roles import pacs as roles_pacs
from consilia.roles.pacs import Entity, Listener
from tests.hospital_home import make_home
from tests.imaging.planted import NAME, NUMBER, leaks
from tests.orthanc import free_port
from tests.roles.fake_pacs import CAPTURE, CT, FIND, MR, DimsePacs, as_class, listening, slices

WAYS = ["get", "move"]


def fetched(home: Path, pacs: DimsePacs, way: str, *arguments: str) -> Result:
    """`data import` of the study, in a home that is made."""
    own = ["--listen", f"CONSILIA@127.0.0.1:{pacs.destination_port}"] if way == "move" else []
    command = [
        "data",
        "import",
        "--home",
        str(make_home(home)),
        "--format",
        "json",
        "--from",
        pacs.address,
        *own,
    ]
    return CliRunner().invoke(app, [*command, *(arguments or ("--study", "1.8.1"))])


def steps(result: Result) -> dict[str, dict[str, Any]]:
    return {line["step"]: line for line in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_pacs_does_not_deliver_is_counted_and_told(tmp_path: Path, way: str) -> None:
    images = slices(tmp_path / "pacs", "1.9.1", 3) + slices(tmp_path / "pacs", "1.9.2", 1)
    images += [as_class(slices(tmp_path / "pacs", "1.9.3", 1)[0], MR)]  # all of its series: status A702
    images += slices(tmp_path / "pacs", "1.9.4", 1)
    with listening(DimsePacs(images, free_port(), frozenset({"1.9.1.2"}))) as pacs:
        result = fetched(tmp_path / "home", pacs, way)
    assert isinstance(result.exception, PacsError) and result.exception.exit_code == 1
    assert "2 instances were not delivered" in str(result.exception)
    told = steps(result)
    assert (told["files"]["imported"], told["not delivered"]["instances"]) == (4, 2)
    report = json.loads((tmp_path / "home" / "data" / "import-report.json").read_text())
    assert report["not_delivered"] == 2


@pytest.mark.parametrize("way", WAYS)
def test_what_lies_in_a_series_beside_the_slices_comes_and_is_refused(tmp_path: Path, way: str) -> None:
    images = slices(tmp_path / "pacs", "1.9.1", 3)
    as_class(images[1], CAPTURE)
    with listening(DimsePacs(images, free_port())) as pacs:
        result = fetched(tmp_path / "home", pacs, way)
    assert result.exit_code == 0, result.output
    assert (steps(result)["files"]["imported"], steps(result)["files"]["refused"]) == (2, 1)
    assert "not delivered" not in steps(result)


def test_nobody_is_named_by_what_a_search_finds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = []
    for value, modality in ((f"{NAME}^{NUMBER}", "CT"), ("", "CT"), (NAME * 20, ""), (f"{NAME}", "MR")):
        answer = Dataset()
        answer.QueryRetrieveLevel, answer.Modality = "SERIES", modality
        answer.add(DataElement("SeriesInstanceUID", "UI", value, validation_mode=0))
        answers.append(answer)
    images = slices(tmp_path / "pacs", "1.9.1", 1)
    with listening(DimsePacs(images, free_port(), answers=answers)) as pacs:
        recwarn.clear()
        caplog.clear()
        result = fetched(tmp_path / "home", pacs, "get", "--dates", "20240101")
    said = [caplog.text, *(str(warning.message) for warning in recwarn), str(result.exception)]
    assert not list(leaks(tmp_path / "home", result.output, *said))
    assert (steps(result)["files"]["imported"], steps(result)["refused"]["files"]) == (1, 3)


def test_a_pacs_without_c_get_is_no_failure_of_ours(tmp_path: Path) -> None:
    with listening(DimsePacs([], free_port(), models=(FIND,))) as pacs:
        empty = fetched(tmp_path / "home", pacs, "get")
        pacs.images += slices(tmp_path / "pacs", "1.9.1", 1)
        result = fetched(tmp_path / "other", pacs, "get")
    assert empty.exit_code == 0
    assert isinstance(result.exception, PacsError)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_too_large_is_refused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    images = slices(tmp_path / "pacs", "1.9.1", 2)
    images[0].PatientComments = "a" * 9_000
    monkeypatch.setattr(roles_pacs, "MAX_FILE_BYTES", 45_000)
    with listening(DimsePacs(images, free_port())) as pacs:
        result = fetched(tmp_path / "home", pacs, way)
    assert result.exit_code == 0, result.output
    assert (steps(result)["files"]["imported"], steps(result)["refused"]["files"]) == (1, 1)
    assert "MiB" in steps(result)["refused"]["reason"]


def test_who_sends_too_much_or_into_a_damaged_folder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    importer = Importer(Holdings(tmp_path / "data"), Pseudonymiser(b"k" * 32))
    [image] = slices(tmp_path / "pacs", "1.9.1", 1)
    own = Entity("CONSILIA", "127.0.0.1", free_port())
    with Listener(own, tmp_path, importer) as listener:
        with monkeypatch.context() as small:
            small.setattr(roles_pacs, "MAX_FILE_BYTES", 1000)
            assert sent(own, image) == 0xC000
        assert importer.summary.files == {"refused": 1}
        note = tmp_path / "data" / "quarantine" / f"{Pseudonymiser(b'k' * 32).uid(image.SOPInstanceUID)}.json"
        note.parent.mkdir(parents=True)
        note.write_text("no note")
        assert sent(own, image) == 0x0110
        with pytest.raises(DatasetError, match="quarantine"):
            listener.wait(10)


def sent(to: Entity, image: Any) -> int:
    """The status of a C-STORE."""
    from pynetdicom import AE

    entity = AE("PACS")
    entity.add_requested_context(CT)
    association = entity.associate(to.host, to.port)
    try:
        return int(association.send_c_store(image).Status)
    finally:
        association.release()
