"""A headless Chromium, driven by Selenium: for the tests, and for the README's picture of the page.

python -m tests.browser.chromium docs/page.png            # starts alexnet-server by itself
python -m tests.browser.chromium docs/page-dark.png --scheme dark --why
"""

import argparse
import base64
import contextlib
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


T = TypeVar("T")
PATIENCE_S = 120.0  # on a machine that is busy with something else


class NoChromium(Exception):
    """Chromium or its driver is not installed."""


def open_chromium(profile: Path) -> webdriver.Chrome:
    """Start a browser with an empty profile and no network use of its own."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        raise NoChromium("needs chromium and chromedriver (Debian: apt install chromium chromium-driver)")
    options = Options()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    browser.set_script_timeout(PATIENCE_S)
    return browser


def until(browser: webdriver.Chrome, condition: Callable[[webdriver.Chrome], T]) -> T:
    """What `condition` gives, once it gives anything true."""
    return WebDriverWait(browser, PATIENCE_S, poll_frequency=0.05).until(condition)


def visit(browser: webdriver.Chrome, url: str) -> None:
    """Load `url` and wait until it has been drawn: keys, clicks and drags that come before it are lost."""
    browser.get(url)
    painted = "return performance.getEntriesByName('first-contentful-paint').length"
    until(browser, lambda b: b.execute_script(painted))


def take_picture(
    browser: webdriver.Chrome,
    url: str,
    photo: Path,
    *,
    scheme: str = "light",
    width: int = 1120,
    why: bool = False,
) -> bytes:
    """PNG of the whole page at `url` with the labels of `photo`, and `why` the first of them."""
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    screen = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": width < 600})
    browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    visit(browser, url)
    until(browser, lambda b: b.find_element(By.ID, "views").is_displayed())
    browser.find_element(By.ID, "file").send_keys(str(photo.resolve()))
    grown = "return document.querySelector('.bar span')?.style.width && !document.getAnimations().length"
    until(browser, lambda b: b.execute_script(grown))
    if why:
        browser.find_element(By.CSS_SELECTOR, ".why").click()
        until(browser, lambda b: b.find_element(By.ID, "heat").is_displayed())
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as image:
        packed = io.BytesIO()
        image.convert("RGB").save(packed, "PNG", optimize=True)
    return packed.getvalue()


@contextlib.contextmanager
def _own_server() -> Iterator[str]:
    """The real server with the shipped model on a free port; yields its address once it is ready."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("alexnet-server")),
        "--http-port",
        str(port),
        "--grpc-port",
        "0",
    ]
    process = subprocess.Popen([*command, "--drain-delay-s", "0"])
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            if process.poll() is not None:
                sys.exit(f"alexnet-server ended with status {process.returncode}")
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"{url}readyz"):
                break
            time.sleep(0.1)
        else:
            sys.exit("alexnet-server was not ready within a minute")
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="Take the README's picture of the page.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", help="a running server; by default one is started")
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1120, help="of the window; less than 600 is a phone")
    parser.add_argument("--why", action="store_true", help="with the map of the first label")
    parser.add_argument("--photo", type=Path, default=Path(__file__).parents[1] / "data" / "cc0" / "cat.jpg")
    arguments = parser.parse_args()
    server = contextlib.nullcontext(arguments.url) if arguments.url else _own_server()
    with server as url, tempfile.TemporaryDirectory() as profile:
        browser = open_chromium(Path(profile))
        try:
            picture = take_picture(
                browser,
                url,
                arguments.photo,
                scheme=arguments.scheme,
                width=arguments.width,
                why=arguments.why,
            )
        finally:
            browser.quit()
    arguments.file.parent.mkdir(exist_ok=True)
    arguments.file.write_bytes(picture)


if __name__ == "__main__":
    main()
