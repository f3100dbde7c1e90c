"""DICOMweb servers that give few answers at a time, or anything: all comes, the rest is counted, nobody is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from consilia.cli import app
from consilia.errors import ConsiliaError, InputError, PacsError
from consilia.roles import dicomweb
from tests.hospital_home import make_home
from tests.imaging.planted import NAME, NUMBER, leaks
from tests.roles.fake_pacs import Reply, WebPacs, as_bytes, found, serving, slices

SOMEBODY = f"{NAME}^{NUMBER}"


def fetched(home: Path, url: str, *arguments: str) -> Result:
    """`data import` by date, in a home that is made."""
    if not home.exists():
        make_home(home)
    command = [
        "data",
        "import",
        "--home",
        str(home),
        "--format",
        "json",
        "--from",
        url,
        "--dates",
        "20240101",
    ]
    return CliRunner().invoke(app, [*command, *arguments])


def steps(result: Result) -> dict[str, dict[str, Any]]:
    return {line["step"]: line for line in map(json.loads, result.stdout.splitlines())}


@pytest.mark.parametrize(("cap", "knows_offset"), [(1, True), (2, True), (100, False)])
def test_a_server_that_gives_few_answers_at_a_time_is_asked_on(
    tmp_path: Path, cap: int, knows_offset: bool
) -> None:
    pacs = WebPacs(cap=cap, knows_offset=knows_offset)
    for study, series, count in (
        ("1.8.1", "1.9.1", 3), ("1.8.1", "1.9.2", 1), ("1.8.1", "1.9.3", 1), ("1.8.2", "1.9.4", 1),
        ("1.8.3", "1.9.5", 1),
    ):  # fmt: skip
        for image in slices(tmp_path / "pacs", series, count, study):
            pacs.hold(image)
    with serving(pacs):
        result = fetched(tmp_path / "home", pacs.url)
        assert result.exit_code == 0, result.output
        assert steps(result)["files"]["imported"] == 7
        assert steps(fetched(tmp_path / "home", pacs.url))["files"]["known"] == 7


def test_a_server_that_never_ends_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_MOST_ANSWERS", 20)
    pacs = WebPacs({"/studies": [found("0020000D", f"1.2.{number}") for number in range(50)]}, cap=1)
    with serving(pacs):
        result = fetched(tmp_path / "home", pacs.url)
    assert isinstance(result.exception, PacsError)
    assert "20 answers" in str(result.exception)


def hostile(folder: Path) -> WebPacs:
    """Good slices first and last, and somebody's name in every kind of answer that there is between them."""
    pacs = WebPacs()
    first, second, third, last = slices(folder, "1.9.1", 4)
    pacs.hold(first)
    for what in ("/studies", "/studies/1.8.1/series", "/studies/1.8.1/series/1.9.1/instances"):
        tag = {"/studies": "0020000D", "/studies/1.8.1/series": "0020000E"}.get(what, "00080018")
        pacs.searches[what] += [
            found(tag, SOMEBODY), found(tag), found(tag, None), found(tag, {"Alphabetic": SOMEBODY}),
            {tag: {"vr": "UI", "Value": SOMEBODY}}, {tag: SOMEBODY}, {}, SOMEBODY, 5, None,
        ]  # fmt: skip
    pacs.searches["/studies/1.8.1/series"].append(found("0020000E", "1.9.2", **found("00080060")))
    name, data = SOMEBODY.encode(), as_bytes(second)
    replies = {
        "1.1": Reply.of(b"\0" * 128 + b"DICM" + name * 9),
        "1.2": Reply.of(name),
        "1.3": Reply.of(data[data.index(b"\x08\0\x05\0CS") :]),  # no preamble, no file meta
        "1.4": Reply.of(data[: len(data) // 2]),
        "1.5": Reply.of(data, data),
        "1.6": Reply.of(),
        "1.7": Reply(name, kind="text/html"),
        "1.8": Reply(b"--a boundary\r\n" + name),
        "1.9": Reply(b""),
        "2.1": Reply(name, status=404),
        "2.2": Reply(name, status=500),
        "2.3": Reply.of(data, missing=1000),
    }
    for uid, reply in replies.items():
        pacs.searches["/studies/1.8.1/series/1.9.1/instances"].append(found("00080018", uid))
        pacs.replies[uid] = reply
    pacs.hold(third)
    pacs.replies[third.SOPInstanceUID] = Reply(as_bytes(third), kind="application/dicom")  # as some do
    pacs.hold(last)
    return pacs


def test_one_bad_answer_costs_no_other_and_nobody_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(hostile(tmp_path / "pacs")) as pacs:
        result = fetched(tmp_path / "home", pacs.url)
    said = [caplog.text, *(str(warning.message) for warning in recwarn), str(result.exception)]
    assert not list(leaks(tmp_path / "home", result.output, *said))

    assert isinstance(result.exception, PacsError) and "3 instances were not delivered" in str(
        result.exception
    )
    told = steps(result)
    assert (told["files"]["imported"], told["not delivered"]["instances"]) == (3, 3)
    report = json.loads((tmp_path / "home" / "data" / "import-report.json").read_text())
    assert report["not_delivered"] == 3
    # 10 studies, 10 instances; of what calls itself a series, what has no modality: 10
    assert (
        report["refused"].pop(
            "expected UIDs of studies, series and instances in the PACS's answers, one has something else"
        )
        == 30
    )
    assert sum(report["refused"].values()) == 9 == told["files"]["refused"] - 30
    assert not (tmp_path / "home" / "incoming").exists()


@pytest.mark.parametrize(
    "answer",
    [f"<html>{SOMEBODY}</html>".encode(), json.dumps(SOMEBODY).encode(), b"5", b"[" * 5_000, b"\xff\xfe"],
)
def test_what_is_no_dicom_json_is_said_without_its_text(tmp_path: Path, answer: bytes) -> None:
    with serving(WebPacs({"/studies": answer})) as pacs:
        result = fetched(tmp_path / "home", pacs.url)
    assert isinstance(result.exception, PacsError)
    assert not list(leaks(tmp_path / "home", result.output, str(result.exception)))


def test_a_refusal_of_all_ends_the_import_and_what_came_is_kept(tmp_path: Path) -> None:
    pacs = WebPacs()
    for image in slices(tmp_path / "pacs", "1.9.1", 3):
        pacs.hold(image)
    pacs.replies["1.9.1.2"] = Reply(SOMEBODY.encode(), status=403)
    with serving(pacs):
        result = fetched(tmp_path / "home", pacs.url)
    assert isinstance(result.exception, PacsError) and "403" in str(result.exception)
    assert steps(result)["files"] == {**steps(result)["files"], "imported": 1}
    assert (tmp_path / "home" / "data" / "import-report.json").is_file()


def test_an_import_that_is_not_whole_says_of_no_slice_that_it_is_free(tmp_path: Path) -> None:
    pacs = WebPacs()
    for image in slices(tmp_path / "pacs", "1.9.1", 3):
        pacs.hold(image)
    whole, pacs.replies["1.9.1.3"] = pacs.replies["1.9.1.3"], Reply(b"", status=500)
    content = {
        "categories": [{"id": 1, "name": "nodule"}],
        "images": [{"id": 1, "file_name": "1.9.1.1"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    given = ["--annotations", str(tmp_path / "boxes.json"), "--complete"]
    with serving(pacs):
        first = fetched(tmp_path / "home", pacs.url, *given)
        pacs.replies["1.9.1.3"] = whole
        second = fetched(tmp_path / "home", pacs.url, *given)
    assert isinstance(first.exception, PacsError) and second.exit_code == 0
    assert [steps(result)["imported"]["annotated_images"] for result in (first, second)] == [1, 3]


def test_an_instance_that_is_too_large_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pacs = WebPacs()
    for image in slices(tmp_path / "pacs", "1.9.1", 2):
        pacs.hold(image)
    pacs.replies["1.9.1.1"] = Reply.of(bytes(200_000))
    monkeypatch.setattr(dicomweb, "MAX_FILE_BYTES", 60_000)
    with serving(pacs):
        result = fetched(tmp_path / "home", pacs.url)
    assert result.exit_code == 0
    assert (steps(result)["files"]["imported"], steps(result)["refused"]["files"]) == (1, 1)
    assert "MiB" in steps(result)["refused"]["reason"]


@pytest.mark.parametrize(
    "url", ["http://", "http://:80/x", "http://[", "https://host:99999/x", "http://a..b/x"]
)
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    result = fetched(tmp_path / "home", url)
    assert isinstance(result.exception, InputError)


def test_a_token_is_one_line_and_is_in_no_message(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"secret\nX-Other: \xff")
    result = fetched(tmp_path / "home", "http://127.0.0.1:1", "--token-file", str(tmp_path / "token"))
    assert isinstance(result.exception, InputError) and isinstance(result.exception, ConsiliaError)
    assert "secret" not in str(result.exception)
