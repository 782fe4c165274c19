"""The report in Chromium: no console errors, no sideways scrolling at five widths, working controls, print."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.factories.reports import make_run

from limbert.report.page import Report
from limbert.report.read import read_run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("browser") / "run")
    Report(read_run(str(run))).save(run / "report.html")
    return run / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as tool:
        running = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, page_path: Path) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    opened = context.new_page()
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda request: errors.append(request.url) if request.url.startswith("http") else None)
    opened.goto(page_path.as_uri())
    yield opened
    context.close()
    assert errors == []


def test_no_width_scrolls_sideways(page: Any) -> None:
    for width in (1280, 1140, 1000, 720, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for tab in ("FLOPs", "Latency"):
            page.locator(f"input[value={tab}]").check(force=True)
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        outside = (
            "[...document.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
        )
        assert page.evaluate(outside) == 0


def test_switch_and_setting_show_one_plot(page: Any) -> None:
    assert page.locator("[data-panel]:visible").count() == 1
    page.locator("select").select_option("2")
    assert page.locator("[data-panel=Latency] [data-setting]:visible").get_attribute("data-setting") == "2"
    page.locator("input[value=FLOPs]").check(force=True)
    assert page.locator("[data-panel]:visible").get_attribute("data-panel") == "FLOPs"


def test_budget_names_the_best_affordable_subnetwork(page: Any) -> None:
    rows = page.locator("[data-setting='0']:visible tr[data-cost]")
    costs = [float(rows.nth(index).get_attribute("data-cost")) for index in range(rows.count())]
    budget, answer = page.locator("[data-budget]:visible"), page.locator("output:visible")
    budget.fill(str((costs[1] + costs[2]) / 2))
    assert answer.inner_text().startswith(rows.nth(1).locator("td").first.inner_text() + ":")
    assert page.locator("tr.chosen:visible").count() == 1
    budget.fill(str(costs[0] / 2))
    assert "Nothing fits" in answer.inner_text()
    assert page.locator("tr.chosen:visible").count() == 0


def test_theme_button_changes_plots_too(page: Any) -> None:
    colours = []
    for _ in range(3):
        colours.append(page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.querySelector('svg text')).fill]"
        ))  # fmt: skip
        page.locator("#theme").click()
    for shown in zip(*colours, strict=True):  # system (light), dark, light
        assert shown[0] == shown[2] != shown[1]


def test_print_shows_all_panels_in_light_colours(page: Any) -> None:
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("[data-panel]:visible").count() == 3
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_everything_is_readable_without_script(browser: Any, page_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_path.as_uri())
    assert page.locator("[data-panel]:visible").count() == 3
    assert page.locator("#theme:visible").count() == 0
    context.close()
