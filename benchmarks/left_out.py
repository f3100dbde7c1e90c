"""Federated, local-only and pooled on CT of two patients: each trains once, and is held out once.

    OMP_NUM_THREADS=1 nice python benchmarks/left_out.py DATA [--rounds 30] [--steps 10] [--image-size 160]

DATA is a folder of CT slices in DICOM with a `boxes.json` (SOPInstanceUID, label, box_xyxy), such as ct_lungdx_dicom.
Two patients are too few for a split by patient with two hospitals, so the slices of the one that trains are dealt to
two hospitals in turn, and the other patient is held out whole. An interval draws that patient's slices anew: it tells
how far the figure holds for this patient, and nothing of any other.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from federated_options import Data, federate

from consilia.detection.bootstrap import RESAMPLES, Interval
from consilia.detection.evaluation import Evaluation, score
from consilia.detection.examples import Example, prepare
from consilia.detection.inference import predict
from consilia.detection.training import Trainer
from consilia.detection.weights import load_into
from consilia.imaging.cases import LUNG, LabelledImage
from consilia.imaging.readers import read_dicom
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.training.local_training import recipe_of

HOSPITALS = ("hospital-1", "hospital-2")


def read(folder: Path, image_size: int) -> dict[str, list[Example]]:
    """The slices of each patient, from one end to the other, with their boxes; each counts as its own for the draws."""
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    for box in json.loads((folder / "boxes.json").read_text()):
        boxes[box["SOPInstanceUID"]].append(box["box_xyxy"])
    by_patient: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in read_dicom(folder, window=LUNG).images:
        own = np.asarray(boxes[image.image_id], np.float32).reshape(-1, 4)
        labels = np.ones(len(own), np.int64)
        by_patient[image.patient].append(replace(image, boxes_xyxy=own, labels=labels))
    return {
        patient: [replace(slice_, patient=slice_.image_id) for slice_ in prepare(images, image_size)[0]]
        for patient, images in by_patient.items()
    }


def spec_of(options: argparse.Namespace, rounds: int) -> TaskSpec:
    """The task: one category, one slice a step."""
    return parse_toml(f"""title = "left out"
[purpose]
object_of_learning = "tumour"
application = "CT"
[data]
categories = ["tumour"]
[model]
image_size = {options.image_size}
seed = {options.seed}
[training]
rounds = {rounds}
batch_size = 1
""")


def fold(
    train: Sequence[Example], held_out: Sequence[Example], options: argparse.Namespace
) -> dict[str, Evaluation]:
    """The figures of each model, trained on one patient's slices, on the other's; all take as many steps a slice."""
    dealt = {name: list(train[number :: len(HOSPITALS)]) for number, name in enumerate(HOSPITALS)}
    pooled = len(HOSPITALS) * options.steps
    jobs = {
        "federated": (dealt, options.rounds, options.steps),
        "pooled": ({"all": list(train)}, 1, options.rounds * pooled),
    } | {f"{name} alone": ({name: own}, 1, options.rounds * options.steps) for name, own in dealt.items()}
    figures = {}
    for model, (hospitals, rounds, steps) in jobs.items():
        spec = spec_of(options, rounds)
        with tempfile.TemporaryDirectory(prefix="consilia-bench-") as work:
            path, _ = federate(spec, Data(("tumour",), hospitals, {}), steps, Path(work))
            judge = Trainer(
                spec.model.detector, 1, options.image_size, recipe_of(spec), list(held_out), options.seed
            )
            load_into(judge.model, path)
            found = predict(judge.model, held_out)
        figures[model] = score(found, held_out, resamples=RESAMPLES)
    return figures


def row(model: str, figures: Evaluation, against: Evaluation | None) -> str:
    """One line of the table."""
    assert figures.spread is not None
    cells = [
        f"{value:.3f}{shown(figures.spread.interval(name))}"
        for name, value in (("map50", figures.map50), ("cpm", figures.cpm))
    ]
    if against is None or against.spread is None:
        cells.append("")
    else:
        between = against.spread.difference([figures.spread], "map50")
        cells.append(f"{against.map50 - figures.map50:+.3f}{shown(between)}")
    return f"| {model} | {' | '.join(cells)} |"


def shown(interval: Interval | None) -> str:
    """An interval in brackets, if there is one."""
    return "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"


def main() -> None:
    """Hold out each patient once, and print a table each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10, help="of each hospital in a round")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    first, second = read(options.data, options.image_size).values()
    for train, held_out in ((first, second), (second, first)):
        lesions = [sum(len(example.labels) for example in part) for part in (train, held_out)]
        print(f"\n{len(train)} slices with {lesions[0]} boxes; held out {len(held_out)} with {lesions[1]}\n")
        print("| model | mAP@.5 | CPM | mAP@.5 of federated minus it |\n|---|---|---|---|")
        figures = fold(train, held_out, options)
        for model, found in figures.items():
            against = None if model == "federated" else figures["federated"]
            print(row(model, found, against), flush=True)


if __name__ == "__main__":
    main()
