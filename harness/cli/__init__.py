"""The command line: one module per command.

Importing it, and printing help, touches neither torch, diffusers nor pandas: every command imports what it
needs when it runs. Whatever the user does wrong is one line on the error stream and exit code 2.
"""

from __future__ import annotations

import os
import sys

import typer

from harness.cli.benching import bench_app
from harness.cli.checking import check_method_command
from harness.cli.converting import convert_command
from harness.cli.doctor import doctor_command
from harness.cli.fetch import fetch_command
from harness.cli.gating import gate_command
from harness.cli.leaderboard import leaderboard_app
from harness.cli.listing import list_command
from harness.cli.paper import paper_command
from harness.cli.planning import plan_command
from harness.cli.prompts import leaks_command, prompts_command
from harness.cli.protocols import protocol_app
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
app.command("convert", help="Turn an original checkpoint into a folder for --model-path.")(convert_command)
app.command("paper", help="Print a paper's table, filled from records.")(paper_command)
app.add_typer(bench_app, name="bench")
app.command("show", help="Print everything known of one cell.")(show_command)
app.add_typer(protocol_app, name="protocol")
app.add_typer(leaderboard_app, name="leaderboard")
app.command("prompts", help="Print what a prompt file holds and what a protocol takes of it.")(
    prompts_command
)
app.command("fetch", help="Download the prompt files a protocol needs, with a manifest.")(fetch_command)
app.command("leaks", help="Count what calibration and evaluation prompts have in common.")(leaks_command)
app.command("doctor", help="Say what this machine can measure, and whether it does so right.")(doctor_command)
app.command("plan", help="Cells, time, disk and what could be told apart, before running.")(plan_command)
app.command("gate", help="Compare a run with a baseline: pass, fail or undecided.")(gate_command)
app.command("check-method", help="Try a method on a tiny UNet and DiT: determinism, bits, bytes, error.")(
    check_method_command
)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(call(sys.argv[1:] if arguments is None else arguments))


def call(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        0 all cells ok, 1 some cell failed, a checked file differs, a method or the gate fails, 2 the user's
        mistake, 3 the gate is undecided, 130 interrupted.
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
