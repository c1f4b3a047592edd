"""`harness plan`."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.grid import takes_grid
from harness.errors import UserError
from harness.request import Request

if TYPE_CHECKING:
    from harness.timings import Timings

_UNITS = {"s": 1, "m": 60, "h": 3600}
_MOST_PROMPTS = 65_536
_LONGEST = 1000 * 3600.0


@takes_grid
def plan_command(
    request: Request,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time there is, as 30m or 2h: picks the prompts.")
    ] = None,
    seen: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A run whose timings are used.  [default: --out]")
    ] = None,
) -> int:
    """Print cells, time, disk and the smallest difference that could be found, before running."""
    from rich.console import Console

    from harness.cli.running import print_plan
    from harness.run import forecast
    from harness.timings import Timings, read_timings

    seconds = None if budget is None else parse_budget(budget)
    out = request.out
    source = seen if seen is not None else out
    there = source is not None and (seen is not None or (source / "cells").is_dir())
    timings = read_timings(source) if source is not None and there else Timings()
    if seconds is not None:
        request = replace(request, prompts=affordable(request, timings, seconds))
    console = Console()
    print_plan(console, *forecast(request, timings))
    console.print(effect_line(timings, request.prompts), highlight=False)
    return 0


def parse_budget(text: str) -> float:
    """Return the seconds of `90s`, `30m` or `2h`; raises UserError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip(), re.ASCII)
    if match is None or not float(match[1]) > 0:
        raise UserError(f"--budget {text!r:.60} is not a time; give one as 90s, 30m or 2h")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > _LONGEST:
        raise UserError(f"--budget {text!r:.60} is more than 1000h; name the images with --prompts")
    return seconds


def affordable(request: Request, timings: Timings, seconds: float) -> int:
    """Return the most prompts, in whole blocks, that the budget allows.

    Raises:
        UserError: nothing is known of a model's times, or one block takes longer than the budget.
    """
    from harness.outlook import totals
    from harness.run import duration, forecast

    def needed(n: int) -> float:
        plan, outlooks, workers = forecast(replace(request, prompts=n), timings)
        total, _ = totals(plan, outlooks, workers)
        if total is None:
            raise UserError("nothing is known of the times here; give --seen RUN with a run of these models")
        return total

    plan, _, _ = forecast(replace(request, prompts=1), timings)
    block = plan.protocol.base.block
    if (least := needed(block)) > seconds:
        raise UserError(
            f"--budget {duration(seconds)}: {block} prompts alone take about {duration(least)}; "
            "give more time or fewer cells"
        )

    def fits(blocks: int) -> bool:
        try:
            return needed(blocks * block) <= seconds
        except UserError:  # the prompt set ends before
            return False

    # Time grows with each block alike, but for those that are stored: a straight line is a good first guess.
    each = max(needed(2 * block) - least, least / _MOST_PROMPTS) if fits(2) else least
    most = min(_MOST_PROMPTS // block, max(1, round((seconds - least) / each)))
    lo, hi = (most, most + 1) if fits(most) else (1, most)
    while hi * block <= _MOST_PROMPTS and fits(hi):
        lo, hi = hi, 2 * hi
    while hi - lo > 1:
        middle = (lo + hi) // 2
        lo, hi = (middle, hi) if fits(middle) else (lo, middle)
    return lo * block


def effect_line(timings: Timings, n: int) -> str:
    """Return which difference of PSNR between two cells this many prompts would find."""
    from harness.reports.statistics import minimum_detectable_effect

    spreads = sorted(timings.spreads)
    if not spreads:
        return "smallest PSNR difference that would be found: unknown; give --seen RUN with finished cells"
    sd = spreads[len(spreads) // 2]
    found = minimum_detectable_effect(sd, n)
    shown = "none" if found is None else f"{found:.2f} dB"
    return (
        f"smallest PSNR difference found 4 times in 5 with {n} prompts: {shown} (paired spread {sd:.2f} dB)"
    )
