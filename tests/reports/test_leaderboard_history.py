"""Steps in the history of rows, and what is said of where they come from."""

from dataclasses import replace

import board_rows
import numpy as np
import pytest

from harness.reports.leaderboard import commit_range, hints, latest, step_line, steps
from harness.reports.leaderboard.history import histories, series_of
from harness.reports.record import Metric

QUIET = {"weight_bytes": 1000, "peak_bytes": 2000, "step_ratio": 2.0}


def psnr(*levels, **changes):
    return [{**QUIET, "metrics": {"psnr": Metric(level)}, **changes} for level in levels]


def found(record, figures):
    return steps(board_rows.board(board_rows.series(record, figures)))


def test_equal_rows_and_rounding_are_no_steps(record):
    assert found(record(), psnr(20.0, 20.0, 20.0)) == []
    assert found(record(), psnr(20.0, 20.09, 19.95, 20.09)) == []
    assert found(record(), psnr(20.0)) == []


def test_a_quality_that_left_its_level_is_a_step(record):
    rows = psnr(20.0, 20.05, 21.0, 21.02, 19.0)
    (up, down) = found(record(), rows)
    assert (up.figure, up.old, up.new, up.p) == ("psnr", 20.0, 21.0, None)
    assert (up.before.commit, up.after.commit) == (board_rows.COMMITS[1], board_rows.COMMITS[2])
    assert (down.old, down.new) == (21.0, 19.0)


def test_slow_drift_is_a_step_too(record):
    (step,) = found(record(), psnr(20.0, 19.96, 19.92, 19.89))
    assert (step.old, step.new) == (20.0, 19.89)


def test_bytes_step_beyond_one_percent(record):
    rows = [{**QUIET, "weight_bytes": size, "metrics": {}} for size in (1000, 1010, 1011)]
    (step,) = found(record(), rows)
    assert (step.figure, step.old, step.new) == ("weight_bytes", 1000, 1011)


def test_times_scatter_and_their_step_is_found(record):
    draw = np.random.default_rng(3)
    ratios = np.exp(draw.normal(np.log(2.0), 0.02, 24))
    ratios[14:] *= 1.3
    rows = [{**QUIET, "metrics": {}, "step_ratio": float(ratio)} for ratio in ratios]
    (step,) = found(record(), rows)
    assert step.figure == "step_ratio"
    assert step.after.commit == board_rows.COMMITS[14]
    assert step.old == pytest.approx(2.0, rel=0.02)
    assert step.new == pytest.approx(2.6, rel=0.02)
    assert step.p < 1e-6
    assert found(record(), rows[:14]) == []


def test_a_small_step_in_time_is_left_out(record):
    rows = [{**QUIET, "metrics": {}, "step_ratio": 2.0 + 0.08 * (number > 9)} for number in range(20)]
    assert found(record(), rows) == []


def test_many_series_that_did_not_change_seldom_alarm(record):
    """200 boards of 12 series: the chance of any alarm on a board is the stated 5 % at most."""
    draw = np.random.default_rng(4)
    cells = [record(variant=f"v{n}", cell=f"{n:016d}"[::-1]) for n in range(12)]
    rows = [board_rows.series(cell, [{**QUIET, "metrics": {}}] * 7) for cell in cells]
    board = board_rows.board(entry for entries in rows for entry in entries)
    alarms = 0
    for _ in range(200):
        times = np.exp(draw.normal(0, 0.1, len(board.entries)))
        alarms += bool(steps(replace(board, entries=tuple(map(timed, board.entries, map(float, times))))))
    assert alarms <= 20  # the upper 99.9 % point of the binomial at 5 %


def timed(entry, ratio):
    measured = replace(entry.record.measured, step_ratio=ratio)
    return replace(entry, record=replace(entry.record, measured=measured))


def test_other_machines_and_other_numbers_of_prompts_are_other_series(record):
    one = board_rows.series(record(), psnr(20.0))[0]
    other = board_rows.series(record(), psnr(25.0, environment={"cpu": "another"}))[0]
    more = board_rows.series(record(n=128), psnr(15.0))[0]
    board = board_rows.board([one, other, more])
    assert steps(board) == []
    assert len(histories(board.entries)) == 3
    assert latest(board) == [board.entries[-1]]


def test_the_newest_row_of_a_cell_stands_for_it(record):
    rows = board_rows.series(record(), psnr(20.0, 21.0)) + board_rows.series(record("nf4", 2), psnr(9.0))
    board = board_rows.board(rows)
    assert latest(board) == [board.entries[1], board.entries[2]]
    assert series_of(rows[0]) == series_of(rows[1]) != series_of(rows[2])


def test_the_commits_and_what_differs_are_named(record):
    other = {"generating": "c" * 64, "method": board_rows.SHA, "torch": "2.10.0", "diffusers": "0.36.0"}
    rows = psnr(20.0, 20.0) + psnr(22.0, fingerprint=other, weights="d" * 64, images=["e" * 64] * 8)
    (step,) = found(record(), rows)
    first, second = board_rows.COMMITS[1], board_rows.COMMITS[2]
    assert commit_range(step) == f"{first}..{second}"
    assert hints(step) == [
        f"commits {first[:12]}..{second[:12]}", "the code that generates differs", "torch 2.9.0 → 2.10.0",
        "the model's weights differ",
    ]  # fmt: skip
    line = step_line(step)
    assert line.startswith("tiny-unet ptq W4A8 on scenes, N = 64, a processor: psnr 20.000 → 22.000, added ")
    assert len(line.splitlines()) == 1


def test_equal_images_point_at_the_metric(record):
    (step,) = found(record(), psnr(20.0, 22.0))
    assert hints(step)[-1] == "the images are the same: the metric's code or weights changed"


def test_unknown_and_equal_commits_are_said_to_be(record):
    (step,) = found(record(), [*psnr(20.0, commit=None), *psnr(22.0)])
    assert hints(step)[0] == "a commit is not known"
    assert commit_range(step) is None
    rows = board_rows.series(record(), psnr(20.0, 22.0))
    same = replace(rows[1], commit=rows[0].commit, dirty=True)
    (step,) = steps(board_rows.board([rows[0], same]))
    assert hints(step)[0] == f"the same commit {rows[0].commit[:12]} and changes that were not committed"
    assert commit_range(step) is None
