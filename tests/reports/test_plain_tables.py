"""The plain table, laid out by hand because it is fast, says and looks what rich's does."""

import io

import pytest
from rich.console import Console

from harness.reports.formats.layout import lay_out
from harness.reports.formats.table import _plain, _table, print_document


def drawn(records, width, draw):
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, force_terminal=False)
    print_document(lay_out(records), console, draw)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def sets(record, grid):
    yield grid
    yield [record("reference", 16)]
    yield [record("x" * 40), record("reference", 16), record(variant="key=" + "word " * 12)]
    yield [record("漢字", 2), record(state="oom", metrics={}, effective_bits=None), record("a\u202eb [red]")]
    yield []


@pytest.mark.parametrize("width", [60, 100, 130, 160])
def test_it_is_the_same_line_by_line(record, grid, width):
    for records in sets(record, grid):
        assert drawn(records, width, _plain) == drawn(records, width, _table)


def test_it_is_what_is_drawn_where_nothing_has_to_wrap(grid):
    seen = []

    def draw(sheet, keys, console):
        seen.append(_plain(sheet, keys, console))
        return seen[-1]

    drawn(grid, 160, draw)
    assert [type(one).__name__ for one in seen] == ["Text", "Text"]
