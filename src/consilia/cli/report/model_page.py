"""What `consilia model eval` and `predict` found, as one self-contained page in both languages."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from consilia.cli.report.charts import Axis, Line, bar, both, plot
from consilia.cli.report.page import FROC_TICKS, UNIT_TICKS
from consilia.cli.report.results import Interval, Text
from consilia.whole_file import whole_file


def write_page(path: Path, record: dict[str, Any]) -> None:
    """An assessment (the JSON of `model eval`) as a page."""
    sensitivity = Text(en="Sensitivity at each number of false positives", zh="不同假阳性数下的敏感度")
    x = Axis(
        Text(en="false positives an image", zh="平均每张影像的假阳性数"), 0.125, 8.0, FROC_TICKS, log2=True
    )
    y = Axis(Text(en="sensitivity", zh="敏感度"), 0.0, 1.0, UNIT_TICKS)
    curve = Line(sensitivity, tuple((at, found) for at, found in record["froc"]), "federated", marked=True)
    bounds = [
        Line(
            sensitivity,
            tuple(
                (at, found[side])
                for (at, _), found in zip(record["froc"], record["froc_intervals"], strict=True)
                if found
            ),
            "local",
        )
        for side in (0, 1)
        if any(record["froc_intervals"])
    ]
    reliability = Text(en="Share of hits by score", zh="各得分区间的命中率")
    score = Axis(Text(en="mean score", zh="平均得分"), 0.0, 1.0, UNIT_TICKS)
    points = tuple(
        (item["mean_score"], item["hits"] / item["findings"])
        for item in record["calibration"]["bins"]
        if item["findings"]
    )
    lines = (
        Line(reliability, ((0.0, 0.0), (1.0, 1.0)), "local"),
        Line(reliability, points, "pooled", marked=True),
    )
    charts = {
        "froc": plot(sensitivity, x, y, (*bounds, curve)),
        "reliability": plot(reliability, score, y, lines),
    }
    _write(path, "model.html.j2", record=record, **charts)


def write_findings_page(path: Path, record: dict[str, Any], pictures: list[str]) -> None:
    """A structured report of findings as a page; `pictures` are drawn PNGs as base64, one an image."""
    _write(path, "findings.html.j2", record=record, pictures=pictures)


def _write(path: Path, template: str, **values: Any) -> None:
    css = resources.files("consilia.cli.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("consilia.cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(t=lambda en, zh: both(Text(en=en, zh=zh)), bar=_bar)
    environment.filters.update(score="{:.3f}".format, interval=_interval)
    page = environment.get_template(template).render(
        css=Markup(css), css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(), **values
    )
    with whole_file(path) as file:
        file.write(page.encode())


def _bar(value: float, bounds: list[float] | None) -> Markup:
    return bar(value, 1.0, "federated", None, Interval(low=bounds[0], high=bounds[1]) if bounds else None)


def _interval(bounds: list[float] | None) -> str:
    return f"{bounds[0]:.3f} … {bounds[1]:.3f}" if bounds else "–"
