"""A model handed out: its findings as COCO JSON, drawn pictures, DICOM SR, a structured report; itself as ONNX."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from consilia.detection.examples import prepare
from consilia.detection.inference import Prediction, load_detector
from consilia.detection.onnx_export import Agreement, export_onnx
from consilia.detection.predictions import write_predictions
from consilia.errors import InputError, UnusableImageError
from consilia.imaging.cases import Dataset, LabelledImage, Skipped, numbered
from consilia.imaging.dicom_file import is_dicom
from consilia.imaging.structured_report import (
    NOTICE,
    OWN_SCHEME,
    CodedName,
    ReportedFinding,
    Reporter,
    check_reportable,
    draw_findings,
    structured_report,
)
from consilia.roles.models.catalogue import NamedModel

SHOWN_SCORE = 0.3
"""Findings below it are in the COCO file alone: people are shown what the detector is half sure of."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm"})


@dataclass(frozen=True)
class Findings:
    """What a model found on each picture that could be read, and what could not."""

    model: NamedModel
    images: tuple[LabelledImage, ...]
    predictions: tuple[Prediction, ...]
    skipped: tuple[Skipped, ...]

    def reported(self, index: int, min_score: float) -> list[ReportedFinding]:
        """The findings on one picture that are shown, with the names of their categories."""
        names = self.model.spec.data.categories
        found = self.predictions[index].above(min_score)
        return [
            ReportedFinding(
                (float(x1), float(y1), float(x2), float(y2)),
                CodedName(str(int(label)), OWN_SCHEME, names[int(label) - 1]),
                float(score),
            )
            for (x1, y1, x2, y2), label, score in zip(
                found.boxes_xyxy, found.labels, found.scores, strict=True
            )
        ]

    @property
    def reporter(self) -> Reporter:
        """The model as a report names it."""
        return Reporter(self.model.spec.model.detector, str(self.model.digest))


def find_everything(model: NamedModel, pictures: Dataset, proposals: Path | None = None) -> Findings:
    """Run a model over pictures; one that cannot be read is left out and named.

    Args:
        proposals: where regions are kept, for the detectors that judge such.
    """
    detector = load_detector(model.spec, model.path, model.own_norm)
    predictions, unusable = detector.find(pictures.images, proposals)
    by_name = {image.image_id: image for image in pictures.images}
    images = tuple(by_name[found.image_id] for found in predictions)
    return Findings(model, images, tuple(predictions), (*pictures.skipped, *unusable))


def write_coco(findings: Findings, folder: Path) -> list[Path]:
    """All findings, also those with low scores, as `findings.json`."""
    path = folder / "findings.json"
    categories = findings.model.spec.data.categories
    write_predictions(path, findings.predictions, categories, str(findings.model.digest))
    return [path]


def write_overlays(findings: Findings, folder: Path, min_score: float) -> list[Path]:
    """Each picture as the model saw it, with boxes, names, scores and the notice drawn on, as PNG."""
    from PIL import Image

    paths = []
    for index, image in enumerate(findings.images):
        path = folder / f"{_stem(index, image)}.png"
        Image.fromarray(draw_findings(image.pixels(), findings.reported(index, min_score))).save(path)
        paths.append(path)
    return paths


def write_structured_reports(
    findings: Findings, folder: Path, min_score: float
) -> tuple[list[Path], list[Skipped]]:
    """A DICOM SR for each picture that is DICOM (the others have no study to belong to), and those that get none."""
    paths, skipped = [], []
    for index, image in enumerate(findings.images):
        if is_dicom(image.path):
            path = folder / f"{_stem(index, image)}.dcm"
            try:
                report = structured_report(image.path, findings.reported(index, min_score), findings.reporter)
            except UnusableImageError as error:
                skipped.append(Skipped(image.path.name, f"no DICOM SR: {error}", path=image.path))
                continue
            report.save_as(path, enforce_file_format=True)
            paths.append(path)
    return paths, skipped


def require_dicom(pictures: Dataset) -> None:
    """Before the work for DICOM SR: raise an InputError where no picture has a study that a report could belong to."""
    reason = "they are not DICOM"
    for image in pictures.images:
        if is_dicom(image.path):
            try:
                return check_reportable(image.path)
            except UnusableImageError as error:
                reason = str(error)
    raise InputError(
        f"--as sr: expected pictures in DICOM, these have no study that a report could belong to: {reason}"
    )


def findings_record(findings: Findings, min_score: float) -> dict[str, Any]:
    """The structured report as a document: which model, on what, what it found, what could not be read."""
    return {
        "notice": NOTICE,
        "model": {
            "detector": findings.reporter.model,
            "digest": findings.reporter.model_digest,
            "own_norm": str(findings.model.own_norm_digest) if findings.model.own_norm else None,
        },
        "min_score": min_score,
        "images": [
            {
                "image": image.image_id,
                "findings": [
                    {
                        "category": found.name.meaning,
                        "score": found.score,
                        "box_xyxy": list(found.box_xyxy),
                        "size_mm": _size_mm(found, image),
                    }
                    for found in findings.reported(index, min_score)
                ],
            }
            for index, image in enumerate(findings.images)
        ],
        "skipped": [{"name": item.name, "reason": item.reason} for item in numbered(findings.skipped)],
    }


def _size_mm(found: ReportedFinding, image: LabelledImage) -> list[float] | None:
    if image.spacing_mm is None:
        return None
    x1, y1, x2, y2 = found.box_xyxy
    between_rows, between_columns = image.spacing_mm
    return [round((x2 - x1) * between_columns, 1), round((y2 - y1) * between_rows, 1)]


def _stem(index: int, image: LabelledImage) -> str:
    name = PurePath(image.image_id)  # a file's, or a SOPInstanceUID, whose last dot begins no suffix
    return f"{index + 1:05d}-{(name.stem if name.suffix.lower() in SUFFIXES else name.name)[-60:]}"


def write_wanted(
    findings: Findings, folder: Path, wanted: Sequence[str], min_score: float
) -> tuple[list[Path], list[Skipped]]:
    """The files of the wanted kinds: coco, overlays, sr; and the pictures that could not be reported."""
    folder.mkdir(parents=True, exist_ok=True)
    written, skipped = write_coco(findings, folder) if "coco" in wanted else [], list[Skipped]()
    if "overlays" in wanted:
        (folder / "overlays").mkdir(exist_ok=True)
        written += write_overlays(findings, folder / "overlays", min_score)
    if "sr" in wanted:
        (folder / "sr").mkdir(exist_ok=True)
        reports, skipped = write_structured_reports(findings, folder / "sr", min_score)
        written += reports
    return written, skipped


ONNX_TRIALS = 20
"""Pictures on which ONNX is held against torch: more cost time and say no more."""


def export_model(model: NamedModel, path: Path, pictures: Dataset | None) -> Agreement:
    """Write a model as ONNX, with its digest and categories in the file, if it agrees with torch.

    Raises:
        VerificationError: it does not, or nothing was found that could be compared.
    """
    detector = load_detector(model.spec, model.path, model.own_norm)
    examples, _ = prepare(pictures.images[:ONNX_TRIALS] if pictures else (), model.spec.model.image_size)
    facts = {
        "consilia.notice": NOTICE,
        "consilia.digest": str(model.digest),
        **({"consilia.own_norm": str(model.own_norm_digest)} if model.own_norm else {}),
        "consilia.detector": model.spec.model.detector,
        "consilia.categories": json.dumps(list(model.spec.data.categories), ensure_ascii=False),
    }
    return export_onnx(detector, path, [example.pixels for example in examples], facts)
