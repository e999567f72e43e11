"""axe-core finds nothing to complain about: every page, light and dark."""

import pytest
from selenium.webdriver.common.by import By

from alexnet_server.errors import Undecodable
from tests.browser.chromium import until, visit
from tests.browser.page import CAT, by_id, choose, until_labels, until_problem, until_views
from tests.interop.conftest import ENVIRONMENT

pytestmark = [pytest.mark.browser, pytest.mark.interop]

AXE = ENVIRONMENT / "node" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.fixture(params=["light", "dark"])
def scheme(request, browser):
    features = [
        {"name": "prefers-color-scheme", "value": request.param},
        {
            "name": "prefers-reduced-motion",
            "value": "reduce",
        },  # colours in the middle of a change are no colours
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@pytest.fixture
def complaints(browser, scheme):
    """Every rule of axe-core that the shown page breaks, best practices included."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make test-interop installs it where there is npm")

    def ask():
        browser.execute_script(AXE.read_text(encoding="utf-8"))
        found = browser.execute_async_script(
            "axe.run().then(arguments[0], (error) => arguments[0](String(error)))"
        )
        assert found["passes"]
        return [
            f"{broken['id']}: {node['html']} {node['failureSummary']}"
            for broken in found["violations"]
            for node in broken["nodes"]
        ]

    return ask


def test_before_an_answer(browser, complaints):
    until_views(browser)
    assert complaints() == []


def test_after_an_answer_with_everything_open(browser, complaints):
    until_views(browser)
    choose(browser)
    until_labels(browser)
    browser.find_element(By.CSS_SELECTOR, "label[for=view-ten]").click()
    until(browser, lambda b: by_id(b, "ten-crops").is_displayed())
    by_id(browser, "ten-crops").click()
    until(browser, lambda b: by_id(b, "crops-box").is_displayed())
    for summary in browser.find_elements(By.TAG_NAME, "summary"):
        summary.click()
    until(browser, lambda b: by_id(b, "layers-box").is_displayed())
    assert complaints() == []
    browser.find_element(By.CSS_SELECTOR, ".why").click()
    until(browser, lambda b: by_id(b, "heat").is_displayed())
    assert complaints() == []


def test_with_several_photos_and_a_problem(browser, server, complaints):
    server.problem = Undecodable("It is truncated.")
    choose(browser, f"{CAT}\n{CAT}")
    until_problem(browser)
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".listed")) == 2)
    assert complaints() == []


@pytest.mark.parametrize("path", ["docs", "page/labels.html"])
def test_other_pages(browser, server, complaints, path):
    visit(browser, f"{server.url}{path}")
    if path != "docs":
        until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#list li"))
    assert complaints() == []
