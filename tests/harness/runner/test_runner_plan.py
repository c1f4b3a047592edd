"""`harness plan` on the toy world: a budget picks the prompts, and what was seen replaces guesses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.cli import call
from harness.cli.planning import affordable, effect_line, parse_budget
from harness.errors import UserError
from harness.outlook import QUANTIZE_SECONDS, totals
from harness.protocols import settle
from harness.reports.statistics import minimum_detectable_effect
from harness.run import forecast
from harness.timings import Timings, read_timings


def seconds(request, timings, n):
    plan, outlooks, workers = forecast(replace(request, prompts=n), timings)
    return totals(plan, outlooks, workers)[0]


def test_a_budget_picks_the_most_whole_blocks(toy):
    request = toy.request(workers=1)
    timings = Timings({("toy-a", "fine", 4): 0.02, ("toy-a", "reference", 16): 0.01})
    n = affordable(request, timings, 30.0)
    assert n % 16 == 0
    assert seconds(request, timings, n) <= 30.0 < seconds(request, timings, n + 16)
    # 0.03 s a prompt, and two cells' fixed work: quantizing, measuring and forming figures.
    assert seconds(request, timings, 32) - seconds(request, timings, 16) == pytest.approx(16 * 0.03)


def test_a_slow_machine_takes_longer_for_everything(toy):
    request = toy.request(workers=1, methods=("fine", "statistics"))
    # The toy is expected to take 0.01 s for an image of the unquantized model.
    usual, slow = (Timings({("toy-a", "reference", 16): 0.01 * times}) for times in (1.0, 3.0))
    assert seconds(request, slow, 32) == pytest.approx(3 * seconds(request, usual, 32))
    assert seconds(request, usual, 32) == pytest.approx(seconds(request, Timings(), 32))
    # What quantizing took is taken as it is.
    key = ("toy-a", "fine", 4)
    known = replace(usual, quantizing={key: QUANTIZE_SECONDS + 50.0})
    assert seconds(request, known, 32) - seconds(request, usual, 32) == pytest.approx(50.0)


def test_a_method_not_seen_is_scaled_from_those_that_were(toy):
    request = toy.request(workers=1, methods=("fine",))
    # All methods of the toy are expected to take equally long, so one stands for the other.
    other, own = Timings({("toy-a", "weighty", 4): 0.04}), Timings({("toy-a", "fine", 4): 0.04})
    assert seconds(request, other, 64) == pytest.approx(seconds(request, own, 64))


def test_disk_counts_statistics_up_to_what_the_protocol_allows(toy):
    def disk(**changes):
        plan, outlooks, workers = forecast(toy.request(methods=("fine", "statistics")), Timings())
        facts = {cell.key: replace(cell.setting.model, **changes) for cell in plan.cells}
        cells = tuple(
            replace(cell, setting=replace(cell.setting, model=facts[cell.key])) for cell in plan.cells
        )
        return totals(replace(plan, cells=cells), outlooks, workers)[1]

    allowed = settle("scenes-default", None).base.calibration_mib * 2**20
    assert disk() - disk(calibration_bytes=1000) == allowed - 1000
    assert disk(calibration_bytes=10 * allowed) == disk()


def test_a_budget_stops_at_the_end_of_the_prompt_set_or_before_the_first_block(toy):
    timings = Timings({("toy-a", "fine", 4): 0.016})
    assert affordable(toy.request(datasets=("few",)), timings, 1e6) == 16
    with pytest.raises(UserError, match="16 prompts alone take about"):
        affordable(toy.request(), timings, 1.0)


def test_timings_are_read_from_a_run(toy):
    toy.run(prompts=16)
    found = read_timings(toy.out)
    assert set(found.seconds) == {("toy-a", "fine", 4), ("toy-a", "reference", 16)}
    stored = (toy.cell("fine") / "blocks" / "0000").iterdir()
    assert found.sizes["toy-a"] == pytest.approx(sum(path.stat().st_size for path in stored) / 16, rel=0.05)
    assert found.quantizing == {("toy-a", "fine", 4): 0.25}
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


@pytest.mark.parametrize("text", ["1001h", "9" * 400 + "h"])
def test_a_budget_without_end_is_refused(text):
    with pytest.raises(UserError, match="is more than 1000h"):
        parse_budget(text)


@pytest.mark.parametrize("stored", [0, 16, 160])
@pytest.mark.parametrize("budget", [18.0, 19.5, 22.0])
def test_a_budget_is_used_up_whatever_is_stored(toy, stored, budget):
    if stored:
        toy.run(prompts=stored)
    request = toy.request(workers=1)
    timings = Timings({("toy-a", "fine", 4): 0.02, ("toy-a", "reference", 16): 0.01})
    n = affordable(request, timings, budget)
    assert seconds(request, timings, n) <= budget < seconds(request, timings, n + 16)


def test_the_command_prints_cells_time_and_effect(toy, capsys):
    assert parse_budget("1.5h") == 5400
    code = call(["plan", "--models", "toy-a", "--methods", "fine", "--bits", "4", "--out", str(toy.out)])
    printed = capsys.readouterr().out
    assert code == 0
    assert "time about" in printed
    assert "smallest PSNR difference" in printed
    assert not toy.out.exists()
