"""`consilia model` on pictures and weights small enough to run in a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from consilia.cli import app
from consilia.cli.model import _held_out, _section
from consilia.cli.report.model_page import write_page
from consilia.detection import proposals, weights
from consilia.detection.detectors import build
from consilia.detection.inference import Prediction
from consilia.detection.predictions import write_predictions
from consilia.errors import DatasetError, InputError, WeightsError
from consilia.protocols.task_spec import parse_toml
from consilia.roles.models.card import _measured
from tests.hospital_home import make_home
from tests.imaging.ct_files import ct
from tests.imaging.planted import NAME, NUMBER, leaks

SPEC = """title = "squares"
[purpose]
object_of_learning = "square"
application = "drawing"
[data]
format = "image"
categories = ["square"]
[model]
image_size = 64
"""
PICTURES = 4


def write_pictures(folder: Path, first: int) -> None:
    """Four pictures of four patients, each with one bright square, as COCO."""
    (folder / "images").mkdir(parents=True)
    document: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    for number in range(first, first + PICTURES):
        pixels = np.random.default_rng(number).integers(0, 50, (64, 64)).astype(np.uint8)
        pixels[10:30, 10:30] = 220
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        document["images"].append({"id": number, "file_name": name, "patient": f"p{number}"})
        document["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [10, 10, 20, 20]}
        )
    (folder / "annotations.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out and training pictures, two models, and findings of a perfect one."""
    home = tmp_path_factory.mktemp("model")
    write_pictures(home / "held-out", 1)
    write_pictures(home / "training", 11)
    (home / "task.toml").write_text(SPEC)
    for seed in (0, 1):
        model = build("faster-rcnn", num_classes=1, image_size=64, seed=seed)
        weights.save(model, home / f"{seed}.safetensors")
    box, one = np.array([[10, 10, 30, 30]], np.float32), np.ones(1, np.int64)
    found = [Prediction(f"{n}.png", box, np.float32([0.9]), one) for n in range(1, 1 + PICTURES)]
    write_predictions(home / "perfect.json", found, ("square",), "0" * 64)
    return home


def model(place: Path, command: str, *arguments: str) -> str:
    named = ["--model", str(place / "0.safetensors"), "--spec", str(place / "task.toml")]
    done = CliRunner().invoke(app, ["model", command, *arguments, *named], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_eval_writes_figures_with_intervals_and_a_page(place: Path, tmp_path: Path) -> None:
    held_out = ["--data", str(place / "held-out"), "--trained-on", str(place / "training")]
    kept = ["--predictions", str(place / "perfect.json")]
    said = model(place, "eval", *held_out, *kept, "--to", str(tmp_path / "a.json"))
    assert "mAP@.5       1.000 [1.000, 1.000]" in said and "4 of 4" in said
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["map50"] == 1 and record["map50_interval"] == [1, 1] and record["patients"] == 4
    assert record["froc_intervals"] == [[1, 1]] * 7
    assert "patient-" not in json.dumps(record), "no patient's key leaves the hospital in a report"
    write_page(tmp_path / "a.html", record)
    page = (tmp_path / "a.html").read_text()
    assert "mAP@.5 of 1.000 on 4 patients" in page and "4 名患者上的" in page
    assert "Thin lines: 95% interval" in page and page.count('class="curve local"') == 3
    for checked, told in ((True, 0), (False, 1)):
        write_page(tmp_path / "a.html", record | {"leak_checked": checked})
        assert (tmp_path / "a.html").read_text().count("Leak not checked") == told
        assert "\n".join(_measured(record | {"leak_checked": checked})).count("Leak not checked") == told
    alone = record | {"froc_intervals": [None] * 7}
    write_page(tmp_path / "a.html", alone)
    assert "Thin lines" not in (tmp_path / "a.html").read_text()


def test_pictures_of_unknown_patients_are_not_called_patients(place: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "held-out", 1)
    coco = tmp_path / "held-out" / "annotations.json"
    document = json.loads(coco.read_text())
    kept = ["--predictions", str(place / "perfect.json"), "--data", str(tmp_path / "held-out")]
    for unknown, over in ((1, "patients and images"), (PICTURES, "images")):
        for image in document["images"][:unknown]:
            image.pop("patient", None)
        coco.write_text(json.dumps(document))
        said = model(place, "eval", *kept, "--to", str(tmp_path / "a.json"))
        assert "patients unknown, 4 images, 4 lesions" in said and f"intervals are over {over}:" in said
        record = json.loads((tmp_path / "a.json").read_text())
        assert record["patients"] is None and record["intervals"]["over"] == over
        told = "\n".join(_measured(record))
        assert "patients unknown, 4 images, 4 lesions" in told and f"intervals over {over}." in told
        write_page(tmp_path / "a.html", record)
        page = (tmp_path / "a.html").read_text()
        assert "on images of unknown patients" in page and f"bootstrap over {over}." in page
    assert "Patients with a lesion found" not in page
    compared = ["--data", str(tmp_path / "held-out"), "--other", str(place / "1.safetensors")]
    said = model(place, "compare", *compared, "--to", str(tmp_path / "c.json"))
    assert "intervals are over images:" in said
    assert json.loads((tmp_path / "c.json").read_text())["intervals"]["over"] == "images"


def test_eval_of_the_model_itself(place: Path) -> None:
    record = json.loads(model(place, "eval", "--data", str(place / "held-out"), "--format", "json"))
    assert 0 <= record["map50"] <= 1 and len(record["froc"]) == 7


@pytest.mark.parametrize("leak", ["patient", "pixels"])
def test_training_data_that_leaks_is_refused(place: Path, tmp_path: Path, leak: str) -> None:
    write_pictures(tmp_path / "leaking", 1 if leak == "pixels" else 11)
    text = (tmp_path / "leaking" / "annotations.json").read_text()
    renamed = text.replace('"p11"', '"p1"') if leak == "patient" else text.replace('"p', '"q')
    (tmp_path / "leaking" / "annotations.json").write_text(renamed)
    with pytest.raises(DatasetError, match="share one" if leak == "patient" else "same pixels"):
        model(place, "eval", "--data", str(place / "held-out"), "--trained-on", str(tmp_path / "leaking"))


def test_two_data_sets_without_patients_may_name_their_pictures_alike(place: Path, tmp_path: Path) -> None:
    for folder, first in (("held-out", 1), ("training", 11)):
        write_pictures(tmp_path / folder, first)
        coco = tmp_path / folder / "annotations.json"
        document = json.loads(coco.read_text())
        for number, image in enumerate(document["images"], 1):
            (tmp_path / folder / "images" / image["file_name"]).rename(
                tmp_path / folder / "images" / f"scan-{number}.png"
            )
            del image["patient"]
            image["file_name"] = f"scan-{number}.png"
        coco.write_text(json.dumps(document))
    told = ["--data", str(tmp_path / "held-out"), "--trained-on", str(tmp_path / "training")]
    assert json.loads(model(place, "eval", *told, "--format", "json"))["leak_checked"]
    shutil.copy(
        tmp_path / "held-out" / "images" / "scan-1.png", tmp_path / "training" / "images" / "scan-2.png"
    )
    with pytest.raises(DatasetError, match="same pixels"):
        model(place, "eval", *told)


def test_a_hospital_is_held_against_its_own_training_data_and_what_it_got(
    place: Path, tmp_path: Path
) -> None:
    home = make_home(tmp_path / "home")
    write_pictures(home / "data", 11)
    write_pictures(home / "exchanged" / "1", 1)
    spec = parse_toml(SPEC)
    with pytest.raises(DatasetError, match=r"share one|same pixels"):
        _held_out(spec, home, _section(place / "held-out", None), [])
    shutil.rmtree(home / "exchanged")
    assert _held_out(spec, home, _section(place / "held-out", None), []).leak_checked
    with pytest.raises(DatasetError, match=r"share one|same pixels"):
        _held_out(spec, home, _section(home / "data", None), [])
    assert "leak not checked" in model(place, "eval", "--data", str(place / "held-out"))


def test_a_comparison_searches_the_regions_of_a_picture_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    monkeypatch.setattr(
        proposals, "search", lambda pixels: searched.append(1) or np.float32([[8, 8, 30, 30]])
    )
    (tmp_path / "spp.toml").write_text(
        SPEC.replace("image_size = 64", 'image_size = 64\ndetector = "spp-net"')
    )
    weights.save(build("spp-net", num_classes=1, image_size=64, seed=0), tmp_path / "spp.safetensors")
    file = str(tmp_path / "spp.safetensors")
    named = ["--model", file, "--spec", str(tmp_path / "spp.toml"), "--other", file]
    command = ["model", "compare", "--data", str(place / "held-out"), *named]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert len(searched) == PICTURES


def test_compare_draws_the_difference_in_pairs(place: Path) -> None:
    other = ["--other", str(place / "0.safetensors")]
    record = json.loads(
        model(place, "compare", "--data", str(place / "held-out"), *other, "--format", "json")
    )
    assert record["differences"]["map50"] == {"difference": 0, "interval": [0, 0], "beyond_chance": False}
    with pytest.raises(InputError, match="one of the two"):
        model(place, "compare", "--data", str(place / "held-out"))


def test_predict_writes_every_kind(place: Path, tmp_path: Path) -> None:
    wanted = ["--as", "coco", "--as", "overlays", "--as", "report", "--min-score", "0.02"]
    said = model(
        place,
        "predict",
        str(place / "held-out" / "images"),
        "--to",
        str(tmp_path),
        *wanted,
        "--format",
        "json",
    )
    assert json.loads(said)["images"] == PICTURES
    coco = json.loads((tmp_path / "findings.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == [f"{n}.png" for n in range(1, 5)]
    assert len(list((tmp_path / "overlays").glob("*.png"))) == PICTURES
    report = json.loads((tmp_path / "report.json").read_text())
    assert "not verified" in report["notice"] and len(report["images"]) == PICTURES
    assert "research use only" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="--as"):
        model(place, "predict", str(place / "held-out"), "--to", str(tmp_path), "--as", "pickle")
    with pytest.raises(InputError, match="expected pictures in DICOM"):
        model(place, "predict", str(place / "held-out"), "--to", str(tmp_path), "--as", "sr")


def test_predict_names_no_file_that_it_leaves_out_and_looks_at_what_nobody_annotated(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "held-out", tmp_path / "in")
    shutil.copy(place / "training" / "images" / "11.png", tmp_path / "in" / "images")
    (tmp_path / "in" / "images" / f"{NAME}-{NUMBER}.png").write_bytes(b"cut")
    told = ["--to", str(tmp_path / "out"), "--as", "coco", "--as", "report"]
    said = model(place, "predict", str(tmp_path / "in"), *told, "--format", "json")
    assert json.loads(said)["images"] == PICTURES + 1 and len(json.loads(said)["skipped"]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [image["image"] for image in report["images"]] == [
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "images/11.png",
    ]
    assert len(report["skipped"]) == 1
    evaluated = model(place, "eval", "--data", str(tmp_path / "in"), "--to", str(tmp_path / "out" / "e.json"))
    assert not list(leaks(tmp_path / "out", said, evaluated))


def test_a_slice_that_no_report_can_refer_to_costs_its_own_report_alone(place: Path, tmp_path: Path) -> None:
    ct(tmp_path / "in" / "a.dcm")
    ct(tmp_path / "in" / f"{NAME}.dcm", StudyInstanceUID=None, SeriesInstanceUID="1.2.3.4")
    (tmp_path / "ct.toml").write_text(SPEC.replace('"image"', '"dicom"'))
    named = ["--model", str(place / "0.safetensors"), "--spec", str(tmp_path / "ct.toml")]
    command = ["model", "predict", str(tmp_path / "in"), *named, "--to", str(tmp_path / "out")]
    wanted = ["--as", "sr", "--as", "report"]
    done = CliRunner().invoke(app, [*command, *wanted, "--format", "json"], catch_exceptions=False)
    assert json.loads(done.output)["skipped"] == ["file 1"], done.output
    assert len(list((tmp_path / "out" / "sr").iterdir())) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert len(report["images"]) == 2 and "no DICOM SR: expected StudyInstanceUID" in str(report["skipped"])
    (tmp_path / "in" / "a.dcm").unlink()
    with pytest.raises(InputError, match=r"--as sr: .*expected StudyInstanceUID"):
        CliRunner().invoke(app, [*command, *wanted], catch_exceptions=False)


def test_two_detectors_are_compared(place: Path, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(SPEC.replace("image_size = 64", 'image_size = 96\ndetector = "ssd"'))
    weights.save(build("ssd", num_classes=1, image_size=96, seed=0), tmp_path / "ssd.safetensors")
    other = ["--other", str(tmp_path / "ssd.safetensors"), "--other-spec", str(tmp_path / "other.toml")]
    to = tmp_path / "new" / "c.json"
    model(place, "compare", "--data", str(place / "held-out"), *other, "--to", str(to))
    record = json.loads(to.read_text())
    assert (record["first"]["detector"], record["second"]["detector"]) == ("faster-rcnn", "ssd")


@pytest.mark.parametrize(
    "wrong",
    [["--other-round", "2"], ["--round", "1", "--other", "0"], ["--other-spec", "T", "--other-round", "1"]],
)
def test_a_file_has_no_rounds_to_compare(place: Path, wrong: list[str]) -> None:
    files = {"0": str(place / "0.safetensors"), "T": str(place / "task.toml")}
    with pytest.raises(InputError, match="expected --"):
        model(place, "compare", "--data", str(place / "held-out"), *(files.get(word, word) for word in wrong))


@pytest.mark.parametrize("option", ["--patients", "--predictions", "--model", "--spec"])
def test_a_missing_file_is_told_before_any_work(place: Path, option: str) -> None:
    command = ["model", "eval", "--data", str(place / "held-out"), option, str(place / "none")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "does not exist" in done.output


def test_a_place_that_cannot_be_is_told_before_any_work(place: Path) -> None:
    with pytest.raises(InputError, match=r"expected a folder for a\.json"):
        model(place, "eval", "--data", str(place / "held-out"), "--to", str(place / "task.toml" / "a.json"))
    with pytest.raises(DatasetError, match="patient keys"):
        named = f"{place / 'training'}={place / 'none'}"
        model(place, "eval", "--data", str(place / "held-out"), "--trained-on", named)


@pytest.mark.parametrize(
    ("command", "taken"),
    [
        (["eval", "--data", "E", "--to"], "folder"),
        (["compare", "--data", "E", "--other", "M", "--to"], "folder"),
        (["export", "--images", "E"], "folder"),
        (["predict", "E", "--to"], "file"),
        (["predict", "E", "--as", "sr", "--to"], "sr"),
        (["predict", "E", "--as", "coco", "--to"], "findings.json"),
    ],
)
def test_a_name_that_is_taken_by_another_kind_is_told_before_any_work(
    place: Path, tmp_path: Path, command: list[str], taken: str
) -> None:
    to, at = tmp_path / "to", tmp_path / "to" / taken
    if taken in ("folder", "findings.json"):
        at.mkdir(parents=True)  # in place of a file
    if taken in ("file", "sr"):
        to.mkdir()
        at.touch()  # in place of a folder
    (tmp_path / "E").mkdir()  # had it begun, it would say that there is no picture
    named = {"E": str(tmp_path / "E"), "M": str(place / "0.safetensors")}
    with pytest.raises(InputError, match=f"expected a .* to write, {taken} is a"):
        target = at if taken in ("folder", "file") else to
        model(place, *(named.get(word, word) for word in command), str(target))


def test_a_folder_that_nobody_can_write_to_is_told_before_any_work(place: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be made or written to"):
        model(place, "predict", str(tmp_path), "--to", "/proc/nowhere")
    with pytest.raises(InputError, match="cannot be made or written to"):
        model(place, "eval", "--data", str(tmp_path), "--to", "/proc/nowhere.json")


@pytest.mark.parametrize("command", [["verify", "0" * 64], ["card"]])
def test_a_home_without_a_ledger_is_told_so_without_its_path(tmp_path: Path, command: list[str]) -> None:
    home = make_home(tmp_path / "home")
    done = CliRunner().invoke(app, ["model", *command, "--home", str(home)])
    assert isinstance(done.exception, InputError) and "joined a ledger" in str(done.exception)
    assert str(tmp_path) not in str(done.exception)


def test_a_file_that_is_no_model_is_told_so(place: Path) -> None:
    named = ["--model", str(place / "held-out" / "images" / "1.png"), "--spec", str(place / "task.toml")]
    done = CliRunner().invoke(app, ["model", "eval", "--data", str(place / "held-out"), *named])
    assert isinstance(done.exception, WeightsError) and "expected a safetensors file" in str(done.exception)


def test_a_model_has_one_name(place: Path) -> None:
    with pytest.raises(InputError, match="one of the two"):
        model(place, "eval", "--data", str(place / "held-out"), "--home", str(place))
