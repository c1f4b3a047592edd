"""The leaderboard: append-only rows in git, one file for each protocol; its rows lie beside this module.

docs/leaderboard.md describes the files.
"""

from harness.reports.leaderboard.chain import (
    LINES,
    SEAL,
    Board,
    board_name,
    check_extends,
    extended,
    parse_board,
    read_board,
    read_boards,
)
from harness.reports.leaderboard.entry import FIRST, IMAGES, Entry, shorten, to_line, utc, values_digest
from harness.reports.leaderboard.history import Step, commit_range, hints, latest, step_line, steps

__all__ = [
    "FIRST",
    "IMAGES",
    "LINES",
    "SEAL",
    "Board",
    "Entry",
    "Step",
    "board_name",
    "check_extends",
    "commit_range",
    "extended",
    "hints",
    "latest",
    "parse_board",
    "read_board",
    "read_boards",
    "shorten",
    "step_line",
    "steps",
    "to_line",
    "utc",
    "values_digest",
]
