"""What is said of a row whose cell was made again: images first, then figures, never both."""

from dataclasses import replace

import board_rows
import pytest

import harness.reproduce
from harness.reports.gate.sides import name_of
from harness.reports.record import Identity, Measured, Metric, Record, Result
from harness.reproduce import Reproduced, _compare, exit_code

PSNR = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0]
RIGHT = [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
IMAGES = [f"{number:064x}" for number in range(8)]


def record(psnr=PSNR, right=RIGHT, **changes):
    identity = Identity(
        cell="a" * 16, model="m", method="ptq", variant="default", config={}, dataset="scenes", protocol="p",
        protocol_hash="0", seed=0, device="cpu", backend="reference", dtype="float32", wbits=4, abits=8,
    )  # fmt: skip
    per_prompt = {"psnr": list(psnr), "prompt_accuracy": list(right), "hue": [1.0] * 8}
    result = Result(
        "ok",
        "packed",
        8,
        effective_bits=4.1,
        weight_bytes=1000,
        metrics={"psnr": Metric(23.5)},
        per_prompt=per_prompt,
    )
    return Record(identity, replace(result, **changes), Measured())


ROW = board_rows.entry(
    record(),
    first={"psnr": PSNR, "prompt_accuracy": RIGHT, "hue": [9.0] * 8},
    per_prompt=dict.fromkeys(("psnr", "prompt_accuracy", "hue"), board_rows.SHA),
    images=IMAGES,
)


@pytest.fixture
def compare(monkeypatch):
    class Store:
        def cell(self, key):
            return None

    def run(new, images=("f" * 64, *IMAGES[1:]), row=ROW):
        monkeypatch.setattr(harness.reproduce, "first_images", lambda files, n: list(images))
        return _compare(row, {name_of(new): new}, Store())

    return run


def shifted(*by):
    return [value + by[index % len(by)] for index, value in enumerate(PSNR)]


def test_equal_images_are_enough(compare):
    found = compare(record(shifted(5.0)), IMAGES)
    assert (found.finding, found.detail) == ("same", "")


CASES = {
    "the same figures": (PSNR, RIGHT, "agrees"),
    "rounding": (shifted(0.01, -0.02), RIGHT, "agrees"),
    "all a little worse": (shifted(-0.09), RIGHT, "agrees"),
    "all worse": (shifted(-0.2), RIGHT, "differs"),
    "all better": (shifted(0.3, 0.31), RIGHT, "differs"),
    "scattered": (shifted(2.0, -2.1), RIGHT, "unclear"),
    "one answer": (PSNR, [0.0, *RIGHT[1:]], "unclear"),
    "all answers": (PSNR, [1.0 - value for value in RIGHT], "unclear"),
    "every image equal to the reference's": ([None] * 8, RIGHT, "differs"),
}


@pytest.mark.parametrize("name", CASES)
def test_other_images_are_judged_by_their_figures(compare, name):
    psnr, right, finding = CASES[name]
    found = compare(record(psnr, right))
    assert found.finding == finding
    assert found.detail.startswith("7 of 8 images are the same; psnr ")
    assert "hue" not in found.detail  # it has no margin


def test_without_figures_to_compare_other_images_differ(compare):
    bare = replace(ROW, first={"hue": [1.0] * 8})
    assert compare(record(), row=bare).finding == "differs"


@pytest.mark.parametrize("field", ["weight_bytes", "effective_bits"])
def test_other_bytes_differ_whatever_the_images(compare, field):
    found = compare(record(**{field: 1001}), IMAGES)
    assert (found.finding, field in found.detail) == ("differs", True)


def test_a_cell_that_ended_otherwise_failed(compare):
    found = compare(record(state="oom", message="no memory"))
    assert (found.finding, found.detail) == ("failed", "oom: no memory")


def test_other_sources_are_told(compare):
    other = record()
    other = replace(other, identity=replace(other.identity, cell="b" * 16))
    assert not compare(other, IMAGES).sources
    assert compare(record(), IMAGES).sources


def test_a_single_image_is_held_against_the_margin(compare):
    row = replace(ROW, images=IMAGES[:1], first={"psnr": [20.0]})
    assert compare(record([20.05]), ["f" * 64], row).finding == "agrees"
    assert compare(record([20.2]), ["f" * 64], row).finding == "differs"


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        (["same", "agrees"], 0),
        (["same", "unclear"], 3),
        (["unclear", "differs"], 1),
        (["failed", "same"], 1),
    ],
)
def test_exit_codes(findings, code):
    assert exit_code(Reproduced(ROW, finding) for finding in findings) == code
