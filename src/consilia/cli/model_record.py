"""What `consilia model` measured, as JSON and as lines for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from consilia.detection.assessment import Assessment, Rate
from consilia.detection.bootstrap import RESAMPLES, Interval
from consilia.detection.comparison import Comparison
from consilia.detection.evaluation import FIGURES, Evaluation
from consilia.detection.froc import HIT_IOU
from consilia.roles.models.card import counted, told_size
from consilia.roles.models.catalogue import NamedModel
from consilia.whole_file import whole_file

NAMES = {"map50": "mAP@.5", "map": "mAP@[.5:.95]", "map75": "mAP@.75", "cpm": "CPM"}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a document, whole or not at all."""
    with whole_file(path) as file:
        file.write((json.dumps(values, ensure_ascii=False, indent=2) + "\n").encode())


def model_record(model: NamedModel) -> dict[str, Any]:
    """Which model it is."""
    known = model.registered
    return {
        "digest": str(model.digest),
        "detector": model.spec.model.detector,
        "categories": list(model.spec.data.categories),
        "task": known.number if known else None,
        "after_rounds": known.rounds_done if known else None,
        "own_norm": str(model.own_norm_digest) if model.own_norm else None,
    }


def assessment_record(found: Assessment, model: dict[str, Any], seed: int) -> dict[str, Any]:
    """Everything that was measured, without a patient's key."""
    return {
        "model": model,
        "hit_rule": {"kind": "iou", "min_iou": HIT_IOU},
        "intervals": _intervals_record(found.over, seed),
        "patients": found.num_patients if found.over == "patients" else None,
        **evaluation_record(found.overall),
        "operating_point": {
            "false_positives_per_image": 1.0,
            "score": found.threshold if isfinite(found.threshold) else None,
            "patients_found": rate_record(found.patients),
            "lesions_by_size": [
                {
                    "from": group.low,
                    "below": group.high if isfinite(group.high) else None,
                    "unit": group.unit,
                    **rate_record(group.lesions),
                }
                for group in found.by_size
            ],
        },
        "calibration": {
            "ece": found.calibration.ece,
            "ece_interval": interval_record(found.calibration.interval),
            "bins": [vars(item) for item in found.calibration.bins],
        },
        "hospitals": [
            {
                "hospital": own.hospital,
                "patients": own.patients if found.over == "patients" else None,
                **evaluation_record(own.evaluation),
            }
            for own in found.hospitals
        ],
        "worst_hospital": found.worst_hospital.hospital if found.worst_hospital else None,
    }


def _intervals_record(over: str, seed: int) -> dict[str, Any]:
    return {"confidence": 0.95, "resamples": RESAMPLES, "over": over, "seed": seed}


def evaluation_record(found: Evaluation) -> dict[str, Any]:
    """The headline figures with their intervals."""
    values: dict[str, Any] = {"images": found.num_images, "lesions": found.num_lesions}
    for figure in FIGURES:
        values[figure] = getattr(found, figure)
        values[f"{figure}_interval"] = interval_record(
            found.spread.interval(figure) if found.spread else None
        )
    bounds = found.spread.froc_intervals() if found.spread else (None,) * len(found.froc)
    return values | {
        "froc": [list(point) for point in found.froc],
        "froc_intervals": [interval_record(each) for each in bounds],
    }


def comparison_record(
    found: Comparison, first: dict[str, Any], second: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Two models and their differences."""
    return {
        "intervals": _intervals_record(found.over, seed),
        "first": first | evaluation_record(found.first),
        "second": second | evaluation_record(found.second),
        "differences": {
            item.figure: {
                "difference": item.difference,
                "interval": interval_record(item.interval),
                "beyond_chance": item.beyond_chance,
            }
            for item in found.differences
        },
    }


def interval_record(found: Interval | None) -> list[float] | None:
    """[low, high], or null."""
    return None if found is None else [found.low, found.high]


def rate_record(found: Rate) -> dict[str, Any]:
    """How many, how many of them found, and the ratio's interval."""
    return {"number": found.number, "found": found.found, "interval": interval_record(found.interval)}


def assessment_lines(found: Assessment) -> Iterator[str]:
    """The measurements for a person, one fact a line."""
    overall = found.overall
    known = found.over == "patients"
    yield told_size(found.num_patients if known else None, overall.num_images, overall.num_lesions)
    yield from _narrow(found.over)
    yield from _figures(overall)
    yield f"at 1 false positive an image (score {found.threshold:.3f} and above):"
    yield f"  {'images' if found.over == 'images' else 'patients'} found".ljust(21) + _rate(found.patients)
    for group in found.by_size:
        upper = f"{group.high:g}" if isfinite(group.high) else "..."
        yield f"  lesions {f'{group.low:g}-{upper} {group.unit}':<12}{_rate(group.lesions)}"
    yield f"calibration: ECE {found.calibration.ece:.3f} {_interval(found.calibration.interval)}"
    for own in found.hospitals:
        spread = own.evaluation.spread
        bounds = _interval(spread.interval("map50") if spread else None)
        of = counted(own.patients, "patient" if known else "image")
        worst = "  <- worst" if own is found.worst_hospital else ""
        yield f"{own.hospital}: mAP@.5 {own.evaluation.map50:.3f} {bounds}, {of}{worst}"


def comparison_lines(found: Comparison) -> Iterator[str]:
    """The comparison for a person."""
    yield from _narrow(found.over)
    for item in found.differences:
        verdict = "beyond chance" if item.beyond_chance else "could be chance"
        if item.interval is None:
            verdict = f"too few {found.over} to say"
        yield (
            f"{NAMES[item.figure]:<13}{item.first:.3f} and {item.second:.3f}: {item.difference:+.3f} "
            f"{_interval(item.interval)}, {verdict}"
        )


def _narrow(over: str) -> Iterator[str]:
    if over != "patients":
        yield f"intervals are over {over}: images of one patient resemble one another, so they may be too narrow"


def _figures(found: Evaluation) -> Iterator[str]:
    for figure in FIGURES:
        bounds = _interval(found.spread.interval(figure) if found.spread else None)
        yield f"{NAMES[figure]:<13}{getattr(found, figure):.3f} {bounds}"


def _rate(found: Rate) -> str:
    if not found.number:
        return "none there"
    return f"{found.found} of {found.number} ({found.rate:.3f} {_interval(found.interval)})"


def _interval(found: Interval | None) -> str:
    return "[no interval: too few patients]" if found is None else f"[{found.low:.3f}, {found.high:.3f}]"
