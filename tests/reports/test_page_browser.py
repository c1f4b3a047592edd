"""The page in a real browser: its views, its keys, its colours, and hostile text that stays text."""

import json
import random
import re

import numpy as np
import pages
import pytest
from browser import chromium

from harness.reports.page import Source, render
from harness.reports.record import Metric

VIEWS = ("grid", "pareto", "prompts", "compare", "layers", "steps", "failures", "environment")
MANY = 2000


@pytest.fixture(scope="module")
def driver():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def small(factory, record, save):
    run = factory / "run"
    records = pages.small_run(run, record, save)
    page = factory / "small.html"
    source = Source(run, {"name": pages.MARKUP, "seed": 0}, {"scenes": pages.CAPTIONS})
    page.write_text(render(records, source), encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def large(factory, record):
    draw = random.Random(0)
    cells = [
        record(
            f"method{index % 40}", 2 + index % 3, cell=f"{index:016x}", variant=f"v{index}",
            model=f"model{index % 4}", metrics={"psnr": Metric(draw.uniform(5, 45), 1.0, 50.0)},
        )
        for index in range(MANY)
    ]  # fmt: skip
    page = factory / "large.html"
    page.write_text(render(cells), encoding="utf-8")
    return page.as_uri(), cells


@pytest.fixture
def open_page(driver):
    def to(address, view="grid"):
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")
        driver.get(f"{address}#{view}")
        return Page(driver)

    return to


class Page:
    """Looks at the page and acts on it."""

    def __init__(self, driver):
        self.driver = driver

    def js(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def later(self, code, *arguments):
        """Run the body of an async function and return what it returns."""
        body = f"const done = arguments[arguments.length - 1]; (async () => {{ {code} }})().then(done);"
        return self.driver.execute_async_script(body, *arguments)

    def wait(self, condition):
        found = self.later(
            f"for (let i = 0; i < 200; i += 1) {{ if ({condition}) return true;"
            " await new Promise((go) => setTimeout(go, 25)); } return false;"
        )
        assert found, f"never: {condition}"

    def texts(self, selector):
        return self.js(
            "return [...document.querySelectorAll(arguments[0])].map((x) => x.textContent)", selector
        )

    def click(self, selector):
        self.js("document.querySelector(arguments[0]).click()", selector)

    def choose(self, label, text):
        self.js(
            "const field = [...document.querySelectorAll('section:not([hidden]) .field')]"
            ".find((x) => x.firstChild.textContent === arguments[0]);"
            "const select = field.querySelector('select');"
            "select.value = [...select.options].find((x) => x.textContent === arguments[1]).value;"
            "select.dispatchEvent(new Event('change'));",
            label, text,
        )  # fmt: skip

    def fill(self, selector, value):
        """Put a value into an input, as typing or dragging does."""
        self.js(
            "const x = document.querySelector(arguments[0]); x.value = arguments[1];"
            "x.dispatchEvent(new Event('input'))",
            selector, value,
        )  # fmt: skip

    def press_button(self, within, text):
        self.js(
            "[...document.querySelectorAll(`${arguments[0]} button`)]"
            ".find((x) => x.textContent.includes(arguments[1])).click()",
            within, text,
        )  # fmt: skip

    def value(self, selector):
        return self.js("return document.querySelector(arguments[0]).value", selector)

    def press(self, key):
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def heading(self, text):
        self.js(
            "[...document.querySelectorAll('section:not([hidden]) thead button')]"
            ".find((x) => x.textContent.startsWith(arguments[0])).click()",
            text,
        )

    def column(self, index):
        return self.texts(f"section:not([hidden]) tbody tr > :nth-child({index})")


def test_no_view_complains_or_loads_anything(open_page, small):
    page = open_page(small)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        assert page.js("return document.querySelector(arguments[0]).hidden", f"#view-{view}") is False
        assert page.js("return [...document.querySelectorAll('main > section:not([hidden])')].length") == 1
    for mode in ("side", "slider", "blink", "difference"):
        page.js("location.hash = `#compare?mode=${arguments[0]}`", mode)
        page.wait(f"document.querySelector('.stage.{mode}')")
    assert page.driver.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert {address.split(":")[0] for address in asked} <= {"file", "data"}
    assert len({address for address in asked if address.startswith("file")}) == 1


def test_hostile_text_is_shown_as_text_everywhere(open_page, small):
    page = open_page(small)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        if view in {"prompts", "compare", "layers"}:
            page.choose("B" if view == "compare" else "Cell", f"{pages.MARKUP} ({pages.MARKUP}) W3A8 †")
        assert pages.MARKUP in page.js(
            "return document.querySelector(arguments[0]).textContent", f"#view-{view}"
        )
    page.click("#tab-grid")
    page.press_button("#view-grid tbody", "<b>")
    assert page.js("return document.getElementById('cell').open")
    assert page.texts("#cell dd").count(json.dumps(pages.MARKUP)) == 1
    assert page.js("return window.hit === undefined")
    assert (
        page.js("return document.querySelectorAll('b, img[src=x], section script, dialog script').length")
        == 0
    )
    assert page.driver.get_log("browser") == []


def test_injected_script_would_not_run(open_page, small):
    page = open_page(small)
    page.js(
        "const x = document.createElement('div'); "
        "x.innerHTML = '<img src=x onerror=\"window.hit=1\">'; document.body.append(x)"
    )
    page.js(
        "const x = document.createElement('script'); x.textContent = 'window.hit=1'; document.body.append(x)"
    )
    page.later("await new Promise((go) => setTimeout(go, 200))")
    assert page.js("return window.hit === undefined")


def test_grid_filters_and_sorts_all_rows(open_page, large):
    address, cells = large
    page = open_page(address)
    assert page.texts("#view-grid .count") == [f"{MANY} of {MANY} cells"]
    values = sorted(cell.result.metrics["psnr"].value for cell in cells)
    index = page.texts("#view-grid thead th").index("PSNR (dB) ↑") + 1
    page.heading("PSNR")
    shown = [float(text.split(" ")[0]) for text in page.column(index)]
    assert len(shown) == 100
    np.testing.assert_allclose(shown, values[:100], atol=0.006)
    page.heading("PSNR")
    np.testing.assert_allclose(
        [float(t.split(" ")[0]) for t in page.column(index)], values[:-101:-1], atol=0.006
    )
    page.click("#view-grid .more")
    assert len(page.column(1)) == MANY
    page.fill("input[type=search]", "METHOD7 model3")
    wanted = [cell for cell in cells if "method7" in cell.identity.method and cell.identity.model == "model3"]
    assert page.texts("#view-grid .count") == [f"{len(wanted)} of {MANY} cells"]
    assert 0 < len(wanted) == len(page.column(1))
    page.choose("Bits", "W3A8")
    assert page.texts("#view-grid .count") == [
        f"{sum(c.identity.wbits == 3 for c in wanted)} of {MANY} cells"
    ]


def test_missing_figures_sort_last_in_both_directions(open_page, small):
    page = open_page(small)
    index = page.texts("#view-grid thead th").index("PSNR (dB) ↑") + 1
    for _ in range(2):
        page.heading("PSNR")
        column = page.column(index)
        assert [text == "–" for text in column] == [False, False, True, True]
    assert column[1].startswith("7.50 [7.0, 8.0]")


def test_columns_can_be_chosen(open_page, small):
    page = open_page(small)
    assert "Key" not in page.texts("#view-grid thead th")
    page.js(
        "[...document.querySelectorAll('.columns label')]"
        ".find((x) => x.textContent.trim() === 'Key').firstChild.click()"
    )
    index = page.texts("#view-grid thead th").index("Key") + 1
    assert sorted(page.column(index)) == [letter * 16 for letter in "abcd"]


def test_prompts_stand_worst_first_and_lead_to_the_comparison(open_page, small):
    page = open_page(small, f"prompts?a={'a' * 16}&b={'b' * 16}")
    loss = [pages.psnr(pages.pixels(100 + i), pages.pixels(i)) for i in range(pages.PROMPTS)]
    order = [str(int(index) + 1) for index in np.argsort(loss)]
    assert page.column(1) == order
    page.choose("Loss in", "Prompt accuracy")
    index = page.texts("#view-prompts thead th").index("Prompt accuracy lost") + 1
    assert page.column(index) == ["1.000", "1.000", "0.000", "0.000", "0.000", "0.000"]
    assert page.column(1)[:2] == ["1", "4"]
    page.choose("Against", f"{pages.MARKUP} ({pages.MARKUP}) W3A8 †")
    page.choose("Loss in", "PSNR")
    other = [pages.psnr(pages.pixels(200 + i), pages.pixels(i)) for i in range(pages.PROMPTS)]
    lost = np.subtract(other, loss)
    assert page.column(1) == [str(int(index) + 1) for index in np.argsort(-lost)]
    np.testing.assert_allclose(
        [float(text) for text in page.column(5)], sorted(lost, reverse=True), atol=0.006
    )
    page.js("document.querySelector('#view-prompts tbody .link').click()")
    assert page.js("return document.querySelector('#view-compare').hidden") is False
    assert page.value("#view-compare input[type=number]") == str(int(np.argmax(lost)) + 1)


def test_the_difference_is_that_of_the_very_pixels(open_page, small):
    page = open_page(small, f"compare?a={'a' * 16}&b={'b' * 16}&prompt=3&mode=difference")
    page.wait("document.querySelector('.told')?.textContent")
    x, y = pages.pixels(2).astype(int), pages.pixels(102).astype(int)
    off = np.abs(x - y)
    told = page.texts(".told")[0]
    mean, largest, ratio = (float(text) for text in re.findall(r"\d+\.\d+|\d+(?= of)", told))
    assert (mean, largest) == (round(off.mean(), 2), off.max())
    assert ratio == pytest.approx(pages.psnr(x.astype(np.uint8), y.astype(np.uint8)), abs=0.006)
    page.fill(".stage input[type=range]", 2)
    drawn = page.js(
        "const c = document.querySelector('.stage canvas');"
        "return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    )
    drawn = np.array(drawn).reshape(pages.SIDE, pages.SIDE, 4)
    np.testing.assert_array_equal(drawn[..., :3], np.minimum(off * 2, 255))
    page.js(f"location.hash = '#compare?a={'b' * 16}'")
    page.wait("document.querySelector('.told')?.textContent === 'The two images are identical.'")


def test_error_by_step_is_drawn_told_and_listed(open_page, small):
    page = open_page(small, "steps")
    page.choose("Weight bits", "W4")
    assert page.texts("#view-steps tbody tr > *") == ["ptq W4A8", "14.4", "10.0", "3", "20.0", "10.0"]
    # 0.01 and 0.1 of three steps: the middle one, exact, is a gap of the line.
    drawn = page.js("return document.querySelector('#view-steps .join').getAttribute('d')")
    assert re.fullmatch(r"M[\d.]+ [\d.]+M[\d.]+ [\d.]+", drawn)
    assert page.js("return document.querySelectorAll('#view-steps circle').length") == 2
    heights = page.js(
        "return [...document.querySelectorAll('#view-steps circle')].map((x) => Number(x.getAttribute('cy')))"
    )
    assert heights[0] < heights[1]  # 20 dB stands above 10 dB
    page.js("document.querySelector('#view-steps .line').focus()")
    told = page.texts("#view-steps .readout")[0]
    assert told == "ptq W4A8: 14.4 dB over all steps, worst 10.0 dB at step 3 of 3"
    page.choose("Weight bits", "all")
    assert len(page.texts("#view-steps tbody tr")) == 2
    assert "no step differs" in page.js(
        "return document.querySelector('#view-steps tbody').closest('section').textContent"
        " + [...document.querySelectorAll('#view-steps .line')].map((x) => x.getAttribute('aria-label'))"
    )
    page.press_button("#view-steps .legend", "ptq")
    assert page.js(
        "return [...document.querySelectorAll('#view-steps .legend button')]"
        ".map((x) => x.getAttribute('aria-pressed'))"
    ) == ["true", "false"]


def test_slider_and_blink(open_page, small):
    page = open_page(small, f"compare?a={'a' * 16}&b={'b' * 16}&mode=slider")
    page.fill(".stage input[type=range]", 30)
    assert page.js("return document.querySelector('.over').style.clipPath") == "inset(0px 0px 0px 30%)"
    assert page.js("return document.querySelector('.edge').style.left") == "30%"
    page.js("location.hash = '#compare?mode=blink'")
    page.wait("document.querySelector('.stage.blink .over')?.style.visibility === 'visible'")
    page.wait("document.querySelector('.stage.blink .over')?.style.visibility === 'hidden'")
    assert page.texts(".now") == ["A: reference W16A16"]
    page.press_button(".stage", "Stop")
    assert page.js("return document.activeElement.textContent") == "Blink"
    page.press_button(".stage", "Flip")
    assert page.texts(".now") == ["B: ptq W4A8"]


def test_keys_do_what_the_mouse_does(open_page, small):
    from selenium.webdriver.common.keys import Keys

    page = open_page(small, f"compare?a={'a' * 16}&b={'b' * 16}&prompt=1")
    page.js("document.querySelector('#view-compare .modes button').focus()")
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ARROW_LEFT)
    assert page.value("#view-compare input[type=number]") == "2"
    assert page.texts(".prompt") == [pages.CAPTIONS[1]]
    page.press("4")
    page.wait("document.querySelector('.stage.difference canvas')")
    page.press("s")
    assert page.texts(".stage figcaption strong")[0] == "A: ptq W4A8"
    page.js("document.querySelector('#tab-compare').focus()")
    page.press(Keys.HOME)
    assert page.js("return [document.activeElement.id, location.hash]") == ["tab-grid", "#grid"]
    page.press(Keys.ARROW_LEFT)
    assert page.js("return document.activeElement.id") == "tab-environment"
    page.js(
        "document.querySelector('#tab-grid').click();"
        "document.querySelector('#view-grid thead button').focus()"
    )
    page.press(Keys.ENTER)
    assert (
        page.js("return document.querySelector('#view-grid thead th').getAttribute('aria-sort')")
        == "ascending"
    )
    page.js("document.querySelector('#view-grid tbody .link').focus()")
    page.press(Keys.ENTER)
    assert page.js("return document.getElementById('cell').open") is True
    page.press(Keys.ESCAPE)
    assert page.js("return document.getElementById('cell').open") is False


def test_every_control_can_be_reached_and_has_a_name(open_page, small):
    page = open_page(small)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        nameless = page.js(
            "return [...document.querySelectorAll('button, input, select, [role=button], [role=img], img')]"
            ".filter((x) => x.checkVisibility() && !(x.textContent.trim() || x.getAttribute('aria-label')"
            " || x.alt !== undefined && x.hasAttribute('alt') || x.labels?.length"
            " || x.closest('[aria-hidden]')))"
            ".map((x) => x.outerHTML.slice(0, 80))"
        )
        assert nameless == []
        assert (
            page.js(
                "return [...document.querySelectorAll('[tabindex]')].filter((x) => x.tabIndex > 0).length"
            )
            == 0
        )


def test_pareto_draws_a_marker_with_its_intervals_for_each_cell(open_page, small):
    page = open_page(small, "pareto")
    labels = page.js(
        "return [...document.querySelectorAll('.plot .mark')].map((x) => x.getAttribute('aria-label'))"
    )
    assert len(labels) == 4  # two cells have both figures, in each of two panels
    assert sum("PSNR (dB) 7.50 [7.0, 8.0]" in label for label in labels) == 2
    assert all("on the front" in label for label in labels if label.startswith("ptq"))
    ends = page.js(
        "const group = [...document.querySelectorAll('.plot .mark')]"
        ".find((x) => x.getAttribute('aria-label').includes('7.50'));"
        "const bar = group.querySelector('.bars').getBBox();"
        "const shape = group.querySelector('text').getAttribute('y') - 3.6;"
        "return [bar.y, shape, bar.y + bar.height]"
    )
    assert ends[0] < ends[1] < ends[2]
    assert ends[1] - ends[0] == pytest.approx(ends[2] - ends[1], abs=0.1)
    page.click(".legend button")
    assert len(page.texts(".plot .mark")) == 2
    page.choose("Quality", "Prompt accuracy ↑")
    assert page.js("return document.querySelectorAll('.plot .band').length") == 2


def test_layers_show_bits_and_what_the_method_recorded(open_page, small):
    page = open_page(small, f"layers?b={'b' * 16}")
    heads = page.texts("#view-layers thead th")
    assert page.column(1) == ["first", "second"]
    assert page.column(heads.index("Stored bits") + 1) == ["5", "5"]
    assert page.column(heads.index("error") + 1) == ["0.25", "0.5"]
    page.choose("Bars", "error")
    heights = page.js(
        "return [...document.querySelectorAll('#view-layers rect')].map((x) => +x.getAttribute('height'))"
    )
    assert heights[1] == 2 * heights[0] > 0


def test_failures_show_their_log(open_page, small):
    page = open_page(small, "failures")
    assert page.texts("#tab-failures .badge") == ["1"]
    assert page.texts("#view-failures pre") == [f"line one\n\\x1b[31m{pages.MARKUP}\nlast line"]


@pytest.mark.parametrize(
    "hash_",
    [
        "#nowhere",
        "#compare?a=x&b=<b>&prompt=999&mode=no&group=7",
        "#prompts?group=-1&prompt=NaN",
        "#__proto__",
        "#compare?%",
    ],
)
def test_an_address_that_leads_nowhere_does_no_harm(open_page, small, hash_):
    page = open_page(small, hash_[1:])
    assert page.js("return document.querySelectorAll('main > section:not([hidden])').length") == 1
    assert page.driver.get_log("browser") == []


def test_a_phone_scrolls_tables_and_not_the_page(open_page, small):
    page = open_page(small)
    metrics = {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for view in VIEWS:
        page.click(f"#tab-{view}")
        assert page.js("return document.documentElement.scrollWidth") <= 375, view
    for mode in ("side", "slider", "blink", "difference"):
        page.js("location.hash = `#compare?mode=${arguments[0]}`", mode)
        page.wait(f"document.querySelector('.stage.{mode}')")
        assert page.js("return document.documentElement.scrollWidth") <= 375, mode


def contrast(one, other):
    """Contrast ratio of two `rgb(...)` colours after WCAG 2."""
    light = []
    for colour in (one, other):
        parts = np.array([float(x) for x in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(light) + 0.05) / (min(light) + 0.05)


def test_light_and_dark_are_readable(open_page, small):
    page = open_page(small)
    names = ["ink", "soft", "bad", "accent", "paper", "stripe", *(f"c{index}" for index in range(8))]
    probe = (
        "const of = (name) => { const x = document.createElement('i'); document.body.append(x);"
        "x.style.color = `var(--${name})`; const c = getComputedStyle(x).color; x.remove(); return c; };"
        "return Object.fromEntries(arguments[0].map((name) => [name, of(name)]));"
    )
    papers = []
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        seen = page.js(probe, names)
        papers.append(seen["paper"])
        for name in ("ink", "soft", "bad", "accent"):
            assert contrast(seen[name], seen["paper"]) >= 4.5, (scheme, name)
            assert contrast(seen[name], seen["stripe"]) >= 4.5, (scheme, name)
        for index in range(8):
            assert contrast(seen[f"c{index}"], seen["paper"]) >= 3, (scheme, index)
    assert papers[0] != papers[1]
    page.click("#theme")  # from the system's dark to light
    assert page.js(probe, names)["paper"] == papers[0]
    page.click("#theme")
    assert page.js(probe, names)["paper"] == papers[1]


def test_a_page_without_images_or_cells_says_so(open_page, factory, record):
    bare = factory / "bare.html"
    bare.write_text(render([record("ptq", 4)]), encoding="utf-8")
    page = open_page(bare.as_uri(), "compare")
    assert "This page holds no images." in page.js(
        "return document.querySelector('#view-compare').textContent"
    )
    empty = factory / "empty.html"
    empty.write_text(render([]), encoding="utf-8")
    page = open_page(empty.as_uri())
    for view in VIEWS:
        page.click(f"#tab-{view}")
    assert page.texts("#summary") == ["No cell is finished yet."]
    assert page.driver.get_log("browser") == []
