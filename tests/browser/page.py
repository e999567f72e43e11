"""The page's parts, as tests read and touch them."""

from selenium.webdriver.common.by import By

from tests import hostile
from tests.browser.chromium import until

CAT = hostile.CC0 / "cat.jpg"


def by_id(browser, name):
    return browser.find_element(By.ID, name)


def names(browser):
    script = "return [...document.querySelectorAll('#labels .name')].map((name) => name.textContent.trim())"
    return browser.execute_script(script)


def facts_of(browser):
    """Folded away until somebody opens them."""
    return by_id(browser, "facts").get_property("textContent")


def until_labels(browser):
    """The names of the labels, once the page has settled."""
    return until(browser, lambda b: by_id(b, "labels").get_attribute("aria-busy") == "false" and names(b))


def until_problem(browser):
    return until(browser, lambda b: by_id(b, "problem").is_displayed() and by_id(b, "problem").text)


def until_views(browser):
    return until(browser, lambda b: by_id(b, "views").is_displayed() and choices(b))


def choices(browser):
    return [label.text for label in browser.find_elements(By.CSS_SELECTOR, "#view-choices label")]


def choose(browser, path=CAT):
    by_id(browser, "file").send_keys(str(path))


def views_asked(server):
    return [views for _, views in server.asked]
