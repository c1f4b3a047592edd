import warnings

import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from harness.reports.contact import contact_sheet
from harness.reports.pareto import pareto_figure
from harness.reports.pictures import write_pictures
from harness.reports.record import Metric


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def add_images(run, record, count, colour, block=4, side=64):
    for index in range(count):
        folder = run / "cells" / record.identity.cell / "blocks" / f"{index // block:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        image = np.full((side, side, 3), colour, np.uint8)
        image[0, 0] = (index, 7, 9)
        Image.fromarray(image).save(folder / f"{index % block:02d}.png")


def tiles_of(sheet, colour, corner):
    """Return where the tiles stand whose first 2 x 2 pixels are `corner`, inside a tile of `colour`."""
    pixels = np.asarray(sheet)
    found = []
    for y, x in zip(*np.where((pixels == corner).all(-1)), strict=True):
        if (pixels[y + 2 : y + 128, x + 2 : x + 128] == colour).all() and (
            pixels[y : y + 2, x : x + 2] == corner
        ).all():
            found.append((int(x), int(y)))
    return found


def test_contact_sheet_shows_the_same_prompts_in_the_same_columns(tmp_path, record):
    cells = [record("ptq", 2), record("ptq", 4), record("reference", 16)]
    shades = {2: (200, 0, 0), 4: (0, 200, 0), 16: (0, 0, 200)}
    for cell in cells:
        add_images(tmp_path, cell, 11, shades[cell.identity.wbits])
    sheet = contact_sheet(tmp_path, cells, ["a prompt"], "title")
    rows = {}
    for bits, shade in shades.items():
        places = [tiles_of(sheet, shade, (index, 7, 9)) for index in range(9)]
        assert [len(found) for found in places] == [1] * 8 + [0]  # eight prompts, in order of the blocks
        rows[bits] = [found[0] for found in places[:8]]
    assert [x for x, _ in rows[2]] == [x for x, _ in rows[4]] == [x for x, _ in rows[16]]
    assert [x for x, _ in rows[2]] == sorted(x for x, _ in rows[2])
    assert rows[16][0][1] < rows[4][0][1] < rows[2][0][1]  # reference first, then wide to narrow


def test_failed_cells_keep_a_row_without_images(tmp_path, record):
    good, bad = record("reference", 16), record("ptq", 2, state="oom", metrics={}, effective_bits=None)
    add_images(tmp_path, good, 3, (0, 0, 200))
    alone = contact_sheet(tmp_path, [good], [], "t")
    both = contact_sheet(tmp_path, [good, bad], [], "t")
    assert both.height >= alone.height + 128
    assert (np.asarray(both)[alone.height :] == (0xB3, 0x26, 0x1E)).all(-1).any()  # its state, in red


def test_large_images_are_fitted_into_tiles(tmp_path, record):
    cell = record("reference", 16)
    add_images(tmp_path, cell, 2, (0, 120, 0), side=300)
    sheet = contact_sheet(tmp_path, [cell], [], "t")
    greens = (np.asarray(sheet) == (0, 120, 0)).all(-1)
    assert 2 * 126 * 126 <= greens.sum() <= 2 * 128 * 128


def test_no_images_no_sheet(tmp_path, record):
    assert contact_sheet(tmp_path, [record()], [], "t") is None


def test_damaged_image_is_named_and_foreign_keys_are_refused(tmp_path, record):
    cell = record("reference", 16)
    add_images(tmp_path, cell, 2, (0, 0, 0))
    path = tmp_path / "cells" / cell.identity.cell / "blocks" / "0000" / "01.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"01\.png: not a readable PNG"):
        contact_sheet(tmp_path, [cell], [], "t")
    with pytest.raises(ValueError, match="cannot be the name of a folder"):
        contact_sheet(tmp_path, [record(cell="../../etc")], [], "t")


def test_pareto_lines_and_bars_hold_the_figures(record):
    def cell(method, bits, size, psnr):
        metrics = {"psnr": Metric(psnr, psnr - 0.5, psnr + 0.25), "prompt_accuracy": Metric(psnr / 40)}
        return record(method, bits, weight_bytes=size * 2**20, metrics=metrics)

    cells = [
        cell("ptq", 4, 4, 28.0),
        cell("ptq", 2, 2, 12.0),
        cell("ptq", 3, 3, 20.0),
        cell("nf4", 4, 5, 30.0),
    ]
    cells += [record("svdquant", 4, state="oom", metrics={}, weight_bytes=None)]
    figure = pareto_figure(cells, "t")
    left, right = figure.axes
    lines = {item.get_label(): item for item in left.containers}
    assert set(lines) == {"ptq, A8", "nf4, A16"}
    data, _, (bars,) = lines["ptq, A8"]
    assert data.get_xydata().tolist() == [[2.0, 12.0], [3.0, 20.0], [4.0, 28.0]]
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
        [11.5, 12.25],
        [19.5, 20.25],
        [27.5, 28.25],
    ]
    assert right.containers[0][0].get_ydata().tolist() == [0.3, 0.5, 0.7]
    shades = {colors.to_hex(item[0].get_color()) for item in left.containers}
    assert len(shades) == 2


def test_pareto_shows_the_reference_as_a_level(record):
    reference = record(
        "reference", 16, metrics={"prompt_accuracy": Metric(0.98, 0.9, 1.0)}, weight_bytes=10 * 2**20
    )
    _, right = pareto_figure([record("ptq"), reference], "t").axes
    assert [line.get_ydata()[0] for line in right.lines if line.get_linestyle() == "--"] == [0.98]
    assert "16-bit reference, 10.0 MiB" in [text.get_text() for text in right.texts]


def test_nothing_to_plot_is_no_figure(record):
    assert pareto_figure([record("reference", 16), record(state="nan", metrics={})], "t") is None


def test_pictures_are_written_per_model_and_name_hostile_models_safely(tmp_path, record):
    models = ["tiny-unet", "../x $y_", "..|x $y_", "中"]
    cells = [
        record(method, bits, model=m) for m in models for method, bits in (("reference", 16), ("_p$t$q", 3))
    ]
    for cell in cells:
        add_images(tmp_path, cell, 2, (1, 2, 3))
    written = write_pictures(tmp_path, cells, {"scenes": ["long " * 40, "x" * 300 + " $ 中"]})
    assert len(written) == len(set(written)) == 8
    assert {path.parent for path in written} == {tmp_path}
    assert {"contact-tiny-unet.png", "pareto-tiny-unet.png"} <= {path.name for path in written}
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
    assert sorted(path for path in tmp_path.iterdir() if path.is_file()) == sorted(written)


def test_pictures_of_a_run_where_everything_failed(tmp_path, record):
    assert (
        write_pictures(
            tmp_path, [record(state="crashed", metrics={}), record("nf4", state="nan", metrics={})]
        )
        == []
    )


def test_prompt_sets_of_one_model_get_their_own_pictures(tmp_path, record):
    cells = [record("ptq", dataset="scenes"), record("ptq", dataset="other")]
    names = {path.name for path in write_pictures(tmp_path, cells)}
    assert names == {"pareto-tiny-unet-other-cpu.png", "pareto-tiny-unet-scenes-cpu.png"}
