"""The data commands: nobody who was planted in files, names and annotations is in anything that they leave or print."""

from __future__ import annotations

import json
import logging
import shutil
import stat
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from typer.testing import CliRunner

from consilia.cli import app
from consilia.cli.holdings import _ranges
from consilia.errors import ConsiliaError, DatasetError, InputError
from consilia.imaging.cases import numbered
from consilia.imaging.readers import read_dataset
from tests.hospital_home import make_home
from tests.imaging.ct_files import ct, enhanced_ct, real_ct
from tests.imaging.planted import NAME, NUMBER, UID_ROOT, leaks, planted_ct


def data(home: Path, *arguments: str, code: int | None = 0) -> list[dict[str, object]]:
    command, *rest = arguments
    result = CliRunner().invoke(app, ["data", command, "--home", str(home), "--format", "json", *rest])
    if code is not None:
        assert result.exit_code == code, (result.output, result.exception)
    return [json.loads(line) for line in result.stdout.splitlines()]


def step(lines: list[dict[str, object]], name: str) -> dict[str, object]:
    return next(line for line in lines if line["step"] == name)


def drawn_on(pixels: np.ndarray, text: str = "WINNETOU 1901") -> np.ndarray:
    canvas = Image.new("L", (pixels.shape[1], pixels.shape[0]))
    pen = ImageDraw.Draw(canvas)
    pen.fontmode = "1"
    pen.text((4, 4), text, fill=255, font=ImageFont.load_default(10))
    drawn = pixels.copy()
    drawn[np.asarray(canvas) > 0] = 4000
    return drawn


def coco(path: Path, images: list[dict[str, object]], boxes: list[tuple[int, list[float]]]) -> Path:
    content = {
        "categories": [{"id": 1, "name": "nodule"}],
        "images": [{"id": i, **image} for i, image in enumerate(images)],
        "annotations": [{"image_id": i, "category_id": 1, "bbox": box} for i, box in boxes],
    }
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as bad as it gets: the person in every file, usable or not, in names of files and folders, in COCO."""
    folder = tmp_path_factory.mktemp("source") / f"{NAME} {NUMBER}"
    (folder / NAME).mkdir(parents=True)
    base = folder / NAME / f"{NAME}-1.dcm"
    planted_ct(1).save_as(base)
    drawn = drawn_on(real_ct().pixel_array).astype("<i2").tobytes()
    for number, (name, changes) in enumerate(
        {
            f"{NAME}/{NAME}-2": {"PixelData": drawn},
            f"{NAME}-mr": {"Modality": "MR"},
            f"{NAME}-scale": {"RescaleSlope": None},
            f"{NAME}-study": {"StudyInstanceUID": NAME},
            f"{NAME}-size": {"Rows": 60000},
            f"{NAME}-nobody": {"PatientID": ""},
        }.items(),
        start=2,
    ):
        other = pydicom.dcmread(base)
        for keyword, value in {"SOPInstanceUID": f"{UID_ROOT}.3.{number}", **changes}.items():
            other[keyword] = pydicom.DataElement(
                other[keyword].tag, other[keyword].VR, value, validation_mode=0
            )
        other.save_as(folder / f"{name}.dcm")
    whole = base.read_bytes()
    (folder / f"{NAME}-cut.dcm").write_bytes(whole[: len(whole) // 3])
    (folder / f"{NAME}.dcm").write_bytes(b"\0" * 128 + b"DICM" + NAME.encode() * 50)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / f"{NAME}.png")
    images: list[dict[str, object]] = [
        {"file_name": f"{NAME}/{NAME}-1.dcm", "patient": f"{NAME}-{NUMBER}", "study": f"{UID_ROOT}.1"},
        {"file_name": f"{UID_ROOT}.3.2", "patient": f"{NAME}-{NUMBER}"},
        {"file_name": f"{NAME}.png", "patient": NAME, "study": NAME},
        {"file_name": f"{NAME}-missing.dcm", "patient": NAME},
        {"file_name": f"../{NAME}.dcm"},
        {"file_name": f"{NAME}-3.dcm", "width": NAME},
    ]
    coco(folder / "annotations.json", images, [(0, [10, 10, 20, 20]), (1, [500, 5, 9, 9]), (2, [1, 1, 5, 5])])
    return folder


def test_nobody_is_in_anything_that_an_import_leaves(
    planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    home, printed = make_home(tmp_path / "home"), []
    runner = CliRunner()
    for command in (
        ["import", "--from", str(planted)],
        ["import", "--from", str(planted), "--complete", "--format", "json"],
        ["ls"],
        ["check"],
        ["check", "--format", "json"],
        ["preview"],
        ["preview", "--quarantine"],
        ["split", "--seed", "1"],
    ):
        result = runner.invoke(app, ["data", *command, "--home", str(home)])
        assert result.exception is None or isinstance(result.exception, SystemExit | ConsiliaError), command
        printed += [result.output, str(result.exception or "")]
    said = [caplog.text, *(str(warning.message) for warning in recwarn)]
    assert not list(leaks(home, *printed, *said))

    held = list((home / "data" / "dicom").rglob("*.dcm"))
    assert len(held) == 2  # the good one, and one whose StudyInstanceUID was no UID
    assert len(list((home / "data" / "images").iterdir())) == 1
    report = json.loads((home / "data" / "import-report.json").read_text())
    assert sum(report["refused"].values()) == 6
    assert report["removed_attributes"]["(0010,0010) PatientName: Z"] > 0


def test_the_search_finds_somebody_who_is_there(planted: Path) -> None:
    assert len(list(leaks(planted))) > 20
    assert list(leaks(planted / NAME, f"the patient {NAME}"))


def test_errors_of_readers_and_reports_name_no_file(planted: Path) -> None:
    dataset = read_dataset(planted)
    assert any(NAME in item.name for item in dataset.skipped)  # at home, in memory, a file has its name
    assert not [item for item in numbered(dataset.skipped) if NAME in item.name + item.reason]
    assert not list(leaks(planted / "nowhere", dataset.summary().text()))
    with pytest.raises(DatasetError) as error:
        read_dataset(planted / NAME)
    assert NAME not in str(error.value)


def test_an_import_can_be_repeated_and_goes_on_after_it_was_cut(tmp_path: Path) -> None:
    source, home = tmp_path / "source", make_home(tmp_path / "home")
    for number in range(4):
        ct(source / f"{number}.dcm")
    first = data(home, "import", "--from", str(source))
    assert step(first, "files")["imported"] == 4
    kept = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in (home / "data" / "dicom").rglob("*.dcm")
    }
    lost = sorted(kept)[1]
    lost.rename(lost.with_name(f".{lost.name}.partial"))  # as a killed import leaves it
    again = data(home, "import", "--from", str(source))
    assert (step(again, "files")["imported"], step(again, "files")["known"]) == (1, 3)
    removed = [int(str(step(lines, "imported")["attributes_removed"])) for lines in (first, again)]
    assert removed[0] == 4 * removed[1] > 0  # of this import alone, as the other numbers
    report = json.loads((home / "data" / "import-report.json").read_text())
    assert sum(report["removed_attributes"].values()) == sum(removed)
    now = {path: path.read_bytes() for path in (home / "data" / "dicom").rglob("[!.]*.dcm")}
    assert now == {path: content for path, (content, _) in kept.items()}
    assert all(path.stat().st_mtime_ns == time for path, (_, time) in kept.items() if path != lost)


def test_the_key_is_for_its_owner_alone_and_another_home_links_nothing(tmp_path: Path) -> None:
    ct(tmp_path / "source" / "a.dcm")
    names = []
    for home in (make_home(tmp_path / "one"), make_home(tmp_path / "two")):
        data(home, "import", "--from", str(tmp_path / "source"))
        names.append({path.name for path in (home / "data" / "dicom").rglob("*")})
        assert stat.S_IMODE((home / "state.sqlite").stat().st_mode) == 0o600
    assert not names[0] & names[1]


def test_suspected_text_waits_for_a_person(tmp_path: Path) -> None:
    source, home = tmp_path / "source", make_home(tmp_path / "home")
    pixels = real_ct().pixel_array.astype(np.uint16)
    ct(source / "plain.dcm")
    for name in ("a", "b", "c"):
        ct(source / f"{name}.dcm", pixels=drawn_on(pixels))
    ct(source / "said.dcm", BurnedInAnnotation="YES")
    ct(source / "derived.dcm", ImageType=["DERIVED", "SECONDARY"])
    found = data(home, "import", "--from", str(source))
    assert (step(found, "files")["imported"], step(found, "files")["quarantined"]) == (1, 5)

    lines = data(home, "check", code=1)
    waiting = {str(line["image"]): str(line["reason"]) for line in lines if line["step"] == "quarantined"}
    assert sum("text" in reason for reason in waiting.values()) == 3
    drawn = [uid for uid, reason in waiting.items() if "text" in reason]
    others = [uid for uid in waiting if uid not in drawn]
    with_text = data(home, "preview", "--quarantine")
    assert step(with_text, "written")["images"] == 5

    data(home, "check", "--blank", drawn[0], "--accept", drawn[1], "--discard", drawn[2], code=1)
    data(home, "check", "--discard", others[0], "--discard", others[1])
    values = {path.stem: path for path in (home / "data" / "dicom").rglob("*.dcm")}
    assert {drawn[0], drawn[1]} < set(values) and len(values) == 3
    from consilia.imaging.dicom import read_ct

    assert (read_ct(values[drawn[1]]).hu == 4000 - 1024).any()
    assert not (read_ct(values[drawn[0]]).hu == 4000 - 1024).any()

    again = data(home, "import", "--from", str(source))
    assert (step(again, "files")["known"], step(again, "files")["discarded"]) == (3, 3)
    assert list((home / "data" / "quarantine").glob("*.dcm")) == []


def test_a_decision_is_about_what_waits(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    ct(tmp_path / "source" / "a.dcm", BurnedInAnnotation="YES")
    data(home, "import", "--from", str(tmp_path / "source"))
    [note] = (home / "data" / "quarantine").glob("*.json")
    assert [line["step"] for line in data(home, "check", code=1)] == ["unusable", "quarantined"]
    result = CliRunner().invoke(app, ["data", "split", "--home", str(home)])
    assert isinstance(result.exception, DatasetError) and "quarantine" in str(result.exception)
    for arguments in (["--accept", "2.25.1"], ["--accept", note.stem, "--discard", note.stem]):
        result = CliRunner().invoke(app, ["data", "check", "--home", str(home), *arguments])
        assert isinstance(result.exception, InputError)
    result = CliRunner().invoke(app, ["data", "check", "--home", str(home), "--blank", note.stem])
    assert isinstance(result.exception, DatasetError)  # the header alone says so: nobody knows where
    assert note.is_file()


def test_equal_reasons_are_one_line_and_windows_by_body_part_are_told(tmp_path: Path) -> None:
    source, home = tmp_path / "source", make_home(tmp_path / "home")
    for name, part in (("a", "HEAD"), ("b", "HEAD"), ("c", "CHEST")):
        ct(source / f"{name}.dcm", BodyPartExamined=part)
    data(home, "import", "--from", str(source))
    for number in range(3):
        (home / "data" / "dicom" / f"{number}.dcm").write_bytes(b"no DICOM")
    lines = data(home, "check", "--names", str(tmp_path / "names"), code=1)
    [unusable] = [line for line in lines if line["step"] == "unusable"]
    assert (unusable["files"], unusable["numbers"]) == (3, "1-3")
    assert (tmp_path / "names").read_text() == "1\t0.dcm\n2\t1.dcm\n3\t2.dcm\n"
    told = [(line["images"], line["hu"]) for line in lines if line["step"] == "window of the body part"]
    assert told == [(2, "0 to 80"), (1, "-1350 to 150")] and step(lines, "several windows")
    assert (step(lines, "usable")["unusable"], _ranges([2, 4, 5, 7])) == (3, "2, 4-5, 7")


def test_boxes_come_along_and_a_box_of_a_waiting_slice_waits(tmp_path: Path) -> None:
    source, home = tmp_path / "source", make_home(tmp_path / "home")
    for name in ("a", "b", "c"):
        ct(source / f"{name}.dcm", BurnedInAnnotation="YES" if name == "b" else "NO")
    coco(
        source / "annotations.json",
        [{"file_name": "a.dcm"}, {"file_name": "b.dcm"}],
        [(0, [1, 2, 30, 40]), (1, [5, 5, 9, 9])],
    )
    data(home, "import", "--from", str(source))
    lines = data(home, "ls")
    assert (step(lines, "total")["images"], step(lines, "total")["annotated"]) == (2, 1)
    assert step(lines, "total")["quarantined"] == 1
    [note] = (home / "data" / "quarantine").glob("*.json")
    checked = data(home, "check", "--accept", note.stem)  # c is held, and no annotation speaks of it
    assert (step(checked, "usable")["images"], step(checked, "not annotated")["files"]) == (2, 1)
    assert "unusable" not in {line["step"] for line in checked}
    dataset = read_dataset(home / "data")
    found = sorted(box for image in dataset.images for box in image.boxes_xyxy.tolist())
    assert found == [[1, 2, 31, 42], [5, 5, 14, 14]]
    data(home, "import", "--from", str(source), "--complete")
    assert len(read_dataset(home / "data")) == 3


def test_a_split_is_by_patient_and_twins_are_an_error(tmp_path: Path) -> None:
    source, home = tmp_path / "source", make_home(tmp_path / "home")
    pixels = real_ct().pixel_array.astype(np.uint16)
    for number in range(10):
        for part in range(2):
            own = pixels.copy()
            own[:2, :2] = 10 * number + part
            uids = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.1"}
            ct(source / f"{number}-{part}.dcm", pixels=own, PatientID=f"p{number}", **uids)
    data(home, "import", "--from", str(source))
    lines = data(home, "split", "--held-out", "0.3", "--seed", "5")
    assert (step(lines, "training")["patients"], step(lines, "held-out")["patients"]) == (7, 3)
    assert step(lines, "to train on the first alone")["set"] == '[data] patients = "split/training.txt"'
    first, second = (
        (home / "split" / f"{name}.txt").read_text().split() for name in ("training", "held-out")
    )
    assert not set(first) & set(second) and len({*first, *second}) == 10

    shutil.rmtree(home / "data")
    for number in range(6):
        uids = {"StudyInstanceUID": f"1.3.{number}", "SeriesInstanceUID": f"1.3.{number}.1"}
        ct(tmp_path / "twins" / f"{number}.dcm", pixels=pixels, PatientID=f"q{number}", **uids)
    data(home, "import", "--from", str(tmp_path / "twins"))
    result = CliRunner().invoke(app, ["data", "split", "--home", str(home)])
    assert isinstance(result.exception, DatasetError)
    assert "two identifiers" in str(result.exception)


@pytest.mark.parametrize(
    ("command", "kind"),
    [(["preview", "--to"], "folder"), (["check", "--names"], "folder"), (["split", "--to"], "file")],
)
def test_a_name_that_is_taken_by_another_kind_is_told_before_any_work(
    tmp_path: Path, command: list[str], kind: str
) -> None:
    home = make_home(tmp_path / "home")  # without data: had it begun, it would say so
    taken = tmp_path / "taken"
    taken.mkdir() if kind == "folder" else taken.touch()
    result = CliRunner().invoke(app, ["data", *command, str(taken), "--home", str(home)])
    assert isinstance(result.exception, InputError) and f"taken is a {kind}" in str(result.exception)


def test_frames_of_an_enhanced_ct_become_slices(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    (tmp_path / "source").mkdir()
    enhanced_ct(tmp_path / "source" / "e.dcm", frames=4)
    found = data(home, "import", "--from", str(tmp_path / "source"))
    assert (step(found, "files")["imported"], step(found, "slices")["held"]) == (1, 4)
    from consilia.imaging.readers import read_dicom

    slices = read_dicom(home / "data" / "dicom")
    assert [int(image.path.stat().st_size > 0) for image in slices.images] == [1, 1, 1, 1]
    from consilia.imaging.dicom import read_ct

    read = [read_ct(image.path) for image in slices.images]
    assert [round(item.level_mm) for item in read] == [0, 1, 2, 3]
    assert [float(item.hu[0, 0]) for item in read] == [-1024, -1023, -1022, -1021]


def test_the_page_shows_images_with_their_boxes_and_loads_nothing(tmp_path: Path) -> None:
    source, home = tmp_path / "source", make_home(tmp_path / "home")
    ct(source / "a.dcm")
    coco(source / "annotations.json", [{"file_name": "a.dcm"}], [(0, [32, 64, 64, 32])])
    data(home, "import", "--from", str(source))
    data(home, "preview")
    page = (home / "preview.html").read_text()
    assert '<rect x="250.0" y="500.0" width="500.0" height="250.0"' in page
    assert "影像总览" in page and "contact sheet" in page and "nodule" in page
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
