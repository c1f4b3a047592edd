"""The command line: `harness run`, `list`, `report` and `show`.

Importing it, and printing help, touches neither torch, diffusers nor pandas: every command imports what it
needs when it runs. Whatever the user does wrong is one line on the error stream and exit code 2.
"""

from __future__ import annotations

import os
import sys

import typer

from harness.cli.gating import gate_command
from harness.cli.listing import list_command
from harness.cli.planning import plan_command
from harness.cli.reporting import report_command, show_command
from harness.cli.running import run_command
from harness.errors import UserError

USER_MISTAKE, INTERRUPTED = 2, 130
# Newer versions of typer carry their own copy of click; the base class is reached alike in all of them.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="harness",
    help="Benchmark of low-bit quantization methods for diffusion models.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("run", help="Quantize, generate, measure and compare every cell of a grid.")(run_command)
app.command("list", help="List models, methods, datasets or metrics.")(list_command)
app.command("report", help="Print the table of a run folder.")(report_command)
app.command("show", help="Print everything known of one cell.")(show_command)
app.command("plan", help="Cells, time, disk and what could be told apart, before running.")(plan_command)
app.command("gate", help="Compare a run with a baseline: pass, fail or undecided.")(gate_command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        0 all cells ok, 1 some cell failed, 2 the user's mistake, 130 interrupted; of `gate` 0 passed,
        1 failed, 3 undecided.
    """
    try:
        result = app(args=arguments or ["--help"], prog_name="harness", standalone_mode=False)
    except UserError as error:
        return _complain(str(error))
    except _USAGE_ERROR as error:
        return _complain(error.format_message())  # type: ignore[attr-defined]
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    return int(result or 0) if arguments else USER_MISTAKE


def _complain(message: str) -> int:
    print(f"harness: {' '.join(message.split())}", file=sys.stderr)
    return USER_MISTAKE
