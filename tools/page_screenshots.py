"""Takes the screenshots of docs/page.md: `python tools/page_screenshots.py PAGE.html docs/images`.

Needs the extra `browser` and Chromium with its driver.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from shutil import which

from selenium import webdriver

DESKTOP = {"width": 1200, "height": 780, "deviceScaleFactor": 1, "mobile": False}
PHONE = {"width": 390, "height": 780, "deviceScaleFactor": 1, "mobile": True}
PICK = (
    "const field = [...document.querySelectorAll('section:not([hidden]) .field')]"
    ".find((x) => x.firstChild.textContent === arguments[0]); const select = field.querySelector('select');"
    "select.value = [...select.options].find((x) => x.textContent.startsWith(arguments[1])).value;"
    "select.dispatchEvent(new Event('change'));"
)
SLIDE = (
    "const x = document.querySelector('.stage input[type=range]'); x.value = arguments[0];"
    "x.dispatchEvent(new Event('input'));"
)
SHOTS: dict[str, tuple[str, str, dict[str, object], list[tuple[str, tuple[object, ...]]]]] = {
    "grid": ("grid", "light", DESKTOP, []),
    "pareto": ("pareto", "dark", DESKTOP, []),
    "prompts": ("prompts", "light", DESKTOP, [(PICK, ("Cell", "svdquant W2A8"))]),
    "slider": (
        "compare?mode=slider&prompt=5",
        "light",
        DESKTOP,
        [(PICK, ("B", "nf4 W2A16")), (SLIDE, (45,))],
    ),
    "difference": ("compare?mode=difference&prompt=5", "dark", DESKTOP, [(PICK, ("B", "svdquant W2A8"))]),
    "layers": ("layers", "light", DESKTOP, [(PICK, ("Cell", "mpqdm W2A8"))]),
    "steps": ("steps", "light", DESKTOP, []),
    "phone": ("compare?mode=side&prompt=5", "light", PHONE, [(PICK, ("B", "svdquant W2A8"))]),
}
"""Per screenshot: the view's address, the colours, the screen, and what is done before it is taken."""


def main(page: Path, folder: Path) -> None:
    """Open the page in each state and write `page-NAME.png`."""
    options = webdriver.ChromeOptions()
    options.binary_location = which("chromium") or which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(which("chromedriver") or ""))
    try:
        for name, (address, colours, screen, steps) in SHOTS.items():
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            features = [{"name": "prefers-color-scheme", "value": colours}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.get("about:blank")
            driver.get(f"{page.absolute().as_uri()}#{address}")
            for script, arguments in steps:
                driver.execute_script(script, *arguments)
            time.sleep(0.5)  # images are decoded
            driver.save_screenshot(str(folder / f"page-{name}.png"))
    finally:
        driver.quit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
