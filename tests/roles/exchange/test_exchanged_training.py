"""What came from others takes part in local training, and an update starts a local model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilia.errors import WeightsError
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.exchange.fetching import advance_local_model
from consilia.roles.progress import silent
from consilia.roles.training.local_training import DetectorTrainer, read_training_data, write_initial_model
from consilia.settings.sections import DataSection
from tests.consortium import Steps, read_weights, spec_toml
from tests.roles.trading import write_images

SPEC = spec_toml(2).replace("[data]", '[data]\nformat = "image"')


@pytest.fixture
def spec() -> TaskSpec:
    """A task on 64 pixels."""
    return parse_toml(SPEC)


def test_exchanged_data_join_ones_own(tmp_path: Path, spec: TaskSpec) -> None:
    data = DataSection(path=write_images(tmp_path / "data"), exchanged=tmp_path / "exchanged")
    assert len(read_training_data(spec, data).images) == 4
    write_images(tmp_path / "exchanged" / "deal-1", count=3, seed=8)
    write_images(tmp_path / "exchanged" / "deal-2", count=2, seed=9)
    (tmp_path / "exchanged" / "half-copied.partial").mkdir()
    joined = read_training_data(spec, data)
    assert len(joined.images) == 9 and len({image.image_id for image in joined.images}) == 9


def test_a_data_set_of_other_classes_is_named_and_left_out(tmp_path: Path, spec: TaskSpec) -> None:
    data = DataSection(path=write_images(tmp_path / "data"), exchanged=tmp_path / "exchanged")
    other = write_images(tmp_path / "exchanged" / "deal-1") / "annotations.json"
    other.write_text(other.read_text().replace('"lesion"', '"nodule"'))
    joined = read_training_data(spec, data)
    assert len(joined.images) == 4 and [item.name for item in joined.skipped] == ["deal-1"]


@pytest.mark.slow
def test_an_update_starts_a_local_model(
    tmp_path: Path, spec: TaskSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataSection(path=write_images(tmp_path / "data"), exchanged=tmp_path / "exchanged")
    delivered = tmp_path / "delivered"
    delivered.mkdir()
    update = delivered / "update.safetensors"
    write_initial_model(spec, update)
    (delivered / "provenance.json").write_text('{"deal": "one", "owner": "0x1"}')
    steps = Steps()
    out = advance_local_model(tmp_path, spec, data, delivered, steps)
    before, after = read_weights(update), read_weights(out)
    assert np.isfinite(steps.named("local model trained")[0]["loss"]) and set(before) == set(after)
    moved: list[Any] = [name for name in before if not np.array_equal(before[name], after[name])]
    assert moved

    # what it has learned is where its next round begins; another update begins anew
    started: list[Path] = []
    train = DetectorTrainer.train

    def watched(trainer: DetectorTrainer, weights: Path, round_index: int) -> tuple[float, int]:
        started.append(weights)
        return train(trainer, weights, round_index)

    monkeypatch.setattr(DetectorTrainer, "train", watched)
    advance_local_model(tmp_path, spec, data, delivered, steps)
    (delivered / "provenance.json").write_text('{"deal": "two", "owner": "0x1"}')
    advance_local_model(tmp_path, spec, data, delivered, steps)
    assert started == [out, update]
    assert [line["rounds"] for line in steps.named("local model trained")] == [1, 2, 1]
    assert json.loads((tmp_path / "models" / "local.json").read_text())["started_from"]["deal"] == "two"
    small = parse_toml(SPEC.replace("image_size = 64", 'image_size = 64\ndetector = "retinanet"'))
    with pytest.raises(WeightsError):
        advance_local_model(tmp_path, small, data, delivered, silent)
