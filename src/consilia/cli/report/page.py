"""`report.html`: one file without scripts, fonts or links, in both languages, to read, print or archive."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from consilia.cli.report import consultation_words, words
from consilia.cli.report.charts import Axis, Level, Line, bar, both, legend, plot
from consilia.cli.report.consultation import ConsultationReport
from consilia.cli.report.report import Report
from consilia.cli.report.results import Text

UNIT_TICKS = ((0.0, "0"), (0.2, "0.2"), (0.4, "0.4"), (0.6, "0.6"), (0.8, "0.8"), (1.0, "1"))
FROC_TICKS = ((0.125, "1/8"), (0.25, "1/4"), (0.5, "1/2"), (1.0, "1"), (2.0, "2"), (4.0, "4"), (8.0, "8"))
HOSPITALS_ALONE = Text(en="Hospitals alone", zh="各医院单独训练")


@dataclass(frozen=True)
class ReportPaths:
    """Where a written report lies."""

    json: Path
    html: Path


@dataclass(frozen=True)
class Chart:
    """A drawn plot and its legend."""

    svg: Markup
    legend: Markup


@dataclass(frozen=True)
class Amount:
    """A row of a table with a bar: `value` sets the bar's length, `shown` is what is read."""

    name: Text
    value: float
    shown: str


def write_report(report: Report, home: Path) -> ReportPaths:
    """Write `report.json` and `report.html` into `home`, each in one step: neither is ever half there."""
    paths = ReportPaths(json=home / "report.json", html=home / "report.html")
    for path, text in ((paths.json, report.to_json()), (paths.html, render_html(report))):
        unfinished = path.with_name(path.name + ".part")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    return paths


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page that works under `default-src 'none'`."""
    extra: dict[str, object] = {}
    if report.consultation is not None:
        extra = _consultation_parts(report.consultation)
    return _render(
        "report.html.j2",
        **extra,
        report=report,
        words=words,
        verdict=words.verdict(report.results),
        phases=phase_amounts(report),
        sizes=size_amounts(report),
        learning=learning_chart(report),
        froc=froc_chart(report),
    )


def render_consultation(shown: ConsultationReport) -> str:
    """One second opinion as a page of its own, in the same style and under the same policy."""
    return _render("consultation_page.html.j2", **_consultation_parts(shown))


def write_consultation(shown: ConsultationReport, folder: Path) -> ReportPaths:
    """Write `consultation.json` and `consultation.html` into `folder`, for their owner's eyes alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = ReportPaths(json=folder / "consultation.json", html=folder / "consultation.html")
    for path, text in ((paths.json, shown.to_json()), (paths.html, render_consultation(shown))):
        unfinished = path.with_name(path.name + ".part")
        unfinished.touch(mode=0o600)
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    return paths


def _consultation_parts(shown: ConsultationReport) -> dict[str, object]:
    return {
        "shown": shown,
        "told": consultation_words.opinion(shown),
        "bound_text": consultation_words.bound_text,
        "hiding_text": consultation_words.hiding_text,
        "steps": consultation_words.STEPS,
        "standings": consultation_words.STANDINGS,
    }


def _render(template: str, **parts: object) -> str:
    css = resources.files("consilia.cli.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=PackageLoader("consilia.cli.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(t=_t, both=both, bar=bar)
    environment.filters.update(
        seconds=words.seconds_text,
        bytes=words.bytes_text,
        ether=words.ether_text,
        amount=words.amount_text,
        score="{:.3f}".format,
        interval=words.interval_text,
        percent="{:.0%}".format,
        count="{:,}".format,
    )
    return environment.get_template(template).render(
        css=Markup(css),
        css_hash=base64.b64encode(hashlib.sha256(css.encode()).digest()).decode(),
        **parts,
    )


def phase_amounts(report: Report) -> tuple[Amount, ...]:
    """The phases that took time, in the order they ran, without the total."""
    spent = ((name, getattr(report.seconds, key)) for key, name in words.PHASES.items())
    return tuple(Amount(name, value, words.seconds_text(value)) for name, value in spent if value > 0)


def size_amounts(report: Report) -> tuple[Amount, ...]:
    """The kinds of bytes that there are any of."""
    counts = ((name, getattr(report.bytes, key)) for key, name in words.BYTE_KINDS.items())
    return tuple(Amount(name, count, words.bytes_text(count)) for name, count in counts if count > 0)


def learning_chart(report: Report) -> Chart:
    """mAP@.5 of the global model after each round, beside the pooled model and the mean alone."""
    scored = tuple((float(r.round_index), r.map50) for r in report.rounds if r.map50 is not None)
    last = max((r.round_index for r in report.rounds), default=1)
    first = min((r.round_index for r in report.rounds), default=0)
    step = max(1, (last - first) // 8)
    ticks = tuple((float(i), str(i)) for i in range(first, last + 1, step))
    x = Axis(Text(en="round", zh="轮次"), float(first), float(max(last, first + 1)), ticks)
    y = Axis(Text(en="mAP@.5", zh="mAP@.5"), 0.0, 1.0, UNIT_TICKS)
    lines = (Line(words.FEDERATED, scored, "federated", marked=True),) if scored else ()
    levels = (
        Level(words.POOLED, report.results.pooled.map50, "pooled"),
        Level(words.MEAN_LOCAL, report.results.summary.mean_local_map50, "local"),
    )
    title = Text(en="mAP@.5 of the global model after each round", zh="每轮之后全局模型的 mAP@.5")
    return Chart(plot(title, x, y, lines, levels), legend(lines, levels))


def froc_chart(report: Report) -> Chart:
    """The FROC curves of all models, from 1/8 to 8 false positives an image."""
    x = Axis(
        Text(en="false positives an image (mean)", zh="平均每张影像的假阳性数"),
        0.125,
        8.0,
        FROC_TICKS,
        log2=True,
    )
    y = Axis(Text(en="sensitivity", zh="敏感度"), 0.0, 1.0, UNIT_TICKS)
    results = report.results
    curves = (
        *((HOSPITALS_ALONE, score.froc, "local") for score in results.local_only),
        (words.POOLED, results.pooled.froc, "pooled"),
        (words.FEDERATED, results.federated.froc, "federated"),
    )
    lines = tuple(Line(name, _from_an_eighth(froc), css) for name, froc, css in curves if froc)
    title = Text(en="Sensitivity against false positives an image", zh="敏感度与平均每张影像假阳性数的关系")
    return Chart(plot(title, x, y, lines), legend(tuple(reversed(lines))))


def _from_an_eighth(froc: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """The curve inside the plot, starting and ending at its edges: sensitivity holds until the next point."""
    before = [point for point in froc if point[0] <= 0.125]
    inside = [point for point in froc if 0.125 < point[0] < 8.0]
    start = before[-1][1] if before else 0.0
    upto = [point for point in froc if point[0] <= 8.0]
    end = upto[-1][1] if upto else start
    return ((0.125, start), *inside, (8.0, end))


def _t(en: str, zh: str) -> Markup:
    return both(Text(en=en, zh=zh))
