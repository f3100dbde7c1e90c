"""The page: self-contained, escaped, in two languages, and true to the report it is drawn from."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

from consilia.cli.report import report as r
from consilia.cli.report import results as rs
from consilia.cli.report.charts import Axis, Line, bar, plot
from consilia.cli.report.page import froc_chart, render_html, size_amounts, write_report
from consilia.cli.report.words import hit_rule_text, verdict
from tests.cli.sample_report import HOSPITALS, sample_report

NOTHING = r.Text(en="", zh="")


@pytest.fixture(scope="module")
def html() -> str:
    return render_html(sample_report())


def test_the_page_refers_to_nothing_outside_itself(html: str) -> None:
    assert not re.search(r"<(script|link|iframe|object|embed|form|base)\b", html)
    targets = re.findall(r"""(?:href|src)\s*=\s*["']([^"']*)""", html)
    assert targets
    assert all(target.startswith(("data:image/png;base64,", "#slice-")) for target in targets)
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html


def test_the_policy_admits_this_style_sheet_and_no_other(html: str) -> None:
    css = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert css
    digest = base64.b64encode(hashlib.sha256(css[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:" in html
    assert not re.search(r"\sstyle\s*=", html), "the policy would refuse a style attribute"


def test_every_text_stands_in_both_languages(html: str) -> None:
    body = html[html.index("<body>") :]
    assert body.count('lang="en"') == body.count('lang="zh-CN"') > 100
    assert "联邦学习" in body and "Federated" in body


def test_names_from_outside_are_escaped() -> None:
    evil = "<script>alert(1)</script>"
    report = sample_report(images=1)
    site = report.data[0].model_copy(update={"scanner": evil, "hospital": evil})
    study = r.SkippedStudy(name=evil, reason=evil)
    example = report.examples[0].model_copy(update={"patient": f'"{evil}', "hospital": evil})
    report = report.model_copy(
        update={
            "data": (site.model_copy(update={"skipped": (study,)}), *report.data[1:]),
            "examples": (example,),
            "command": evil,
            "data_source": evil,
        }
    )
    drawn = render_html(report)
    assert "<script" not in drawn
    assert "&lt;script&gt;" in drawn


def test_each_hospital_update_reward_and_skipped_study_is_there(html: str) -> None:
    for hospital in HOSPITALS:
        assert f"{hospital} alone" in html
    for words in (
        "norm 812.4 is above the bound of 50",
        "registered in block 31",
        "P017/IM0004.dcm",
        "missing",
    ):
        assert words in html
    assert "no axial series &lt;with&gt; annotations" in html
    assert "consilia audit verify --home demo-home" in html


def test_a_failed_audit_is_not_hidden() -> None:
    audit = r.Audit(command="consilia audit verify", exit_code=5, message="block 17: its seal is wrong")
    drawn = render_html(sample_report(images=0).model_copy(update={"audit": audit}))
    assert "block 17: its seal is wrong" in drawn
    assert ">failed<" in drawn and ">passed<" not in drawn
    assert "re-derived" not in drawn, "a failed audit must not claim what it did not do"


def test_a_run_without_audit_or_examples_says_so() -> None:
    drawn = render_html(sample_report(images=0).model_copy(update={"audit": None}))
    assert "has not been audited" in drawn
    assert "What the detectors see" not in drawn


def test_the_verdict_does_not_flatter() -> None:
    score = rs.Score(map50=0.5, map=0.2, cpm=0.3)
    local = tuple(
        rs.LocalScore(hospital=h, **score.model_copy(update={"map50": 0.6}).model_dump()) for h in "ab"
    )
    lost = verdict(rs.Results.of(score, score, local))
    assert "did not pay off" in lost.headline.en and "0.600" in lost.headline.en
    assert "未见收益" in lost.headline.zh
    won = verdict(sample_report(images=0).results)
    assert "paid off" in won.headline.en and "not" not in won.headline.en
    assert "98%" in won.detail.en and "98%" in won.detail.zh


def test_the_hit_rule_is_named() -> None:
    assert "0.5" in hit_rule_text(r.HitRule(kind="iou", min_iou=0.5)).en
    assert "centre" in hit_rule_text(r.HitRule(kind="centre_in_box", min_iou=None)).en


def test_both_files_are_written_and_no_half_file_is_left(tmp_path: Path) -> None:
    report = sample_report(images=0)
    paths = write_report(report, tmp_path)
    assert r.read_report(paths.json) == report
    assert paths.html.read_text(encoding="utf-8") == render_html(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_kinds_of_bytes_that_there_are_none_of_are_left_out() -> None:
    report = sample_report(images=0).model_copy(update={"bytes": r.Bytes(updates=5)})
    assert [amount.shown for amount in size_amounts(report)] == ["5 B"]


def _points(svg: str) -> list[tuple[float, float]]:
    path = re.search(r'class="curve x" d="M([^"]*)"', svg)
    assert path
    return [(float(x), float(y)) for x, y in (pair.split() for pair in path[1].split("L"))]


def test_a_logarithmic_axis_spaces_doublings_evenly() -> None:
    axis = Axis(NOTHING, 0.125, 8.0, (), log2=True)
    assert [axis.fraction(2.0**i) for i in range(-3, 4)] == pytest.approx([i / 6 for i in range(7)])
    assert axis.fraction(0.0) == 0 and axis.fraction(99.0) == 1


def test_a_higher_value_is_drawn_higher() -> None:
    unit = Axis(NOTHING, 0.0, 1.0, ())
    svg = plot(NOTHING, unit, unit, (Line(NOTHING, ((0.0, 0.1), (0.5, 0.4), (1.0, 0.9)), "x"),))
    points = _points(svg)
    assert points == sorted(points) and points[0][1] > points[1][1] > points[2][1]


@pytest.mark.parametrize(
    ("value", "full", "width"), [(0.5, 1.0, "50.00%"), (2.0, 1.0, "100.00%"), (1.0, 0.0, "0.00%")]
)
def test_a_bar_stays_in_its_cell(value: float, full: float, width: str) -> None:
    assert f'width="{width}"' in bar(value, full, "plain")


def test_a_froc_curve_that_ends_early_goes_on_level() -> None:
    report = sample_report(images=0)
    federated = report.results.federated.model_copy(update={"froc": ((0.0, 0.2), (1.0, 0.6))})
    results = report.results.model_copy(update={"federated": federated})
    svg = froc_chart(report.model_copy(update={"results": results})).svg
    path = re.search(r'class="curve federated" d="M([^"]*)"', svg)
    assert path
    heights = [float(pair.split()[1]) for pair in path[1].split("L")]
    assert len(heights) == 3 and heights[0] > heights[1] == heights[2]


def test_intervals_stand_beside_the_figures_in_both_languages() -> None:
    report = sample_report()
    page = render_html(report)
    interval = report.results.federated.map50_interval
    assert interval and f"<small>{interval.low:.3f} … {interval.high:.3f}</small>" in page
    assert 'class="whisker" x1="78.10%" x2="89.00%"' in page
    assert "+0.102 … +0.254" in page and "-0.048 … +0.011" in page
    assert "Federated minus pooled" in page and "联邦学习减集中训练" in page


def test_a_gain_that_could_be_chance_is_called_so() -> None:
    results = sample_report().results
    doubt = rs.Differences(map50_minus_mean_local=rs.Interval(low=-0.02, high=0.2))
    assert "could be chance" in verdict(results.model_copy(update={"differences": doubt})).detail.en
    assert "可能出于偶然" in verdict(results.model_copy(update={"differences": doubt})).detail.zh
    few = verdict(results.model_copy(update={"differences": rs.Differences()})).detail
    assert "too few held-out patients" in few.en and "太少" in few.zh
    assert "chance" not in verdict(results).detail.en
