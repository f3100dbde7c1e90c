"""The page in a real browser: it asks for nothing, keeps its policy, speaks both languages, fits a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.cli.report.page import write_consultation, write_report
from tests.cli.sample_consultation import sample_consultation
from tests.cli.sample_report import sample_report

pytestmark = pytest.mark.browser

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright: pip install '.[dev]'"
)
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("the browser tests need chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """An open report, with every request and every complaint of the browser since it was opened."""

    def __init__(self, browser: object, path: Path, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())


@pytest.fixture(scope="module")
def report_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(sample_report(), tmp_path_factory.mktemp("report")).html


@pytest.fixture(params=[1280, 390], ids=["wide", "narrow"])
def visit(request: pytest.FixtureRequest, browser: object, report_html: Path) -> Iterator[Visit]:
    visit = Visit(browser, report_html, request.param)
    yield visit
    visit.page.close()


def test_the_page_asks_for_nothing_and_breaks_no_rule(visit: Visit, report_html: Path) -> None:
    asked = [url for url in visit.requests if not url.startswith("data:image/png")]
    assert asked == [report_html.as_uri()]
    assert visit.complaints == []


def test_the_policy_is_in_force(visit: Visit) -> None:
    """The test above could not fail if the browser ignored the policy: break it on purpose."""
    visit.page.evaluate("document.body.setAttribute('style', 'color: red')")
    visit.page.evaluate("new Image().src = 'https://example.invalid/x.png'")
    visit.page.wait_for_timeout(100)
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)


def test_english_first_and_chinese_at_a_click(visit: Visit) -> None:
    headline = visit.page.locator("h1")
    sync_api.expect(headline.locator("[lang=en]")).to_be_visible()
    sync_api.expect(headline.locator("[lang=zh-CN]")).to_be_hidden()
    visit.page.get_by_text("中文", exact=True).click()
    sync_api.expect(headline.locator("[lang=zh-CN]")).to_be_visible()
    sync_api.expect(headline.locator("[lang=en]")).to_be_hidden()
    assert visit.page.locator("main [lang=en]:visible").count() == 0


def test_the_language_can_be_chosen_by_keyboard(visit: Visit) -> None:
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("ArrowRight")
    sync_api.expect(visit.page.locator("h1 [lang=zh-CN]")).to_be_visible()


def test_the_slices_are_drawn_with_their_boxes(visit: Visit) -> None:
    sync_api.expect(visit.page.locator("svg.slice")).to_have_count(8)
    sync_api.expect(visit.page.locator("svg.slice rect.truth")).to_have_count(8)
    sync_api.expect(visit.page.locator("svg.slice rect.found")).to_have_count(6)
    for image in visit.page.locator("svg.slice image").all():
        assert image.bounding_box()["width"] > 100


def test_nothing_is_wider_than_the_screen(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_every_picture_has_words_and_every_table_has_headers(visit: Visit) -> None:
    pictures = visit.page.locator("svg:not([aria-hidden])")
    assert pictures.count() > 0
    assert all(picture.get_attribute("aria-label") for picture in pictures.all())
    for table in visit.page.locator("table").all():
        assert table.locator("thead th[scope=col]").count() > 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("outcome", ["answer", "failed"])
def test_a_second_opinion_has_a_page_of_the_same_kind(
    browser: object, tmp_path: Path, outcome: str, width: int
) -> None:
    page = write_consultation(sample_consultation(outcome), tmp_path).html
    visit = Visit(browser, page, width)
    try:
        assert [url for url in visit.requests if not url.startswith("data:image/png")] == [page.as_uri()]
        assert visit.complaints == []
        headline = visit.page.locator("h1")
        for label, words in (
            ("中文", {"answer": "颅内出血", "failed": "ERROR：不给出诊断"}),
            ("English", {"answer": "intracranial haemorrhage", "failed": "ERROR: no diagnosis"}),
        ):
            visit.page.get_by_text(label, exact=True).click()
            sync_api.expect(headline).to_contain_text(words[outcome], use_inner_text=True)
        sync_api.expect(visit.page.locator("rect.found")).to_have_count(1 if outcome == "answer" else 0)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        visit.page.close()
