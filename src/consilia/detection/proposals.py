"""Regions that may hold a finding, for the detectors that do not look for them themselves: selective search.

Uijlings et al. 2013, as opencv-contrib has it: a picture is cut into segments, and neighbours that look alike are
joined until one is left; the box around each of them is a region. It takes up to seconds a picture, and the same
picture always has the same regions: they are searched once and kept under the digest of the pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from consilia.detection.examples import Example
from consilia.errors import DatasetError

Boxes = npt.NDArray[np.float32]
Target = dict[str, Any]


MOST_REGIONS = 600
"""Of a picture. A detector judges 64 of them a step in training, and all of them afterwards."""

SMALLEST_PART = 1 / 24
"""Of the picture's longer side: regions thinner than this are noise."""

LARGEST_PART = 0.9
SCALE = 40
"""How large the first segments are (k of Felzenszwalb and Huttenlocher 2004), and the steps up from it."""

BACKGROUND = 0
"""Label under which regions travel through augmentation beside the lesions, whose labels begin at 1."""

_LABEL = b"consilia/proposals/v1\0"
_MODES = "colour fast, grey stretched quality"
"""Of the search; they change when `search` does."""


def search(pixels: npt.NDArray[np.uint8]) -> Boxes:
    """The regions of a picture, float32 (n, 4) xyxy in its pixels; equal pixels give equal regions.

    Colour pictures are searched in the fast mode. A grey one has one channel where they have three, so it is
    stretched to its own range of greys and searched in the quality mode (more colour spaces and thresholds, several
    times slower).

    Args:
        pixels: uint8 (H, W) or (H, W, 3).

    Raises:
        DatasetError: opencv-contrib is not installed.
    """
    try:
        import cv2
        from cv2 import ximgproc
    except ImportError as error:
        raise DatasetError(
            "this detector needs selective search: expected opencv-contrib-python-headless, "
            "install it with `pip install consilia[train]`"
        ) from error
    cv2.setNumThreads(1)
    grey = pixels.ndim == 2 or bool((pixels == pixels[:, :, :1]).all())
    picture = _stretched(pixels if pixels.ndim == 2 else pixels[:, :, 0]) if grey else pixels
    selective = ximgproc.segmentation.createSelectiveSearchSegmentation()
    selective.setBaseImage(np.ascontiguousarray(picture[:, :, ::-1]))
    mode = selective.switchToSelectiveSearchQuality if grey else selective.switchToSelectiveSearchFast
    mode(SCALE, SCALE, 0.8)
    found = np.asarray(selective.process(), np.int64).reshape(-1, 4)
    return _chosen(found, pixels)


def _stretched(grey: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Tissue spread over all greys; what is nearly black or white (air, bone) does not count for the range."""
    inside = grey[(grey > 20) & (grey < 235)]
    low, high = np.percentile(inside, [2, 99]) if inside.size else (0.0, 255.0)
    unit = np.clip((grey.astype(np.float32) - low) / max(high - low, 1.0), 0, 1)
    unit[grey > 245] = 0
    return np.repeat((unit * 255).astype(np.uint8)[:, :, None], 3, axis=2)


def _chosen(found_xywh: npt.NDArray[np.int64], pixels: npt.NDArray[np.uint8]) -> Boxes:
    """Those of sensible size, at most `MOST_REGIONS`, in an order that depends on the pixels alone.

    OpenCV orders them by the C library's random numbers, different in every call: the set alone is to be relied on.
    """
    longest = max(pixels.shape[:2])
    sides = found_xywh[:, 2:]
    good = (sides.min(1) >= longest * SMALLEST_PART) & (sides.max(1) <= longest * LARGEST_PART)
    unique = np.unique(found_xywh[good], axis=0)
    order = np.random.default_rng(list(_digest(pixels))).permutation(len(unique))[:MOST_REGIONS]
    boxes = unique[order].astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _digest(pixels: npt.NDArray[np.uint8]) -> bytes:
    shape = "x".join(str(side) for side in pixels.shape).encode()
    settings = f"{SCALE} {SMALLEST_PART} {LARGEST_PART} {MOST_REGIONS}".encode()
    return hashlib.sha256(_LABEL + settings + b"\0" + shape + b"\0" + pixels.tobytes()).digest()


def _searched_by(pixels: npt.NDArray[np.uint8]) -> str:
    """The name of kept regions: another OpenCV may cut other segments, and so does another mode."""
    try:
        import cv2

        version = str(cv2.__version__)
    except ImportError:
        version = ""
    return hashlib.sha256(_digest(pixels) + f"{_MODES}\0OpenCV {version}".encode()).hexdigest()


def with_proposals(examples: Iterable[Example], folder: Path | None = None) -> list[Example]:
    """The examples with the regions of each; those that have some keep them.

    Args:
        examples: what a detector is trained or tried on.
        folder: where regions are kept between runs, a file a picture; it is made. None keeps nothing.
    """
    return [
        example
        if example.proposals_xyxy is not None
        else replace(example, proposals_xyxy=_kept_or_searched(example.pixels, folder))
        for example in examples
    ]


def _kept_or_searched(pixels: npt.NDArray[np.uint8], folder: Path | None) -> Boxes:
    if folder is None:
        return search(pixels)
    file = folder / f"{_searched_by(pixels)}.npy"
    kept = _read(file, pixels.shape[1], pixels.shape[0])
    if kept is not None:
        return kept
    regions = search(pixels)
    folder.mkdir(parents=True, exist_ok=True)
    # of several processes that search the same picture at once, the last to be done has the name
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    with partial.open("wb") as out:
        np.save(out, regions, allow_pickle=False)
    partial.replace(file)
    return regions


def _read(file: Path, width: int, height: int) -> Boxes | None:
    """Kept regions; None where there are none, or where the file is not such regions: they are searched again."""
    try:
        boxes = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4 or len(boxes) > MOST_REGIONS:
        return None
    inside = (boxes >= 0) & (boxes <= np.array([width, height, width, height], np.float32))
    return boxes if inside.all() and (boxes[:, 2:] > boxes[:, :2]).all() else None


def as_one(example: Example) -> Example:
    """The example with its regions among its boxes, as `BACKGROUND`: so they turn and zoom as the lesions do."""
    if example.proposals_xyxy is None:
        return example
    boxes = np.concatenate([example.boxes_xyxy, example.proposals_xyxy])
    labels = np.concatenate([example.labels, np.full(len(example.proposals_xyxy), BACKGROUND, np.int64)])
    return replace(example, boxes_xyxy=boxes, labels=labels)


def as_target(boxes_xyxy: Boxes, labels: npt.NDArray[np.int64]) -> Target:
    """The boxes of an example made by `as_one` as a detector takes them: lesions, and regions apart."""
    boxes, kinds = torch.from_numpy(boxes_xyxy), torch.from_numpy(labels)
    lesion = kinds != BACKGROUND
    return {"boxes": boxes[lesion], "labels": kinds[lesion], "proposals": boxes[~lesion]}


def ready_for(model: nn.Module, examples: Sequence[Example], folder: Path | None = None) -> Sequence[Example]:
    """The examples, with regions if the detector judges such; see `with_proposals`."""
    return with_proposals(examples, folder) if judges_proposals(model) else examples


def judges_proposals(model: nn.Module) -> bool:
    """Whether a detector must be given regions: it says so by an attribute `judges_proposals`."""
    return bool(getattr(model, "judges_proposals", False))


def find(model: nn.Module, images: list[Tensor], examples: Sequence[Example]) -> list[Target]:
    """Call a detector that is in evaluation mode; one that judges regions is given those of the examples."""
    if not judges_proposals(model):
        found: list[Target] = model(images)
        return found
    regions = [as_one(example) for example in with_proposals(examples)]
    targets = [
        as_target(one.boxes_xyxy[len(example.labels) :], one.labels[len(example.labels) :])
        for one, example in zip(regions, examples, strict=True)
    ]
    device = images[0].device if images else None
    judged: list[Target] = model(
        images, [{name: tensor.to(device) for name, tensor in target.items()} for target in targets]
    )
    return judged
