"""The leaderboard's tables, picture and page; the page in a real browser, where there is one."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import board_rows
import pytest
from browser import chromium
from PIL import Image

from harness.cli import call
from harness.reports.leaderboard import read_boards
from harness.reports.leaderboard.page import render as render_page
from harness.reports.leaderboard.plot import figures, write_plot
from harness.reports.leaderboard.tables import document, render
from harness.reports.record import Metric

MARKUP = '<b>bold</b><img src=x onerror="window.hit=1"></script><script>window.hit=1</script>'
HOUR = "T00:00:00Z"


def small(record):
    """Two protocols: one whose PSNR made a step, one with a method that is called like markup."""
    levels = [{"metrics": {"psnr": Metric(level, level - 1, level + 1)}} for level in (20.0, 20.0, 25.0)]
    first = board_rows.board([
        *board_rows.series(record("ptq", 4), levels),
        *board_rows.series(record("nf4", 2), [{"commit": None}]),
        *board_rows.series(record("reference", 16), [{"dirty": True}]),
    ])  # fmt: skip
    hostile = record(MARKUP, 3, variant=MARKUP, protocol_hash="ffffffffffff", config={MARKUP: MARKUP})
    return [first, board_rows.board([board_rows.entry(hostile)])]


@pytest.fixture
def boards(record):
    return small(record)


def test_each_protocol_has_its_own_tables_of_the_newest_rows(boards):
    text = render(boards, "table")
    first, second = text.split("Protocol main-ffffffffffff")
    assert first.startswith("Protocol main-3f9a1c2b7d: 3 cells, 5 rows")
    rows = [line.split() for line in first.splitlines() if line.startswith(("ptq", "nf4", "reference"))]
    assert [(row[0], row[-2], row[-1]) for row in rows] == [
        ("reference", "2025-01-01", "0000000000+"),
        ("nf4", "2025-01-01", "–"),
        ("ptq", "2025-01-03", "0000000000"),
    ]  # fmt: skip
    assert "25.00 [24.0, 26.0]" in first
    assert "20.00" not in first.split("Step:")[0]
    assert "psnr 20.000 → 25.000" in " ".join(first.split("Step:")[1].split())
    assert "Step:" not in second


def test_markdown_shows_markup_as_text(boards):
    text = render(boards, "markdown")
    assert "<b>" not in re.sub(r"\\.", "", text)
    assert "## main\\-ffffffffffff" in text or "## main-ffffffffffff" in text


def test_json_holds_every_row_with_where_it_came_from(boards):
    rows = json.loads(render(boards, "json"))
    assert len(rows) == 6
    assert rows[0]["psnr"] == 20.0
    assert (rows[0]["commit"], rows[0]["weights"], rows[0]["machine"]) == (
        board_rows.COMMITS[0], board_rows.SHA, "a processor",
    )  # fmt: skip


def test_an_empty_leaderboard_says_so(tmp_path, capsys):
    assert call(["leaderboard", "show", "--board", str(tmp_path)]) == 0
    assert "no rows yet" in capsys.readouterr().out
    assert call(["leaderboard", "plot", "--board", str(tmp_path), "-o", str(tmp_path / "x.png")]) == 2
    assert "no rows yet" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path, capsys, boards):
    board_rows.write(tmp_path, boards[0])
    where = ["--board", str(tmp_path)]
    mistakes = {
        "did you mean psnr": ["plot", "psnrr", *where],
        "ends in .png, .svg, .pdf": ["plot", "-o", "x.txt", *where],
        "unknown format 'htm'": ["show", "--format", "htm", *where],
        "is no folder": ["show", "--board", str(tmp_path / "none")],
        "cannot write": ["show", "-o", str(tmp_path / "no" / "x.html"), *where],
    }
    for message, arguments in mistakes.items():
        assert call(["leaderboard", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_the_picture_is_drawn_and_stays_the_same(boards, tmp_path):
    assert figures(boards)[-3:] == ["weight_bytes", "peak_bytes", "step_ratio"]
    for name in ("one.png", "two.png", "one.svg", "two.svg"):
        write_plot(boards, "psnr", tmp_path / name)
    with Image.open(tmp_path / "one.png") as image:
        assert min(image.size) > 500
        assert len(set(image.convert("RGB").resize((60, 60)).getdata())) > 20
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_footnotes_name_no_test_that_was_not_made(boards):
    notes = document(boards[0]).notes
    assert not any(note.startswith("≈") for note in notes)
    assert any("no difference is tested here" in note for note in notes)


def test_reading_never_imports_torch(boards, tmp_path):
    board_rows.write(tmp_path, boards[0])
    code = (
        "import sys; from harness.cli import call;"
        "codes = [call(['leaderboard', *x, '--board', sys.argv[1]]) for x in"
        " (['show'], ['show', '--format', 'html'], ['verify', '--no-generate'])];"
        "sys.exit(repr(codes) if any(codes) or {'torch', 'diffusers', 'pandas'} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- in a browser


@pytest.fixture(scope="module")
def driver():
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(driver, boards, tmp_path):
    path = tmp_path / "board.html"
    path.write_text(render_page(boards), encoding="utf-8")
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(path.as_uri())

    def js(code, *arguments):
        return driver.execute_script(code, *arguments)

    yield js
    assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []
    sent = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("file:", "about:", "data:"))} == set()
    assert js("return window.hit") is None


def texts(js, section, selector):
    """The texts of elements in the table of a protocol."""
    return js(
        "const section = document.querySelectorAll('main section')[arguments[0]];"
        "return [...section.querySelectorAll(arguments[1])].map((x) => x.textContent)",
        section, selector,
    )  # fmt: skip


def column(js, section, number):
    return texts(js, section, f"tbody tr > :nth-child({number})")


def test_tables_of_protocols_stand_apart_and_older_rows_wait(page):
    assert page("return [...document.querySelectorAll('h2')].map((x) => x.textContent)")[:2] == [
        "main-3f9a1c2b7d", "main-ffffffffffff",
    ]  # fmt: skip
    assert column(page, 0, 1) == ["reference", "nf4", "ptq"]
    assert column(page, 1, 1) == [f"{MARKUP} ({MARKUP})"]
    page("document.getElementById('older').click()")
    assert column(page, 0, 1) == ["reference", "nf4", "ptq", "ptq", "ptq"]
    assert page("return document.querySelectorAll('b').length") == 0


def test_filters_hold_for_all_tables_and_headings_sort_one(page):
    page("document.getElementById('older').click()")
    page(
        "const x = document.querySelector('input[type=search]'); x.value = 'ptq w4';"
        "x.dispatchEvent(new Event('input'))"
    )
    assert [column(page, number, 1) for number in (0, 1)] == [["ptq"] * 3, []]
    heads = texts(page, 0, "thead th")
    number = next(index for index, text in enumerate(heads) if text.startswith("PSNR"))
    for shown in (["20.00", "20.00", "25.00"], ["25.00", "20.00", "20.00"]):
        page(
            f"document.querySelectorAll('main section')[0].querySelectorAll('thead button')[{number}].click()"
        )
        assert [text.split()[0] for text in column(page, 0, number + 1)] == shown


def test_a_row_opens_with_its_history_and_what_it_was_made_with(page):
    page("[...document.querySelectorAll('tbody button')].find((x) => x.textContent === 'ptq').click()")
    dialog = page("return document.getElementById('cell').innerText")
    for text in (
        board_rows.COMMITS[2],
        board_rows.SHA,
        "torch",
        "2.9.0",
        "a processor",
        "2025-01-01, 0000000000: 20.00",
    ):
        assert text in dialog
    assert page("return document.querySelectorAll('#cell svg circle').length") == 3
    assert page("return document.querySelector('#cell svg').getAttribute('aria-label')") == (
        "PSNR (dB) over 3 rows: 20.00 to 25.00"
    )


def test_steps_are_listed_over_their_table(page):
    (line,) = page("return [...document.querySelectorAll('.steps li')].map((x) => x.textContent)")
    first, second = board_rows.COMMITS[1][:12], board_rows.COMMITS[2][:12]
    assert f"psnr 20.000 → 25.000, added 2025-01-03; commits {first}..{second}" in line


def test_a_page_without_rows_says_so(driver, tmp_path):
    path = tmp_path / "empty.html"
    path.write_text(render_page([]), encoding="utf-8")
    driver.get(path.as_uri())
    assert driver.find_element("id", "summary").text == "The leaderboard has no rows yet."


def test_boards_on_disk_make_the_same_page(boards, tmp_path):
    for held in boards:
        board_rows.write(tmp_path, held)
    assert render_page(read_boards(tmp_path)) == render_page([replace(held) for held in boards])


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page, driver, width):
    device = {"width": width, "height": 780, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    driver.refresh()
    assert page("return document.documentElement.scrollWidth") <= width
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
