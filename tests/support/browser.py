"""A headless Chromium for tests, or the reason why there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """Open a headless Chromium; skip the test where there is none.

    Browser and driver are those of the system: nothing is looked for in the network.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: extra `browser`")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with chromedriver: on Debian `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"]
    if os.geteuid() == 0:  # Chromium's sandbox refuses to run as root
        arguments.append("--no-sandbox")
    for argument in arguments:
        options.add_argument(argument)
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        opened.set_script_timeout(60)
        yield opened
    finally:
        opened.quit()
