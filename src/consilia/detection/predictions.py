"""Predictions as COCO JSON: written for others, and kept so that figures can be worked out again without the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from consilia.detection.inference import Prediction
from consilia.errors import InputError
from consilia.whole_file import whole_file


class _Image(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: int
    file_name: str


class _Finding(BaseModel):
    model_config = ConfigDict(extra="ignore")
    image_id: int
    category_id: int = Field(ge=1)
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    score: FiniteFloat = Field(ge=0, le=1)


class _Category(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: int
    name: str


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")
    images: tuple[_Image, ...]
    annotations: tuple[_Finding, ...]
    categories: tuple[_Category, ...]


def coco_predictions(
    predictions: Sequence[Prediction], categories: Sequence[str], model_digest: str
) -> dict[str, object]:
    """The findings as a COCO document: `annotations` with a score each is what COCO's `loadRes` takes.

    Boxes are (x, y, width, height) in pixels of the original pictures; `category_id` k is the k-th category.
    """
    annotations: list[dict[str, object]] = []
    for image, found in enumerate(predictions, start=1):
        for box, score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True):
            x1, y1, x2, y2 = (float(edge) for edge in box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    return {
        "info": {
            "description": "Findings of a model: research use only, not verified",
            "model": model_digest,
        },
        "images": [{"id": i, "file_name": found.image_id} for i, found in enumerate(predictions, start=1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(categories, start=1)],
    }


def write_predictions(
    path: Path, predictions: Sequence[Prediction], categories: Sequence[str], model_digest: str
) -> None:
    """Write the findings as COCO JSON, whole or not at all."""
    document = coco_predictions(predictions, categories, model_digest)
    with whole_file(path) as file:
        file.write((json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n").encode())


def read_predictions(path: Path, categories: Sequence[str]) -> list[Prediction]:
    """The findings that `write_predictions` wrote, or that another program wrote the same way.

    Raises:
        InputError: it is no such file, or of other categories.
    """
    try:
        document = _File.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"expected predictions as COCO JSON in {path.name}: {_first(error)}") from error
    names = tuple(category.name for category in sorted(document.categories, key=lambda item: item.id))
    if names != tuple(categories):
        raise InputError(f"expected predictions of {', '.join(categories)}, got {', '.join(names)}")
    by_image: dict[int, list[_Finding]] = {image.id: [] for image in document.images}
    for finding in document.annotations:
        if finding.image_id not in by_image or finding.category_id > len(names):
            raise InputError(f"{path.name}: a finding is on image {finding.image_id}, which is not listed")
        by_image[finding.image_id].append(finding)
    return [_prediction(image.file_name, by_image[image.id]) for image in document.images]


def _prediction(name: str, findings: Sequence[_Finding]) -> Prediction:
    ordered = sorted(findings, key=lambda finding: -finding.score)
    boxes = np.array([finding.bbox for finding in ordered], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Prediction(
        name,
        boxes.astype(np.float32),
        np.array([finding.score for finding in ordered], np.float32),
        np.array([finding.category_id for finding in ordered], np.int64),
    )


def _first(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    found = error.errors()[0]
    return f"{'.'.join(str(step) for step in found['loc']) or 'the text'}: {found['msg']}"
