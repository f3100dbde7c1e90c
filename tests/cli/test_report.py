"""The values of a report: what goes in comes out again, and what is no report is refused by its key."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consilia.cli.report import report as r
from consilia.cli.report import results as rs
from consilia.cli.report.roles import sights_of_a_run
from consilia.errors import InputError
from tests.cli.sample_report import HOSPITALS, sample_report


def _score(map50: float) -> rs.Score:
    return rs.Score(map50=map50, map=map50 / 2, cpm=map50 / 4)


def _local(hospital: str, map50: float) -> rs.LocalScore:
    return rs.LocalScore(hospital=hospital, **_score(map50).model_dump())


def test_a_report_survives_its_json() -> None:
    report = sample_report(images=1)
    assert r.Report.from_json(report.to_json()) == report


def test_the_json_has_the_keys_that_others_read() -> None:
    document = json.loads(sample_report(images=0).to_json())
    assert document["results"]["federated"].keys() >= {"map50", "map", "cpm"}
    assert document["results"]["pooled"].keys() >= {"map50", "map", "cpm"}
    assert [local["hospital"] for local in document["results"]["local_only"]] == list(HOSPITALS)
    assert document.keys() >= {"rounds", "seconds", "bytes", "ledger", "rewards"}
    assert isinstance(document["rewards"][0]["share_wei"], int), "wei are exact, never a float"


def test_the_summary_follows_from_the_scores() -> None:
    summary = rs.Results.of(_score(0.8), _score(1.0), (_local("a", 0.5), _local("b", 0.7))).summary
    assert summary.mean_local_map50 == pytest.approx(0.6)
    assert summary.gain_map50 == pytest.approx(0.2)
    assert summary.gain_map == pytest.approx(0.1)
    assert summary.gain_cpm == pytest.approx(0.05)
    assert summary.ratio_to_pooled_map50 == pytest.approx(0.8)
    assert summary.beats_mean_local and summary.beats_every_local


def test_the_summary_says_so_when_training_together_lost() -> None:
    summary = rs.Results.of(_score(0.55), _score(0.9), (_local("a", 0.5), _local("b", 0.7))).summary
    assert summary.gain_map50 < 0
    assert not summary.beats_mean_local and not summary.beats_every_local


def test_beating_the_mean_is_not_beating_the_best() -> None:
    summary = rs.Results.of(_score(0.65), _score(0.9), (_local("a", 0.5), _local("b", 0.7))).summary
    assert summary.beats_mean_local and not summary.beats_every_local


def test_a_pooled_model_that_finds_nothing_gives_no_ratio() -> None:
    assert rs.Results.of(_score(0.5), _score(0.0), (_local("a", 0.1),)).summary.ratio_to_pooled_map50 == 0


def test_a_comparison_without_hospitals_is_refused() -> None:
    with pytest.raises(InputError, match="at least one hospital"):
        rs.Results.of(_score(0.5), _score(0.5), ())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("surprise",), 1),
        (("schema_version",), 2),
        (("results", "federated", "map50"), 1.2),
        (("results", "pooled", "cpm"), float("nan")),
        (("rounds", 0, "updates", 0, "status"), "lost"),
        (("rewards", 0, "share_wei"), -1),
        (("examples", 0, "image_png_base64"), "<script>"),
    ],
)
def test_what_is_no_report_is_refused_by_the_name_of_its_key(
    path: tuple[str | int, ...], value: object
) -> None:
    document = json.loads(sample_report(images=1).to_json())
    inner = document
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(InputError, match=str(path[-1])):
        r.Report.from_json(json.dumps(document))


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(InputError, match="the text"):
        r.Report.from_json("{")


def test_reading_a_report_that_is_not_there_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.json"):
        r.read_report(tmp_path / "report.json")


def test_reading_a_report_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(sample_report(images=0).to_json(), encoding="utf-8")
    assert r.read_report(path).results.federated.map50 == 0.842


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_a_slice_survives_its_png(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(base64.b64decode(r.png_base64(pixels))))
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros(4, np.uint8)])
def test_pixels_that_are_no_slice_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="uint8"):
        r.png_base64(pixels)


def row(role: str, envelopes: int = 9, consulted: bool = False) -> r.RoleSight:
    sights = sights_of_a_run(r.StoreSight(objects=9, envelopes=envelopes, bytes=1), consulted)
    return next(sight for sight in sights if sight.role == role)


def test_the_roles_admit_an_object_that_is_not_sealed() -> None:
    assert not any("not sealed" in text.en for text in row("store").could_not_see)
    assert any("not sealed" in text.en for text in row("store", envelopes=8).could_not_see)


def test_the_roles_admit_that_a_server_sees_the_images_of_a_query() -> None:
    assert not any("second opinion" in text.en for text in row("server").could_see)
    asked = row("server", consulted=True)
    assert any("second opinion" in text.en for text in asked.could_see)
    assert any("which image" in text.en for text in asked.could_not_see)
