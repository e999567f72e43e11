"""What the page shows of the network's inside: why a label, the kernels of conv1, and the eight layers."""

import io

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By

from tests import hostile
from tests.browser.chromium import until
from tests.browser.conftest import EYES, LABELS
from tests.browser.page import by_id, choose, until_labels, until_views

pytestmark = pytest.mark.browser


def why(browser, at):
    """What the page says when asked for the label at a place of the list."""
    browser.find_elements(By.CSS_SELECTOR, ".why")[at].click()
    first = LABELS[at].split(", ")[0]
    said = until(
        browser, lambda b: (text := by_id(b, "why-note").text) and "Covering the photo" not in text and text
    )
    assert f"“{first}”" in said
    return said


def heat(browser):
    """``[256, 256, 4]`` RGBA of the map that lies over the photo."""
    context = "document.getElementById('heat').getContext('2d')"
    pixels = browser.execute_script(f"return [...{context}.getImageData(0, 0, 256, 256).data]")
    return np.array(pixels, np.uint8).reshape(256, 256, 4)


def test_why_shows_the_place_that_made_the_label(browser):
    choose(browser)
    until_labels(browser)
    said = why(browser, 0)
    assert said == (
        "Orange parts spoke for “Egyptian cat”, blue ones against it. "
        "Covering the strongest place (lower left) takes its score from 83.1 % to < 0.1 %."
    )
    pixels = heat(browser)
    red, _, blue, strength = pixels[168, 48]  # the middle of the eyes
    assert red > blue
    assert strength > 150
    assert pixels[:, 128:, 3].max() == 0
    rows, columns = np.unravel_index(pixels[..., 3].argmax(), (256, 256))
    assert EYES[0].start <= rows < EYES[0].stop
    assert EYES[1].start <= columns < EYES[1].stop


def test_why_answers_for_each_of_the_five(browser):
    """What spoke against a label is blue; where covering changes nothing there is no map."""
    choose(browser)
    until_labels(browser)
    assert why(browser, 1) == (
        "Nothing in the photo spoke for “tabby”; blue parts spoke against it. "
        "Covering the strongest place (lower left) takes its score from 10.4 % to 93.5 %."
    )
    red, _, blue, strength = heat(browser)[168, 48]
    assert blue > red
    assert strength > 150
    for at in (2, 3, 4):
        assert "No single part of the photo made the label" in why(browser, at)
        assert not by_id(browser, "heat").is_displayed()


def test_a_photo_of_one_colour_has_no_map(browser, tmp_path):
    Image.new("RGB", (300, 300), (90, 120, 40)).save(tmp_path / "flat.png")
    choose(browser, tmp_path / "flat.png")
    until_labels(browser)
    assert "of a single colour" in why(browser, 0)
    assert not by_id(browser, "heat").is_displayed()


def test_the_map_lies_over_the_square_that_was_covered(browser):
    """cat.jpg is wide: the 256 pixel square is as high as it, in its middle."""
    choose(browser)
    until_labels(browser)
    why(browser, 0)
    frame, drawn = by_id(browser, "image").rect, by_id(browser, "heat").rect
    assert drawn["height"] == pytest.approx(frame["height"], abs=2)
    assert drawn["width"] == pytest.approx(drawn["height"], abs=2)
    assert drawn["x"] + drawn["width"] / 2 == pytest.approx(frame["x"] + frame["width"] / 2, abs=2)


def test_the_map_goes_with_its_photo_and_view(browser):
    until_views(browser)
    choose(browser)
    until_labels(browser)
    why(browser, 0)
    assert by_id(browser, "heat").is_displayed()
    browser.find_element(By.CSS_SELECTOR, "label[for=view-dense]").click()
    until(browser, lambda b: not by_id(b, "heat").is_displayed())
    until_labels(browser)
    assert "lower left" in why(browser, 0)
    choose(browser, hostile.CC0 / "coffee.jpg")
    until(browser, lambda b: not by_id(b, "heat").is_displayed())
    assert not by_id(browser, "why-note").is_displayed()


def test_what_it_has_learned(browser):
    """The 96 kernels of conv1, 48 of each tower, and the eight layers with their sizes."""
    browser.find_element(By.CSS_SELECTOR, "#learned summary").click()
    picture = by_id(browser, "kernels")
    until(browser, lambda _: picture.is_displayed() and picture.get_property("naturalWidth"))
    assert (picture.get_property("naturalWidth"), picture.get_property("naturalHeight")) == (764, 296)
    assert "96 kernels" in picture.get_attribute("alt")
    until(browser, lambda b: by_id(b, "layers-box").is_displayed())
    rows = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#layers tr")]
    assert [row.split()[0] for row in rows] == [
        "conv1",
        "conv2",
        "conv3",
        "conv4",
        "conv5",
        "fc6",
        "fc7",
        "fc8",
    ]
    assert "96 x 55 x 55 34,944 105 M\n2.50 ms" in rows[0]
    assert rows[1].endswith("1.25 ms")
    shares = "(bar) => bar.firstChild.offsetWidth / bar.offsetWidth"
    script = f"return [...document.querySelectorAll('#layers td:last-child .bar')].map({shares})"
    assert browser.execute_script(script)[:2] == pytest.approx([1, 0.5], abs=0.02)
    parameters = 60_965_224 - 800 * 4097  # the paper's, with 200 classes
    assert f"{parameters:,} parameters in eight layers" in by_id(browser, "learned-note").text
    with Image.open(io.BytesIO(picture.screenshot_as_png)) as drawn:
        assert len(drawn.getcolors(1 << 24)) > 1000  # colours and edges, no blank
