"""Speed of the leaderboard with 2,000 rows: `pytest tests/benchmarks --benchmark-only -k leaderboard`.

Of the page, what a reader waits for: from the click or key until the browser has laid out and painted.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import board_rows
import pytest
from browser import chromium

from harness.reports.leaderboard import Board
from harness.reports.leaderboard.page import render
from harness.reports.record import Identity, Measured, Metric, Record, Result

ROWS = 2000
# Two frames: the first one's callback runs before it is painted, the second one's after.
_PAINTED = "requestAnimationFrame(() => requestAnimationFrame(() => arguments[arguments.length - 1](1)));"
_ACTIONS = {
    "sort": "[...document.querySelectorAll('thead button')]"
    ".find((x) => x.textContent.startsWith('PSNR')).click();",
    "filter": "const x = document.querySelector('input[type=search]'); x.value = x.value ? '' : 'method7';"
    "x.dispatchEvent(new Event('input'));",
}


def _cell(index: int) -> Record:
    metrics = {
        name: Metric(((index * 7919) % ROWS) / 50, 0.1, 50.0) for name in ("psnr", "ssim", "prompt_accuracy")
    }
    identity = Identity(
        cell=f"{index:016x}", model=f"model{index % 4}", method=f"method{index % 40}", variant=f"v{index}",
        config={}, dataset="scenes", protocol="p", protocol_hash="0", seed=0, device="cpu",
        backend="reference", dtype="float32", wbits=2 + index % 3, abits=8,
    )  # fmt: skip
    result = Result("ok", "packed", 64, effective_bits=2.5, weight_bytes=index * 1000, metrics=metrics)
    return Record(identity, result, Measured(step_ms=1.0, step_ms_lo=0.9, step_ms_hi=1.1, peak_bytes=2**20))


@pytest.fixture(scope="module")
def board() -> Board:
    return board_rows.board(board_rows.entry(_cell(index)) for index in range(ROWS))


@pytest.fixture(scope="module")
def driver(board: Board, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    page: Path = tmp_path_factory.mktemp("page") / "board.html"
    page.write_text(render([board]), encoding="utf-8")
    with chromium() as opened:
        opened.get(page.as_uri())
        yield opened


@pytest.mark.parametrize("rows", ["first 100 laid out", "all laid out"])
@pytest.mark.parametrize("action", _ACTIONS)
def test_page(benchmark: Any, driver: Any, action: str, rows: str) -> None:
    driver.refresh()
    if rows == "all laid out":
        driver.execute_script("document.querySelector('.more').click()")
    benchmark.pedantic(
        driver.execute_async_script, (_ACTIONS[action] + _PAINTED,), rounds=15, warmup_rounds=2
    )


def test_show(benchmark: Any, board: Board, tmp_path: Path) -> None:
    board_rows.write(tmp_path, board)
    command = (
        "import sys; from harness.cli import call; call(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    arguments = [sys.executable, "-c", command, "leaderboard", "show", "--board", str(tmp_path)]
    benchmark.pedantic(
        subprocess.run, (arguments,), {"check": True, "stdout": subprocess.DEVNULL}, rounds=5, warmup_rounds=1
    )
