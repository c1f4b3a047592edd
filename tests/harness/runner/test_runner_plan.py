"""`harness plan` on the toy world: a budget picks the prompts, and what was seen replaces guesses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.cli import call
from harness.cli.planning import affordable, effect_line, parse_budget
from harness.errors import UserError
from harness.outlook import totals
from harness.reports.statistics import minimum_detectable_effect
from harness.run import forecast
from harness.timings import Timings, read_timings


def seconds(request, timings, n):
    plan, outlooks, workers = forecast(replace(request, prompts=n), timings)
    return totals(plan, outlooks, workers)[0]


def test_a_budget_picks_the_most_whole_blocks(toy):
    request = toy.request(workers=1)
    timings = Timings({("toy-a", "fine", 4): 0.5, ("toy-a", "reference", 16): 0.25})
    n = affordable(request, timings, 120.0)
    assert n % 16 == 0
    assert seconds(request, timings, n) <= 120.0 < seconds(request, timings, n + 16)
    # 0.75 s a prompt, and two cells' fixed work: quantizing, measuring and forming figures.
    assert seconds(request, timings, 32) - seconds(request, timings, 16) == pytest.approx(16 * 0.75)


def test_a_budget_stops_at_the_end_of_the_prompt_set_or_before_the_first_block(toy):
    timings = Timings({("toy-a", "fine", 4): 0.001})
    assert affordable(toy.request(datasets=("few",)), timings, 1e6) == 16
    with pytest.raises(UserError, match="16 prompts alone take about"):
        affordable(toy.request(), timings, 1.0)


def test_timings_are_read_from_a_run(toy):
    toy.run(prompts=16)
    found = read_timings(toy.out)
    assert set(found.seconds) == {("toy-a", "fine", 4), ("toy-a", "reference", 16)}
    size = toy.cell("fine") / "blocks" / "0000" / "00.png"
    assert found.sizes["toy-a"] == pytest.approx(size.stat().st_size, rel=0.2)
    with pytest.raises(UserError, match="not a run folder"):
        read_timings(toy.steer / "none")


def test_the_effect_is_that_of_the_median_spread():
    expected = minimum_detectable_effect(1.5, 64)
    assert f"{expected:.2f} dB" in effect_line(Timings(spreads=(9.0, 1.5, 0.2)), 64)
    assert "unknown" in effect_line(Timings(), 64)


@pytest.mark.parametrize("text", ["30", "m", "-3m", "0s", "1d"])
def test_a_budget_is_a_time(text):
    with pytest.raises(UserError, match="is not a time"):
        parse_budget(text)


def test_the_command_prints_cells_time_and_effect(toy, capsys):
    assert parse_budget("1.5h") == 5400
    code = call(["plan", "--models", "toy-a", "--methods", "fine", "--bits", "4", "--out", str(toy.out)])
    printed = capsys.readouterr().out
    assert code == 0
    assert "time about" in printed
    assert "smallest PSNR difference" in printed
    assert not toy.out.exists()
