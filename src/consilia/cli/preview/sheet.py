"""Chooses images, draws them small, and writes them with their boxes into one page."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from consilia import __version__
from consilia.cli.report.charts import both
from consilia.cli.report.results import Text
from consilia.imaging.burned_in import CAPTURED, IN_HEADER, IN_IMAGE, NOT_ORIGINAL
from consilia.imaging.cases import Dataset, LabelledImage, WindowHU
from consilia.imaging.dicom import read_ct
from consilia.imaging.holdings import Holdings, Quarantined

THUMBNAIL_PIXELS = 240
QUARANTINE_PIXELS = 640
"""Text must be legible to whoever decides about it."""
COLOURS = ("#ff5a4d", "#35b6ff", "#ffc531", "#63d471", "#d08bff", "#ff8fc7")


REASONS = {
    IN_HEADER: Text(en=IN_HEADER, zh="头信息标明像素中含有文字（0028,0301 = YES）"),
    NOT_ORIGINAL: Text(en=NOT_ORIGINAL, zh="影像类型（0008,0008）不是 ORIGINAL\\PRIMARY：影像经过处理"),
    CAPTURED: Text(en=CAPTURED, zh="文件来自截图设备（0008,0064）"),
    IN_IMAGE: Text(en=IN_IMAGE, zh="影像中有疑似文字的痕迹"),
}


@dataclass(frozen=True)
class Drawn:
    """A box in parts of the image, 0 to 1000."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    label: str


@dataclass(frozen=True)
class Tile:
    """One image of the sheet."""

    title: str
    source: str
    """A PNG as a data URL."""
    aspect: float
    boxes: tuple[Drawn, ...]
    notes: tuple[Text, ...] = ()


@dataclass(frozen=True)
class Group:
    """The tiles of one patient."""

    patient: str
    tiles: tuple[Tile, ...]
    images: int
    boxes: int


@dataclass(frozen=True)
class Sheet:
    """All that the page shows."""

    groups: tuple[Group, ...]
    legend: tuple[tuple[str, str, int], ...]
    """Category, colour, number of boxes."""
    images: int
    shown: int
    patients: int
    quarantine: bool = False


def of_dataset(dataset: Dataset, limit: int) -> Sheet:
    """At most `limit` images, spread evenly over the patients; of each, images with boxes first."""
    chosen = _choose(dataset.images, limit)
    by_patient: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in dataset.images:
        by_patient[image.patient].append(image)
    groups = []
    for number, (_, images) in enumerate(sorted(by_patient.items()), start=1):
        tiles = tuple(_tile(image, dataset.categories) for image in images if image.image_id in chosen)
        boxes = sum(len(image.labels) for image in images)
        if tiles:
            groups.append(Group(f"{number}", tiles, len(images), boxes))
    counts = {name: 0 for name in dataset.categories}
    for image in dataset.images:
        for label in image.labels.tolist():
            counts[dataset.categories[label - 1]] += 1
    legend = tuple(
        (name, _colour(label), counts[name]) for label, name in enumerate(dataset.categories, start=1)
    )
    return Sheet(tuple(groups), legend, len(dataset), len(chosen), len(by_patient))


def of_quarantine(holdings: Holdings, limit: int) -> Sheet:
    """What waits for a person, with the suspected places."""
    waiting = list(holdings.quarantined())
    by_patient: dict[str, list[Quarantined]] = defaultdict(list)
    for item in waiting[:limit]:
        by_patient[item.patient].append(item)
    groups = tuple(
        Group(f"{number}", tuple(_waiting(holdings, item) for item in items), len(items), 0)
        for number, (_, items) in enumerate(sorted(by_patient.items()), start=1)
    )
    patients = len({item.patient for item in waiting})
    return Sheet(groups, (), len(waiting), len(waiting[:limit]), patients, quarantine=True)


def write_sheet(sheet: Sheet, path: Path) -> None:
    """Write the page in one step."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(render(sheet), encoding="utf-8")
    unfinished.replace(path)


def render(sheet: Sheet) -> str:
    """The page; it works under `default-src 'none'`."""
    css = resources.files("consilia.cli.preview").joinpath("templates/sheet.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("consilia.cli.preview", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(t=lambda en, zh, tag="span": both(Text(en=en, zh=zh), tag))
    return environment.get_template("sheet.html.j2").render(
        sheet=sheet,
        version=__version__,
        css=Markup(css),
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
    )


def _choose(images: Sequence[LabelledImage], limit: int) -> frozenset[str]:
    by_patient: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in images:
        by_patient[image.patient].append(image)
    share = max(1, limit // max(1, len(by_patient)))
    chosen: list[str] = []
    for items in by_patient.values():
        marked = [image for image in items if len(image.labels)]
        chosen += [image.image_id for image in _spread(marked, share)]
        rest = [image for image in items if not len(image.labels)]
        chosen += [image.image_id for image in _spread(rest, share - min(share, len(marked)))]
    return frozenset(chosen[:limit])


def _spread(images: Sequence[LabelledImage], count: int) -> Iterable[LabelledImage]:
    if count <= 0 or not images:
        return ()
    count = min(count, len(images))
    return [images[int(i)] for i in np.linspace(0, len(images) - 1, count).round()]


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]


def _tile(image: LabelledImage, categories: tuple[str, ...]) -> Tile:
    boxes = tuple(
        _drawn(box, image.width, image.height, _colour(label), categories[label - 1])
        for box, label in zip(image.boxes_xyxy.tolist(), image.labels.tolist(), strict=True)
    )
    return Tile(_short(image.path), _thumbnail(image.pixels()), image.width / image.height, boxes)


def _short(path: Path) -> str:
    """The end of an imported file's new name; of one that was not imported nothing, it may be somebody's name."""
    return f"…{path.stem[-8:]}" if path.stem.startswith("2.25.") else ""


def _waiting(holdings: Holdings, item: Quarantined) -> Tile:
    slice_ = read_ct(holdings.quarantine_image(item))
    boxes = tuple(_drawn(box, item.width, item.height, COLOURS[0], "") for box in item.boxes)
    low, high = float(slice_.hu.min()), float(slice_.hu.max())
    pixels = WindowHU((low + high) / 2, max(high - low, 1.0)).to_uint8(slice_.hu)  # text can have any value
    source = _thumbnail(pixels, QUARANTINE_PIXELS)
    notes = tuple(REASONS.get(reason, Text(en=reason, zh=reason)) for reason in item.reasons)
    return Tile(item.sop_instance_uid, source, item.width / item.height, boxes, notes)


def _drawn(box: Sequence[float], width: int, height: int, colour: str, label: str) -> Drawn:
    x1, x2 = (1000 * value / width for value in (box[0], box[2]))
    y1, y2 = (1000 * value / height for value in (box[1], box[3]))
    return Drawn(round(x1, 1), round(y1, 1), round(x2 - x1, 1), round(y2 - y1, 1), colour, label)


def _thumbnail(pixels: NDArray[np.uint8], side: int = THUMBNAIL_PIXELS) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
