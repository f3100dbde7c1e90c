"""`consilia model` on pictures and weights small enough to run in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from consilia.cli import app
from consilia.cli.report.model_page import write_page
from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.inference import Prediction
from consilia.detection.predictions import write_predictions
from consilia.errors import DatasetError, InputError
from consilia.roles.model_card import _measured

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
    assert "patient-" not in json.dumps(record), "no patient's key leaves the hospital in a report"
    write_page(tmp_path / "a.html", record)
    page = (tmp_path / "a.html").read_text()
    assert "mAP@.5 of 1.000 on 4 patients" in page and "4 名患者上的" in page


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


def test_a_model_has_one_name(place: Path) -> None:
    with pytest.raises(InputError, match="one of the two"):
        model(place, "eval", "--data", str(place / "held-out"), "--home", str(place))
