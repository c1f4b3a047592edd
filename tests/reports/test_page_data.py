"""What the page is made of: figures, images, layers, and that nothing in them can become markup."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pages
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.reports.page import Source, render
from harness.reports.page.columns import page_columns
from harness.reports.page.data import _layers, build, script_json
from harness.reports.page.images import embed, find_images
from harness.reports.page.layers import read_layers
from harness.reports.record import Metric
from harness.reports.rows import row


class Parsed(HTMLParser):
    """Elements of a page, and the text inside each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1] == "script":
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self.elements.append(f"/{tag}")


def decoded(text):
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("WEBP",)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def run(tmp_path, record, save):
    folder = tmp_path / "run"
    return folder, pages.small_run(folder, record, save)


def test_images_are_the_very_pixels_in_the_order_of_prompts(run):
    folder, records = run
    content = build(records, Source(run_folder=folder))
    by_key = dict(zip([cell["key"] for cell in content.head["cells"]], content.details, strict=True))
    for key, seed in (("a", 0), ("b", 100), ("c", 200)):
        images = by_key[key * 16]["images"]
        assert len(images) == pages.PROMPTS
        for index, text in enumerate(images):
            np.testing.assert_array_equal(decoded(text), pages.pixels(seed + index))
    assert by_key["d" * 16]["images"] == []
    assert content.head["gallery"] == {
        "side": None, "generated_side": pages.SIDE, "prompts": pages.PROMPTS, "available": pages.PROMPTS,
    }  # fmt: skip


def test_images_shrink_until_they_fit_and_then_become_fewer(tmp_path):
    cells = {key: [pages.pixels(seed + i, 72) for i in range(6)] for key, seed in (("x", 0), ("y", 50))}
    for key, images in cells.items():
        pages.write_images(tmp_path / "cells" / key, images)
    sources = find_images(tmp_path, [["x", "y"]])

    def taken(gallery):
        return sum(len(text) for images in gallery.images.values() for text in images)

    whole = embed(sources, 10**7)
    assert (whole.side, whole.generated_side, whole.prompts) == (None, 72, 6)
    thumbs = embed(sources, taken(whole) // 2)
    assert thumbs.side == 48
    assert taken(thumbs) <= taken(whole) // 2
    assert max(decoded(thumbs.images["y"][5]).shape) == 48
    smallest = embed(sources, taken(whole) // 4)
    assert (smallest.side, smallest.prompts) == (32, 6)
    fewer = embed(sources, taken(smallest) * 3 // 5)
    assert (fewer.side, fewer.prompts, fewer.available) == (32, 3, 6)
    assert [len(images) for images in fewer.images.values()] == [3, 3]
    assert embed(sources, 10).images == {}
    assert embed(sources, 10).prompts == 0


def test_an_image_keeps_its_prompt_where_another_cell_lacks_it(tmp_path):
    pages.write_images(tmp_path / "cells" / "x", [pages.pixels(i) for i in range(6)])
    pages.write_images(tmp_path / "cells" / "y", [pages.pixels(10 + i) for i in range(6)])
    (tmp_path / "cells" / "y" / "blocks" / "0000" / "01.png").unlink()
    images = embed(find_images(tmp_path, [["x", "y"]]), 10**6).images["y"]
    assert [index for index, text in enumerate(images) if text is None] == [1]
    np.testing.assert_array_equal(decoded(images[2]), pages.pixels(12))


def test_the_page_stays_below_its_limit(run):
    folder, records = run
    whole = len(render(records, Source(run_folder=folder)))
    bare = len(render(records, Source()))
    assert whole > bare
    big = folder / "cells" / ("b" * 16)
    pages.write_images(big, [pages.pixels(i, 200) for i in range(pages.PROMPTS)])
    limit = 800_000
    text = render(records, Source(run_folder=folder, limit=limit))
    assert whole < len(text) < limit
    assert '"generated_side":200' in text
    assert '"side":128' in text


def test_a_damaged_image_or_ledger_names_its_file(run):
    folder, records = run
    ledger = folder / "cells" / ("b" * 16) / "checkpoint" / "ledger.json"
    good = ledger.read_text()
    for bad in (
        "{",
        "[]",
        '{"rows": 3}',
        good.replace("[8, 16]", "[0]"),
        good.replace('"codes": 64', '"codes": -1'),
    ):
        ledger.write_text(bad)
        with pytest.raises(ValueError, match=re.escape(f"{ledger}: not a ledger")):
            render(records, Source(run_folder=folder))
    ledger.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_layers(folder, "b" * 16)
    ledger.write_text(good)
    image = folder / "cells" / ("a" * 16) / "blocks" / "0001" / "01.png"
    image.write_bytes(b"\x89PNG nothing")
    with pytest.raises(ValueError, match=r"0001/01\.png: not a readable PNG"):
        render(records, Source(run_folder=folder))


def test_a_ledger_outside_the_run_is_refused(run, tmp_path):
    folder, _ = run
    ledger = folder / "cells" / ("b" * 16) / "checkpoint" / "ledger.json"
    outside = tmp_path / "outside.json"
    ledger.rename(outside)
    ledger.symlink_to(outside)
    with pytest.raises(ValueError, match="leads outside the run folder"):
        read_layers(folder, "b" * 16)


def test_layers_count_what_a_weight_takes_without_its_bias(run):
    folder, _ = run
    first, second = read_layers(folder, "b" * 16)
    assert (first["weights"], first["stored_bits"], first["shape"]) == (128, (64 + 16) * 8 / 128, "8×16")
    assert (first["note"], second["note"]["error"]) == ({"rank": 4, "error": 0.25}, 0.5)
    assert read_layers(folder, "a" * 16) == []


def test_layers_name_the_kernels_that_ran_where_the_record_does(run):
    folder, records = run
    names = [layer["name"] for layer in read_layers(folder, "b" * 16)]
    there = next(record for record in records if record.identity.cell == "b" * 16)
    roads = {names[1]: "int8<b>", "elsewhere": "gemv"}
    ran = replace(there, measured=replace(there.measured, roads=roads))
    source = Source(run_folder=folder)
    assert [layer.get("road") for layer in _layers(ran, source)] == [None, "int8<b>"]
    assert all("road" not in layer for layer in _layers(there, source))


def test_nothing_from_the_data_becomes_markup(run):
    folder, records = run
    source = Source(folder, {"name": pages.MARKUP}, {"scenes": pages.CAPTIONS}, {pages.MARKUP: "lower"})
    page = Parsed(render(records, source))
    assert not {"b", "img", "iframe", "link", "object", "a"} & set(page.elements)
    assert page.elements.count("script") == page.elements.count("/script") == 1 + len(records) + 1
    assert not [
        name for _, name, _ in page.attributes if name.startswith("on") or name in {"src", "href", "style"}
    ]
    head = json.loads(page.scripts[0])
    assert head["groups"][0]["captions"][0] == pages.CAPTIONS[0]
    assert any(pages.MARKUP in cell["label"] for cell in head["cells"])
    assert "\x1b" not in "".join(cell["log"] or "" for cell in head["cells"])


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.lists(st.text() | st.floats(allow_nan=False, allow_infinity=False))))
def test_script_json_says_the_same_and_cannot_end_its_element(value):
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    assert text.isascii()


def test_the_policy_knows_style_and_script_by_their_digests_and_nothing_else(run):
    folder, records = run
    text = render(records, Source(folder))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1).replace("&#39;", "'")
    parts = dict(part.split(" ", 1) for part in policy.split("; "))
    assert parts["default-src"] == "'none'"
    assert parts["img-src"] == "data:"
    script, style = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[-1] for tag in ("script", "style"))
    for name, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert parts[name] == f"'sha256-{digest}'"
    assert not re.search(
        r"\b(fetch|XMLHttpRequest|import\(|eval|innerHTML|outerHTML|insertAdjacentHTML)\b", script
    )
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", script + style)
    assert "@import" not in style
    assert "url(" not in style


def test_figures_missing_everywhere_are_hidden_and_new_metrics_follow(record):
    flats = [
        row(
            record("ptq", bits, metrics={"psnr": Metric(20.0, 19.0, 21.0), "clip_iqa": Metric(0.5, 0.4, 0.6)})
        )
        for bits in (2, 3)
    ]
    columns = {column.key: column for column in page_columns(flats, {"clip_iqa": "higher"})}
    assert not columns["lpips"].shown
    assert not columns["dataset"].shown
    assert columns["psnr"].shown
    assert columns["psnr"].interval == ("psnr_lo", "psnr_hi")
    extra = columns["clip_iqa"]
    assert (extra.shown, extra.better, extra.interval, extra.axis) == (
        True,
        "higher",
        ("clip_iqa_lo", "clip_iqa_hi"),
        "y",
    )
    assert "clip_iqa_lo" not in columns
    assert list(columns)[-1] == "state"


def test_cells_carry_rounded_figures_and_intervals(record):
    cell = build([record("ptq", 4, metrics={"psnr": Metric(27.123456789, 26.0, 28.0)})], Source()).head[
        "cells"
    ][0]
    columns = [column["key"] for column in build([record("ptq", 4)], Source()).head["columns"]]
    assert cell["values"][columns.index("psnr")] == 27.12346
    assert cell["ends"]["psnr"] == [26.0, 28.0]
    assert cell["series"] == "ptq, A8"


def test_equal_environments_are_kept_once(record):
    cells = [record("ptq", bits, environment={"cpu": "one", "cores": 2}) for bits in (2, 3)]
    cells.append(record("nf4", 4, environment={"cpu": "two", "cores": 2}))
    head = build(cells, Source()).head
    assert sorted(environment["cpu"] for environment in head["environments"]) == ["one", "two"]
    assert len({cell["environment"] for cell in head["cells"] if cell["label"] == "ptq"}) == 1


def test_the_page_is_the_same_every_time(run):
    folder, records = run
    assert render(records, Source(folder)) == render(reversed(records), Source(folder))
