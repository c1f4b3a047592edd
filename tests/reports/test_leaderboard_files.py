"""Files of the leaderboard: the schema, the chain, the seal, and what hostile lines come to."""

import json
from dataclasses import replace

import board_rows
import pytest

from harness.reports.leaderboard import (
    Board,
    check_extends,
    extended,
    parse_board,
    read_board,
    read_boards,
    to_line,
)
from harness.reports.leaderboard.chain import FILE_LIMIT
from harness.reports.leaderboard.entry import LINE_LIMIT, canonical, digest, parse_line
from harness.reports.record import Metric

NAME = "main-3f9a1c2b7d"


@pytest.fixture
def rows(record):
    return [
        board_rows.entry(record(method, bits)) for method in ("reference", "ptq", "nf4") for bits in (2, 4)
    ]


@pytest.fixture
def held(rows):
    return board_rows.board(rows)


def test_a_board_comes_back_as_it_was_written(tmp_path, held, rows):
    board_rows.write(tmp_path, held)
    (read,) = read_boards(tmp_path)
    assert read == held
    assert [entry.record for entry in read.entries] == [entry.record for entry in rows]
    lines = held.lines.decode().splitlines()
    assert [json.loads(line)["previous"] for line in lines] == [
        "0" * 64,
        *(digest(x.encode()) for x in lines[:-1]),
    ]


def test_adding_keeps_every_byte_there_was(held, record):
    longer = extended(held, [board_rows.entry(record("svdquant", 4))])
    assert longer.lines.startswith(held.lines)
    assert check_extends(longer, held.lines, "before") == len(held.entries)
    assert longer.entries[-1].previous == held.last


def test_nothing_is_there_yet(tmp_path):
    assert read_boards(tmp_path) == []
    assert read_board(tmp_path, NAME) == Board(NAME, (), b"")
    with pytest.raises(ValueError, match="is no folder"):
        read_boards(tmp_path / "none")


def broken(held, change):
    """The message that changed lines are refused with; seal and number of lines stay."""
    lines = change(held.lines.decode().splitlines())
    with pytest.raises(ValueError, match=r"^[:,]") as caught:
        parse_board(held.name, "".join(line + "\n" for line in lines).encode(), held.seal)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300
    return str(caught.value)


def edit(index, old, new):
    def change(lines):
        assert old in lines[index]
        return [line.replace(old, new, 1) if i == index else line for i, line in enumerate(lines)]

    return change


EDITED = {
    "a figure of a middle line": (edit(2, '"n":64', '"n":65'), "line 4: the chain is broken"),
    "a figure of the last line": (edit(-1, '"n":64', '"n":65'), "the last line is not the one that"),
    "a line removed": (lambda lines: lines[:2] + lines[3:], "line 3: the chain is broken"),
    "the first line removed": (lambda lines: lines[1:], "line 1: the chain is broken"),
    "two lines exchanged": (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1: the chain is broken"),
    "a line cut off the end": (lambda lines: lines[:-1], "1 of 6 lines are gone from its end"),
    "all lines": (lambda lines: [], "6 of 6 lines are gone"),
    "a line said twice": (lambda lines: [*lines, lines[-1]], "line 7: the chain is broken"),
    "an empty line": (lambda lines: [*lines, ""], "line 7: no JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITED)
def test_edits_are_found(held, name):
    change, message = EDITED[name]
    if name == "a figure of the last line":
        lines = held.lines.decode().splitlines()
        lines[-1] = edit(0, '"n":64', '"n":65')([lines[-1]])[0]
        assert message in broken(held, lambda _: lines)
    else:
        assert message in broken(held, change)


def test_a_line_put_at_the_end_by_hand_is_found(held, record):
    forged = extended(held, [board_rows.entry(record("svdquant", 4))])
    with pytest.raises(ValueError, match="its seal ends at line 6; line 7 was not written by `add`"):
        parse_board(held.name, forged.lines, held.seal)


def test_a_rewritten_file_is_found_by_comparing_with_an_earlier_copy(held, rows):
    forged = board_rows.board([rows[0], replace(rows[1], dirty=True), *rows[2:]])
    assert parse_board(forged.name, forged.lines, forged.seal) == forged
    with pytest.raises(ValueError, match=r"main-3f9a1c2b7d.jsonl, line 2: not what it was at v1"):
        check_extends(forged, held.lines, "v1")
    with pytest.raises(ValueError, match="line 5: not what it was"):
        check_extends(board_rows.board(rows[:4]), held.lines, "v1")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"[" * 100_000, b'{"lines": "x", "last": ""}', b"\xff"]
)
def test_a_damaged_seal_is_named(tmp_path, held, content):
    path = board_rows.write(tmp_path, held)
    path.with_name(f"{held.name}.seal.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"seal.json is damaged"):
        read_boards(tmp_path)


def test_missing_and_linked_files_are_named(tmp_path, held):
    path = board_rows.write(tmp_path, held)
    seal = path.with_name(f"{held.name}.seal.json")
    kept = seal.read_bytes()
    seal.unlink()
    with pytest.raises(ValueError, match=r"cannot read main-3f9a1c2b7d.seal.json"):
        read_boards(tmp_path)
    seal.write_bytes(kept)
    moved = path.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is gone; its seal is still there"):
        read_boards(tmp_path)
    path.symlink_to(moved)
    with pytest.raises(ValueError, match="is a link"):
        read_boards(tmp_path)


def test_a_huge_file_is_not_read(tmp_path, held):
    path = board_rows.write(tmp_path, held)
    with path.open("r+b") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(ValueError, match="is larger than"):
        read_boards(tmp_path)


def test_a_cut_off_line_is_named(held):
    with pytest.raises(ValueError, match="the last line is cut off"):
        parse_board(held.name, held.lines[:-1], held.seal)


def test_a_row_of_another_protocol_does_not_enter(held, record):
    with pytest.raises(ValueError, match="a row of protocol main-other does not belong here"):
        extended(held, [board_rows.entry(record(protocol_hash="other"))])
    with pytest.raises(ValueError, match=r"line 1: a row of protocol main-3f9a1c2b7d does not belong here"):
        parse_board("another", held.lines, held.seal)


def test_the_same_cell_commit_and_machine_are_there_once(held, rows):
    with pytest.raises(ValueError, match="is there already"):
        extended(held, [rows[3]])
    again = extended(held, [replace(rows[3], commit=board_rows.COMMITS[1])])
    assert len(again.entries) == len(held.entries) + 1
    with pytest.raises(ValueError, match="is there already"):
        extended(again, [replace(rows[3], commit=board_rows.COMMITS[1], dirty=True)])


def changed(entry, **fields):
    data = json.loads(to_line(entry))
    for path, value in fields.items():
        *folders, last = path.split("__")
        place = data
        for name in folders:
            place = place[name]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return canonical(data)


HOSTILE = {
    "no JSON": ("{", "no JSON"),
    "a list": ("[]", "entry must be an object"),
    "a number": ("1", "entry must be an object"),
    "NaN": ('{"block":NaN}', "NaN is not JSON"),
    "deep": ("[" * 5000 + "]" * 5000, "nested too deeply"),
    "deep but readable": ('{"a":' * 100 + "1" + "}" * 100, "nested too deeply"),
    "a field twice": ('{"block":1,"block":2}', "not in canonical JSON"),
    "spaces": ('{"block": 1}', "not in canonical JSON"),
    "huge": ('"' + "x" * LINE_LIMIT + '"', "too many for a line"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_row_is_refused_in_one_line(name):
    line, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message) as caught:
        parse_line(line)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


WRONG = {
    "schema": ({"schema": 2}, "schema version 2 is not 1"),
    "unknown field": ({"extra": 1}, "unknown field 'extra'"),
    "missing field": ({"weights": ...}, "lacks the field 'weights'"),
    "type": ({"block": "16"}, "entry.block must be an integer"),
    "block": ({"block": 0}, "block must be 1 to 4096"),
    "previous": ({"previous": "0" * 63}, "previous is no sha256"),
    "weights": ({"weights": "x" * 64}, "weights is no sha256"),
    "date": ({"date": "2025-02-30T00:00:00Z"}, "date must look like"),
    "short date": ({"date": "2025-2-3T00:00:00Z"}, "date must look like"),
    "commit": ({"commit": "main"}, "commit is no commit's full name"),
    "dirty": ({"commit": None, "dirty": True}, "a commit that is not named"),
    "images": ({"images": []}, "images must hold 8 digests, not 0"),
    "an image": ({"images": ["x"] * 8}, "images holds what is no sha256"),
    "first": ({"first": {}}, "name different metrics"),
    "first values": ({"first__psnr": [1.0]}, "must hold 8 values, not 1"),
    "per_prompt": ({"per_prompt__psnr": "x"}, "per_prompt holds what is no sha256"),
    "fingerprint": ({"fingerprint__torch": "\u001b[31m"}, "control characters"),
    "key": ({"record__identity__cell": "../../etc"}, "no cell's key"),
    "method": ({"record__identity__method": "a\nb"}, "control characters"),
    "no method": ({"record__identity__method": ""}, "a name of 0 characters"),
    "long method": ({"record__identity__method": "x" * 201}, "a name of 201 characters"),
    "protocol": ({"record__identity__protocol": "a/b"}, "is no name"),
    "state": ({"record__result__state": "oom"}, "of a cell that ended as oom"),
    "no state": ({"record__result__state": "fine"}, "must be one of"),
    "n": ({"record__result__n": 0, "images": [], "first__psnr": []}, "has no prompts"),
    "negative": ({"record__result__weight_bytes": -1}, "negative size"),
    "values": ({"record__result__per_prompt": {"psnr": [1.0]}}, "belongs into first"),
    "log": ({"record__measured__log_tail": "x"}, "log_tail has no place"),
    "nothing": ({"record__result__metrics__psnr__value": None}, "metric without a value"),
    "record schema": ({"record__schema": 7}, "record has schema version 7, not 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_field_is_checked(rows, name):
    fields, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        parse_line(changed(rows[2], **fields))
    assert "\n" not in str(caught.value)


def test_markup_in_names_is_text(record):
    name = '<img src=x onerror="alert(1)">'
    entry = board_rows.entry(record(name, metrics={name: Metric(1.0)}, per_prompt={}))
    assert parse_line(to_line(entry)) == entry
