"""What came from others takes part in local training, and an update starts a local model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilia.errors import WeightsError
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.local_training import read_training_data, train_from_update, write_initial_model
from consilia.roles.progress import silent
from consilia.settings import DataSection
from tests.consortium import read_weights, spec_toml
from tests.roles.trading import write_images


@pytest.fixture
def spec() -> TaskSpec:
    """A task on 64 pixels."""
    return parse_toml(spec_toml(2))


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
def test_an_update_starts_a_local_model(tmp_path: Path, spec: TaskSpec) -> None:
    data = DataSection(path=write_images(tmp_path / "data"), exchanged=tmp_path / "exchanged")
    update, out = tmp_path / "update.safetensors", tmp_path / "local.safetensors"
    write_initial_model(spec, update)
    loss = train_from_update(spec, data, update, out, silent)
    before, after = read_weights(update), read_weights(out)
    assert np.isfinite(loss) and set(before) == set(after)
    moved: list[Any] = [name for name in before if not np.array_equal(before[name], after[name])]
    assert moved
    small = parse_toml(spec_toml(2).replace("image_size = 64", 'image_size = 64\ndetector = "retinanet"'))
    with pytest.raises(WeightsError):
        train_from_update(small, data, update, out, silent)
