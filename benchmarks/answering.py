"""A query of 32 images through the server's Diagnoser, beside a bare torchvision loop over the same images."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.inference import BATCH_SIZE, load_detector
from consilia.protocols.assurance import STANDARD
from consilia.protocols.task_spec import parse_toml
from consilia.roles.diagnosis.diagnoser import DetectorDiagnoser

SPEC = """title = "bench"
[purpose]
object_of_learning = "haemorrhage"
application = "CT"
[data]
categories = ["haemorrhage", "mass"]
[model]
image_size = {size}
"""


@dataclass(frozen=True)
class AnswerSpeed:
    """Processor seconds that a query of `images` takes, the least of several turns, each way."""

    images: int
    image_size: int
    bare_cpu_seconds: float
    diagnoser_cpu_seconds: float

    @property
    def ratio(self) -> float:
        """The Diagnoser's images a second, as a part of the bare loop's."""
        return self.bare_cpu_seconds / self.diagnoser_cpu_seconds


def measure(image_size: int = 160, turns: int = 5) -> AnswerSpeed:
    """Both in turns, so that what else the machine does meets both; one thread.

    Raises:
        AssertionError: the two ways do not see the same findings.
    """
    torch.set_num_threads(1)
    spec = parse_toml(SPEC.format(size=image_size))
    model = build("faster-rcnn", num_classes=2, image_size=image_size, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weights.save(model, path)
        diagnoser = DetectorDiagnoser(load_detector(spec, path), (1, 2), 0.0)
    model.eval()
    random = np.random.default_rng(0)
    images = [
        random.integers(0, 255, (image_size, image_size), np.uint8).tobytes() for _ in range(STANDARD.images)
    ]
    bare, served = [], []
    for _ in range(turns):
        began = time.process_time()
        plain = _bare(model, images, image_size)
        bare.append(time.process_time() - began)
        began = time.process_time()
        answers = diagnoser.diagnose(images)
        served.append(time.process_time() - began)
    assert [min(count, 8) for count in plain] == [len(found) for found in answers], "not the same findings"
    return AnswerSpeed(len(images), image_size, min(bare), min(served))


def _bare(model: torch.nn.Module, images: list[bytes], size: int) -> list[int]:
    """What anybody would write: how many findings with an area each image has."""
    counts = []
    with torch.inference_mode():
        for first in range(0, len(images), BATCH_SIZE):
            batch = [
                torch.frombuffer(bytearray(data), dtype=torch.uint8)
                .reshape(1, size, size)
                .expand(3, -1, -1)
                .float()
                .div(255)
                for data in images[first : first + BATCH_SIZE]
            ]
            counts += [len(found["boxes"]) for found in model(batch)]
    return counts


def print_report(console: Console, speed: AnswerSpeed) -> None:
    """One line."""
    console.print(
        f"Answering a query of {speed.images} images of {speed.image_size} pixels: "
        f"{speed.diagnoser_cpu_seconds:.2f} CPU s, a bare torchvision loop {speed.bare_cpu_seconds:.2f}; "
        f"{speed.ratio:.2f} of its images a second"
    )
