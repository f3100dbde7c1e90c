"""What a TaskSpec asks of local training: normalisation that stays at home, channels of a slice, several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.inference import load_detector
from consilia.errors import DatasetError, WeightsError
from consilia.federation.tensors import LOCAL_KEY, TensorFile, local_names, local_tensors, write_tensors
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.models.pictures import read_pictures
from consilia.roles.progress import silent
from consilia.roles.training.local_training import (
    DetectorTrainer,
    read_training_data,
    recipe_of,
    write_initial_model,
)
from consilia.settings.sections import DataSection
from tests.consortium import read_weights, spec_toml
from tests.imaging.ct_files import ct
from tests.roles.trading import write_images

PLAIN = 'format = "image"'


def spec_with(training: str = "", data: str = "") -> TaskSpec:
    text = spec_toml(2, rounds=4, training=training)
    return parse_toml(
        text.replace("[data]", f"[data]\n{data}").replace("local_epochs = 1.0", "local_epochs = 0.5")
    )


def is_norm(name: str) -> bool:
    """By name, as a person would tell them in the small Faster R-CNN."""
    return "norm" in name or ".bn" in name or "downsample.1" in name


def test_normalisation_stays_in_the_hospitals_home(tmp_path: Path) -> None:
    spec, own_norm = spec_with("local_norm = true", PLAIN), tmp_path / "home" / "norm"
    data = DataSection(path=write_images(tmp_path / "data"))
    first, update = tmp_path / "w0", tmp_path / "update"
    write_initial_model(spec, first)
    with TensorFile(first) as file:
        local = local_tensors(file)
        assert local == {name for name in file.tensors if is_norm(name)} and len(local) > 10
    trainer = DetectorTrainer(spec, data, 1, silent, own_norm)
    trainer.train(first, 0)
    trainer.save(update, {"consilia.metrics": "{}"})
    sent, kept, drawn = read_weights(update), read_weights(own_norm), read_weights(first)
    assert set(kept) == local and set(sent) == set(drawn) - local
    assert any(not np.array_equal(kept[name], drawn[name]) for name in local)
    again = DetectorTrainer(spec, data, 1, silent, own_norm)  # as after kill -9
    again._load(first, 1)
    assert all(np.array_equal(again._trainer.model.state_dict()[n].numpy(), kept[n]) for n in local)
    own = load_detector(spec, first, own_norm).model.state_dict()  # how the hospital judges a global model
    assert all(np.array_equal(own[n].numpy(), (kept if n in local else drawn)[n]) for n in drawn)
    again._load(first, 0)  # another task with the same spec begins with the drawn ones
    assert all(np.array_equal(again._trainer.model.state_dict()[n].numpy(), drawn[n]) for n in drawn)


def test_a_server_that_calls_other_layers_local_is_refused(tmp_path: Path) -> None:
    """It would get the normalisation after all, or keep what it likes out of the average."""
    spec = spec_with("local_norm = true")
    write_initial_model(spec, tmp_path / "w0")
    tensors = read_weights(tmp_path / "w0")
    names = [name for name in tensors if is_norm(name)]
    model = build("faster-rcnn", num_classes=1, image_size=64, seed=5)
    for wrong in (names[1:], [*names, "roi_heads.box_predictor.bbox_pred.bias"]):
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        write_tensors(tmp_path / "w1", shapes, sorted(tensors.items()), {LOCAL_KEY: local_names(wrong)})
        with pytest.raises(WeightsError, match="normalisation tensors, the model names others"):
            weights.load_with_own_norm(model, tmp_path / "w1", None)


def test_the_initial_model_of_a_file_is_marked_too(tmp_path: Path) -> None:
    plain, keeps = spec_with(), spec_with("local_norm = true")
    write_initial_model(plain, tmp_path / "given")
    write_initial_model(keeps, tmp_path / "marked", tmp_path / "given")
    with TensorFile(tmp_path / "given") as given, TensorFile(tmp_path / "marked") as marked:
        assert not local_tensors(given) and local_tensors(marked)
        assert all(np.array_equal(given.read(name), marked.read(name)) for name in given.tensors)


def test_the_recipe_is_the_specs() -> None:
    plain = recipe_of(spec_with())
    assert (plain.proximal_mu, plain.ema_decay, plain.negatives_per_positive) == (0.0, 0.0, 1.0)
    assert plain.augment.mirror and not plain.augment.windows_hu
    spec = spec_with(
        'augmentation = "hu"\nproximal_mu = 0.5\nema_decay = 0.9\nnegatives_per_positive = 2.0',
        "laterality_matters = true\nwindow_center_hu = 40.0\nwindow_width_hu = 80.0",
    )
    recipe = recipe_of(spec)
    assert (recipe.proximal_mu, recipe.ema_decay, recipe.negatives_per_positive) == (0.5, 0.9, 2.0)
    assert not recipe.augment.mirror and recipe.augment.windows_hu == ((40.0, 80.0),)
    assert recipe_of(spec_with('augmentation = "none"')).augment.zoom == 0


@pytest.mark.parametrize(
    "asked", ["neighbouring_slices = true", "windows_hu = [[40, 80], [80, 200], [600, 2800]]"]
)
def test_channels_of_hounsfield_units_are_refused_for_plain_pictures(tmp_path: Path, asked: str) -> None:
    data = DataSection(path=write_images(tmp_path / "data"))
    with pytest.raises(DatasetError, match=r"CT in DICOM .* all 4 pictures are of the other kind"):
        read_training_data(spec_with(data=asked), data)


def test_a_task_is_trained_on_the_kind_of_pictures_that_it_is_of(tmp_path: Path) -> None:
    data = DataSection(path=write_images(tmp_path / "data"), exchanged=tmp_path / "exchanged")
    assert len(read_training_data(spec_with(data=PLAIN), data)) == 4
    with pytest.raises(DatasetError, match=r"CT in DICOM .*'dicom'.* all 4 pictures are of the other kind"):
        read_training_data(spec_with(), data)
    coco = json.loads((data.path / "annotations.json").read_text())
    coco["images"].append({"id": 9, "file_name": "a.dcm"})
    (data.path / "annotations.json").write_text(json.dumps(coco))
    ct(data.path / "dicom" / "a.dcm")
    for spec, kept, left_out in ((spec_with(), 1, 4), (spec_with(data=PLAIN), 4, 1)):
        mixed = read_training_data(spec, data)
        assert (len(mixed), len(mixed.skipped)) == (kept, left_out)
        assert all("data.format" in item.reason and item.patient for item in mixed.skipped)


RANKS = """
import sys
from pathlib import Path
import torch
from consilia.detection import weights
from consilia.detection.placement import Placement
from consilia.protocols.task_spec import parse_bytes
from consilia.roles.training import ranks
from consilia.roles.training.local_training import DetectorTrainer
from consilia.roles.models.pictures import read_pictures
from consilia.roles.progress import silent
from consilia.settings.sections import DataSection

folder = Path(sys.argv[1])
data = DataSection(path=folder / "data")
place = Placement.here()
train = DetectorTrainer.train

def train_and_keep(self, model, round_index):
    done = train(self, model, round_index)
    weights.save(self._trainer.model, folder / f"rank-{place.rank}-round-{round_index}")
    return done

DetectorTrainer.train = train_and_keep
if place.rank:
    ranks.follow(data, silent)
else:
    leader = ranks.LeadingTrainer(parse_bytes((folder / "spec").read_bytes()), data, 7, silent)
    for round_index in (0, 1):
        loss, steps = leader.train(folder / "w0", round_index)
        assert loss > 0 and steps == 1, (loss, steps)
    ranks.dismiss()
"""


@pytest.mark.slow
def test_two_ranks_of_torchrun_train_one_model(tmp_path: Path) -> None:
    """Each sees its half of the batch; without averaged gradients the two models would part at the first step."""
    spec = spec_with("batch_size = 2", PLAIN)
    write_images(tmp_path / "data")
    write_initial_model(spec, tmp_path / "w0")
    (tmp_path / "spec").write_bytes(spec.to_bytes())
    program = tmp_path / "program.py"
    program.write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, str(program), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for round_index in (0, 1):
        leader, other = (tmp_path / f"rank-{rank}-round-{round_index}" for rank in (0, 1))
        assert leader.read_bytes() == other.read_bytes() != (tmp_path / "w0").read_bytes()
    alone = DetectorTrainer(spec, DataSection(path=tmp_path / "data"), 7, silent)
    alone.train(tmp_path / "w0", 0)
    alone.save(tmp_path / "alone", {})
    assert (tmp_path / "alone").read_bytes() != (tmp_path / "rank-0-round-0").read_bytes()


def test_a_model_of_three_windows_is_asked_about_three_windows(tmp_path: Path) -> None:
    """Shown one grey window it would answer too, and wrongly."""
    ct(tmp_path / "ct" / "a.dcm")
    spec = spec_with(data="windows_hu = [[40, 80], [80, 200], [600, 2800]]")
    pixels = read_pictures(spec, tmp_path / "ct").images[0].pixels()
    assert pixels.shape == (128, 128, 3)
    assert not np.array_equal(pixels[..., 0], pixels[..., 2])
