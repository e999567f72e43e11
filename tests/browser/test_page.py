"""The page at `/` in a real Chromium: choose, drop, paste, keyboard, phone, dark, and errors in words."""

import base64
import io
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from alexnet_server.errors import DeadlineExceeded, Overloaded, Unavailable, Undecodable
from alexnet_server.http.pages import PAGE
from tests import hostile
from tests.browser.chromium import take_picture, until, visit
from tests.browser.conftest import LABELS, served
from tests.browser.page import (
    CAT,
    by_id,
    choose,
    facts_of,
    names,
    until_labels,
    until_problem,
    until_views,
    views_asked,
)

pytestmark = pytest.mark.browser

PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}


def test_choose_a_photo(browser, server):
    choose(browser)
    assert until_labels(browser)[0] == "Egyptian cat"
    assert names(browser)[1] == "tabby also: tabby cat"
    scores = [score.text for score in browser.find_elements(By.CSS_SELECTOR, ".score")]
    assert scores == ["83.1 %", "10.4 %", "3.9 %", "1.2 %", "< 0.1 %"]
    assert server.asked == [(CAT.read_bytes(), "center")]
    image = by_id(browser, "image")
    assert until(browser, lambda _: image.is_displayed())
    assert image.get_attribute("alt") == "Your photo, cat.jpg"
    facts = facts_of(browser).replace("\u00a0", " ")
    stages = "".join(rf"{stage} [\d.]+ ms · " for stage in ("decode", "queue", "engine", "total"))
    assert re.fullmatch(rf"alexnet · fp32 · {stages}round trip \d+ ms", facts)


def test_it_says_what_it_knows_and_under_which_licence(browser):
    assert until(browser, lambda b: by_id(b, "knows").text) == "It knows 5 things."
    assert by_id(browser, "licence").text == "Licence of the model: For teaching only."


def test_bars_are_as_long_as_the_scores(browser):
    choose(browser)
    until_labels(browser)

    def shares(b):
        share = "(bar) => bar.firstChild.offsetWidth / bar.offsetWidth"
        return b.execute_script(f"return [...document.querySelectorAll('.bar')].map({share})")

    until(browser, lambda b: shares(b)[0] > 0.82)
    assert shares(browser)[:3] == pytest.approx([0.831, 0.104, 0.039], abs=0.02)


def test_choosing_the_same_photo_again_asks_again(browser, server):
    choose(browser)
    until_labels(browser)
    choose(browser)
    until(browser, lambda _: len(server.asked) == 2)


def test_the_example(browser, server):
    by_id(browser, "example-cat").click()
    until_labels(browser)
    assert server.asked[0][0] == CAT.read_bytes()


def test_a_hard_example_says_what_it_teaches(browser):
    by_id(browser, "example-cat").click()
    until_labels(browser)
    assert "Compare the views" in by_id(browser, "lesson").text
    by_id(browser, "example-coffee").click()
    until(browser, lambda b: not by_id(b, "lesson").is_displayed())


def drop(browser, **data):
    """Drags `data` over the page until the page has seen it, and lets it fall there."""
    box = by_id(browser, "drop").rect
    where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [], "dragOperationsMask": 1, **data}

    def send(kind):
        browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "data": data, **where})

    def dragged_over(b):
        send("dragEnter")
        send("dragOver")
        return "over" in by_id(b, "drop").get_attribute("class")

    until(browser, dragged_over)
    send("drop")
    until(browser, lambda b: "over" not in by_id(b, "drop").get_attribute("class"))


def test_drop_a_photo(browser, server):
    drop(browser, files=[str(CAT)])
    assert until_labels(browser)[0] == "Egyptian cat"
    assert server.asked[0][0] == CAT.read_bytes()


def listed(browser):
    script = "return [...document.querySelectorAll('.listed .name')].map((name) => name.textContent)"
    return browser.execute_script(script)  # at one moment: the list is drawn anew with each answer


def test_several_photos_become_a_list(browser, server, tmp_path):
    """Each has its own answer or its own error; the one that is chosen is shown."""
    (tmp_path / "half.jpeg").write_bytes(hostile.photo("half.jpeg"))
    choose(browser, f"{CAT}\n{tmp_path / 'half.jpeg'}")
    until(browser, lambda b: listed(b) == ["Egyptian cat, 83.1 %", "Undecodable photo"])
    assert len(server.asked) == 2
    assert names(browser)[0] == "Egyptian cat"
    browser.find_elements(By.CSS_SELECTOR, ".listed")[1].click()
    assert "truncated" in until_problem(browser)
    assert "inside the square" not in by_id(browser, "caption").text
    chosen = browser.find_elements(By.CSS_SELECTOR, ".listed")[1]
    assert chosen.get_attribute("aria-pressed") == "true"
    assert browser.switch_to.active_element == chosen
    choose(browser)
    until_labels(browser)
    assert not by_id(browser, "photos").is_displayed()


def test_a_photo_over_the_limit_is_scaled_down_before_it_is_sent(browser, server, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (1900, 2100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 10 * 1024 * 1024
    choose(browser, tmp_path / "large.png")
    assert until_labels(browser)
    ((sent, _),) = server.asked
    assert len(sent) < 10 * 1024 * 1024
    with Image.open(io.BytesIO(sent)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 2048)
    assert "Scaled down to 2048 x 1853" in by_id(browser, "caption").text


def test_the_ten_crops_have_labels_of_their_own(browser, server):
    until_views(browser)
    choose(browser)
    until_labels(browser)
    assert not by_id(browser, "ten-crops").is_displayed()
    browser.find_element(By.CSS_SELECTOR, "label[for=view-ten]").click()
    until(browser, lambda b: by_id(b, "ten-crops").is_displayed())
    by_id(browser, "ten-crops").click()
    until(browser, lambda b: by_id(b, "crops-box").is_displayed())
    crops = [crop.text.split("\n") for crop in browser.find_elements(By.CSS_SELECTOR, "#crops li")]
    assert [name for name, _ in crops] == ["Egyptian cat"] * 10
    assert crops[0][1].startswith("top left · 83.1 %")
    assert crops[9][1].startswith("centre, mirrored")
    assert by_id(browser, "crops-average").text == "Averaged over the ten: Egyptian cat, 83.1 %."
    browser.find_element(By.CSS_SELECTOR, "label[for=view-center]").click()
    until(browser, lambda b: not by_id(b, "crops-box").is_displayed())


def test_the_request_can_be_copied_as_curl(browser, server):
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    choose(browser)
    until_labels(browser)
    by_id(browser, "copy").click()
    until(browser, lambda b: by_id(b, "copy").text == "Copied")
    read = "const [done] = arguments; navigator.clipboard.readText().then(done, done)"
    assert browser.execute_async_script(read) == f"curl -F 'image=@cat.jpg' '{server.url}classify'"


def test_what_it_can_name_is_a_page(browser, server):
    browser.find_element(By.LINK_TEXT, "What it can name").click()
    until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#list li")) == len(LABELS))
    assert "5 things" in by_id(browser, "count").text
    by_id(browser, "search").send_keys("catam")
    until(browser, lambda b: by_id(b, "status").text == "2 found")
    shown = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#list li") if item.is_displayed()]
    assert shown == ["cougar also: puma, catamount", "lynx also: catamount"]


def test_drop_of_text_is_explained(browser, server):
    drop(browser, items=[{"mimeType": "text/plain", "data": "cat"}])
    assert "not a file" in until_problem(browser)
    assert not server.asked


def paste(browser, write):
    """Puts something on the real clipboard and presses Ctrl+V."""
    browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    assert (
        browser.execute_async_script(
            f"const [photo, done] = arguments; ({write})().then(() => done('written'), done)",
            base64.b64encode(hostile.photo("png")).decode(),
        )
        == "written"
    )
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()


def test_paste_a_photo(browser, server):
    paste(
        browser,
        "async () => { const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));"
        " const file = new Blob([bytes], {type: 'image/png'});"
        " await navigator.clipboard.write([new ClipboardItem({'image/png': file})]) }",
    )
    assert until_labels(browser)[0] == "Egyptian cat"
    assert server.asked[0][0].startswith(hostile.PNG)


def test_paste_of_text_is_explained(browser, server):
    paste(browser, "async () => navigator.clipboard.writeText('cat')")
    assert "no picture on the clipboard" in until_problem(browser)
    assert not server.asked


def test_views_are_those_that_are_loaded(browser, server):
    assert until_views(browser) == ["Centre", "Ten crops", "Dense"]
    server.show("alexnet", "alexnet_10crop")
    visit(browser, server.url)
    assert until_views(browser) == ["Centre", "Ten crops"]
    server.show("alexnet")
    visit(browser, server.url)
    choose(browser)
    until_labels(browser)
    assert not by_id(browser, "views").is_displayed()
    assert views_asked(server) == ["center"]


def test_switching_views_asks_again(browser, server):
    until_views(browser)
    choose(browser)
    until_labels(browser)
    wide = by_id(browser, "seen").size["width"]
    browser.find_element(By.CSS_SELECTOR, "label[for=view-ten]").click()
    until(browser, lambda b: facts_of(b).startswith("alexnet_10crop"))
    assert views_asked(server) == ["center", "ten"]
    assert "mirrored" in by_id(browser, "view-meaning").text
    until(browser, lambda b: by_id(b, "seen").size["width"] > wide)


def test_the_square_is_what_the_network_sees(browser):
    """cat.jpg is 451x300: the 224 crop of a 256 centre square covers 262.5 of its pixels."""
    choose(browser)
    until_labels(browser)
    until(browser, lambda b: by_id(b, "seen").size["height"] > 10)
    frame, seen = by_id(browser, "frame").size, by_id(browser, "seen").size
    assert seen["width"] == pytest.approx(seen["height"], abs=2)
    assert seen["height"] / frame["height"] == pytest.approx(0.875, abs=0.01)


def test_only_the_newest_photo_is_answered(browser, server):
    server.engine.gate.clear()
    choose(browser)
    until(browser, lambda b: by_id(b, "labels").get_attribute("aria-busy") == "true" and server.asked)
    assert by_id(browser, "status").get_property("textContent") == "Looking at the photo…"
    server.problem = Undecodable("It is truncated.")
    choose(browser, CAT.with_name("coffee.jpg"))
    assert "truncated" in until_problem(browser)
    server.engine.gate.set()
    time.sleep(0.5)  # an answer to the first photo would be shown by now
    assert not names(browser)
    assert by_id(browser, "problem").is_displayed()


def choose_bytes(browser, folder, name):
    (folder / name).write_bytes(hostile.photo(name))
    choose(browser, folder / name)


@pytest.mark.parametrize(
    ("name", "title", "words"),
    [
        ("half.jpeg", "Undecodable photo", "save it again as JPEG or PNG"),
        ("tiff", "Unsupported format", "This is a TIFF"),
        ("bomb.png", "Too large", "30,000 x 30,000"),
        ("empty", "Undecodable photo", "0 bytes"),
    ],
)
def test_bad_photos_are_explained(browser, tmp_path, name, title, words):
    choose_bytes(browser, tmp_path, name)
    text = until_problem(browser)
    assert title in text
    assert words in text
    assert not by_id(browser, "retry").is_displayed()
    assert not by_id(browser, "labels").is_displayed()
    choose(browser)
    assert until_labels(browser)
    assert not by_id(browser, "problem").is_displayed()


@pytest.mark.parametrize(
    ("problem", "title", "words"),
    [
        (Overloaded("The queue is full.", retry_after_s=1.4), "Overloaded", "full. Try again in 2 s."),
        (Unavailable("The server is shutting down.", retry_after_s=1.0), "Unavailable", "Try again in 1 s."),
        (DeadlineExceeded("The time ran out."), "Deadline exceeded", "The time ran out."),
    ],
)
def test_trouble_of_the_moment_can_be_tried_again(browser, server, problem, title, words):
    server.problem = problem
    choose(browser)
    text = until_problem(browser)
    assert title in text
    assert words in text
    assert by_id(browser, "problem").get_attribute("role") == "alert"
    server.problem = None
    by_id(browser, "retry").click()
    assert until_labels(browser)
    assert not by_id(browser, "problem").is_displayed()


def test_our_own_fault_names_the_request(browser, server):
    server.problem = RuntimeError("secret of the house")
    choose(browser)
    text = until_problem(browser)
    assert re.search(r"Request [0-9a-f]{32}", text)
    assert "secret" not in text


def test_a_photo_the_browser_cannot_show_is_sent_all_the_same(browser, server, tmp_path):
    choose_bytes(browser, tmp_path, "heic")
    assert "HEIC" in until_problem(browser)
    assert [code.text for code in browser.find_elements(By.CSS_SELECTOR, "#problem code")] == [
        "sips -s format jpeg photo.heic --out photo.jpg",
        "heif-convert photo.heic photo.jpg",
    ]
    assert not by_id(browser, "image").is_displayed()
    assert by_id(browser, "caption").text == "heic."


def test_a_key_is_asked_for_and_sent(browser):
    with served(api_keys="secret-key") as server:
        visit(browser, server.url)
        assert "API key" in until_problem(browser)
        time.sleep(2.5)  # asking for the models again would announce the problem again
        models = "filter(({name}) => name.endsWith('/models'))"
        script = f"return performance.getEntriesByType('resource').{models}.length"
        assert browser.execute_script(script) == 1
        choose(browser)
        until_problem(browser)
        by_id(browser, "key").send_keys("secret-key", Keys.ENTER)
        assert until_labels(browser)
        assert until_views(browser) == ["Centre", "Ten crops", "Dense"]
        assert len(server.asked) == 1
        browser.get("about:blank")


def test_a_server_that_is_gone_is_explained(browser, server):
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*classify*"]})
    try:
        choose(browser)
        assert "cannot be reached" in until_problem(browser)
        assert by_id(browser, "retry").is_displayed()
    finally:
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        browser.get_log("browser")
    by_id(browser, "retry").click()
    assert until_labels(browser)


def focused(browser):
    return browser.switch_to.active_element.get_attribute("id")


def test_keyboard_alone(browser, server):
    """Tab reaches everything in reading order, with a visible ring; arrows choose the views."""
    until_views(browser)
    order = []
    for _ in range(6):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        order.append(focused(browser))
    examples = ["example-coffee", "example-rocket", "example-cat"]
    assert order == ["file", *examples, "view-center", ""]  # then the summaries below
    ActionChains(browser).key_down(Keys.SHIFT).send_keys(Keys.TAB, Keys.TAB).key_up(Keys.SHIFT).perform()
    assert focused(browser) == "example-cat"
    ring = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(ring) == "solid"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert until_labels(browser)
    ActionChains(browser).send_keys(Keys.TAB, Keys.ARROW_RIGHT).perform()
    until(browser, lambda b: facts_of(b).startswith("alexnet_10crop"))
    assert focused(browser) == "view-ten"


def test_the_file_inputs_label_wears_the_focus_ring(browser):
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert focused(browser) == "file"
    script = "return getComputedStyle(document.querySelector('label.button[for=file]')).outlineStyle"
    assert browser.execute_script(script) == "solid"


def tree(browser):
    """What a screen reader is told: (role, name) of each node."""
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return {
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    }


def test_a_screen_reader_is_told_everything(browser):
    until_views(browser)
    choose(browser)
    until_labels(browser)
    browser.execute_cdp_cmd("Accessibility.enable", {})
    told = tree(browser)
    assert {
        ("heading", "AlexNet"),
        ("heading", "Five labels"),
        ("region", "Five labels"),
        ("image", "Your photo, cat.jpg"),
        ("button", "Try the cat"),
        ("radio", "Ten crops"),
        ("group", "The network looks at"),
        ("list", "Labels, likeliest first"),
    } <= told
    assert any(role == "button" and "Choose photos" in name for role, name in told)
    assert by_id(browser, "status").get_attribute("role") == "status"
    announced = by_id(browser, "status").get_property("textContent")
    assert announced.startswith(f"{LABELS[0]}, 83.1 %. Then tabby, 10.4 %;")


def widest(browser):
    script = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    return browser.execute_script(script)


def phone(browser, server, width=360):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE | {"width": width})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    visit(browser, server.url)


@pytest.mark.parametrize("width", [320, 360, 430])
def test_a_phone_never_scrolls_sideways(browser, server, width):
    phone(browser, server, width)
    until_views(browser)
    assert by_id(browser, "camera").get_attribute("capture") == "environment"
    assert browser.find_element(By.CSS_SELECTOR, "label[for=camera]").is_displayed()
    assert len(set(widest(browser))) == 1
    choose(browser)
    until_labels(browser)
    assert len(set(widest(browser))) == 1
    browser.find_element(By.CSS_SELECTOR, "summary").click()
    assert len(set(widest(browser))) == 1
    server.problem = Undecodable("x" * 200)
    choose(browser)
    until_problem(browser)
    assert len(set(widest(browser))) == 1


def contrast(first, second):
    def luminance(colour):
        parts = [value / 255 for value in colour]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def colour(browser, name):
    value = browser.execute_script(
        "return getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()", f"--{name}"
    )
    return tuple(int(value[at : at + 2], 16) for at in (1, 3, 5))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(browser, scheme):
    """WCAG 2.2 AA: 4.5 to 1 for text."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    for text, ground in (
        ("ink", "paper"),
        ("ink", "card"),
        ("ink", "fill"),
        ("quiet", "paper"),
        ("quiet", "card"),
        ("quiet", "fill"),
        ("quiet", "wrong-fill"),
        ("on-accent", "accent"),
        ("accent", "paper"),
        ("wrong", "wrong-fill"),
    ):
        assert contrast(colour(browser, text), colour(browser, ground)) >= 4.5, (text, ground)
    assert (sum(colour(browser, "paper")) > 384) == (scheme == "light")


def test_a_strict_content_security_policy_would_do():
    """No inline script or style, no handler attributes, and only addresses relative to the page."""
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    for tag, attributes in tags:
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        for name in ("src", "href"):
            assert re.match(r"[a-z]", attributes.get(name, "a")), attributes
            assert ":" not in attributes.get(name, "")
    assert not [file.name for file in PAGE.glob("*.js") if "innerHTML" in file.read_text(encoding="utf-8")]


def test_the_policy_is_kept_and_enforced(browser, server):
    """The page works under it (the fixture reads the console); what a stranger put into it would not."""
    choose(browser)
    until_labels(browser)
    browser.execute_script("""
        window.ran = "no";
        const script = document.createElement("script");
        script.textContent = "ran = 'yes'";
        document.body.append(script);
        document.body.setAttribute("onclick", "ran = 'yes'");
        document.body.click();
    """)
    refusals = [line["message"] for line in browser.get_log("browser")]
    assert browser.execute_script("return window.ran") == "no"
    assert len([message for message in refusals if "Content Security Policy" in message]) == 2, refusals


def test_the_documentation(browser, server):
    """Styled, wide tables inside the screen, and everything from this server."""
    phone(browser, server)
    visit(browser, f"{server.url}docs")
    assert "POST /classify" in browser.find_element(By.TAG_NAME, "body").text
    assert len(set(widest(browser))) == 1
    rows = "return getComputedStyle(document.querySelector('table')).borderCollapse"
    assert browser.execute_script(rows) == "collapse"
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    asked = browser.execute_script(script)
    assert f"{server.url}page/docs.css" in asked
    assert all(name.startswith(server.url) for name in asked)
    links = browser.find_elements(By.CSS_SELECTOR, "a, link")
    assert all(link.get_attribute("href").startswith(server.url) for link in links)
    assert links


def test_nothing_is_asked_of_other_hosts(browser, server):
    choose(browser)
    until_labels(browser)
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    asked = browser.execute_script(script)
    assert asked
    assert all(name.startswith((server.url, f"blob:{server.url}")) for name in asked)


def test_the_readmes_picture(browser, server):
    picture = take_picture(browser, server.url, CAT)
    assert picture.startswith(hostile.PNG)
    assert len(picture) < 300_000
    assert names(browser)[0] == "Egyptian cat"
