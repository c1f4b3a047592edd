"""Adding a run's cells to the leaderboard, and verifying them, on the toy world and in a git tree."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from dataclasses import replace
from hashlib import sha256

import pytest
from PIL import Image
from rich.console import Console
from toy_world import ToyWorld

import harness.leaderboard
from harness.cli import call
from harness.git import Commit, commit_of, files_at, subjects
from harness.reports.leaderboard import board_name, extended, read_boards
from harness.reports.leaderboard.entry import canonical, digest
from harness.reports.record import read_records
from harness.reproduce import exit_code, reproduce
from harness.request import Request

HERE = Commit("1" * 40, dirty=False)


@pytest.fixture
def board(tmp_path):
    return tmp_path / "board"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return tmp_path_factory.mktemp("stored") / "run"


@pytest.fixture
def sources(monkeypatch):
    """The toy world at a known commit, its models with digests that look like some."""
    model = ToyWorld.model

    def with_digest(self, name, protocol, paths):
        return replace(model(self, name, protocol, paths), digest=sha256(name.encode()).hexdigest())

    monkeypatch.setattr(ToyWorld, "model", with_digest)
    monkeypatch.setattr(harness.leaderboard, "commit_of", lambda *_: HERE)


@pytest.fixture
def run(toy, stored, sources):
    """A run of the toy world, made of the commit that is checked out."""
    if stored.exists():
        shutil.copytree(stored, toy.out)
    else:
        toy.run(methods=("fine", "weighty"), prompts=20)
        shutil.copytree(toy.out, stored)
    toy.trace_file.write_text("")
    return toy


def add(run, board, *options):
    return call(["leaderboard", "add", str(run.out), "--board", str(board), *options])


def entries(board):
    return [entry for held in read_boards(board) for entry in held.entries]


def verify(board, *options):
    return call(["leaderboard", "verify", "--board", str(board), *options])


def test_a_row_says_what_the_run_folder_says(run, board, capsys):
    assert add(run, board) == 0
    (held,) = read_boards(board)
    header = json.loads((run.out / "run.json").read_text())
    assert held.name == f"scenes-default-{header['hash']}"
    records = {record.identity.cell: record for record in read_records(run.out)}
    assert {e.record.identity.cell for e in held.entries} == set(records)
    assert "3 rows added" in capsys.readouterr().out
    for entry in held.entries:
        record = records[entry.record.identity.cell]
        cell = json.loads((run.out / "cells" / record.identity.cell / "cell.json").read_text())
        values = record.result.per_prompt["brightness"]
        assert (entry.weights, entry.fingerprint) == (cell["weights"], cell["fingerprint"])
        assert (entry.commit, entry.dirty, entry.block) == (HERE.name, False, 16)
        assert entry.first["brightness"] == values[:8]
        assert entry.per_prompt["brightness"] == digest(canonical(values).encode())
        assert len(set(entry.images)) == 8
        assert entry.record.result.metrics.keys() == record.result.metrics.keys()


def test_images_are_known_by_their_pixels(run, board):
    """Independent of the encoder: the digest of the size and the RGB bytes."""
    assert add(run, board) == 0
    entry = entries(board)[0]
    block = run.out / "cells" / entry.record.identity.cell / "blocks" / "0000"
    with Image.open(block / "03.png") as image:
        expected = sha256(f"{image.width}x{image.height} RGB\n".encode() + image.convert("RGB").tobytes())
    assert entry.images[3] == expected.hexdigest()


def test_only_the_cells_asked_for_and_each_once(run, board, capsys):
    key = run.cell("fine").name
    assert add(run, board, "--cell", key[:6]) == 0
    assert [entry.record.identity.cell for entry in entries(board)] == [key]
    capsys.readouterr()
    assert add(run, board) == 2
    assert f"cell {key} is there already" in capsys.readouterr().err
    assert len(entries(board)) == 1
    assert add(run, board, "--cell", "zzzz") == 2
    assert "unknown cell 'zzzz'" in capsys.readouterr().err


def test_failed_cells_are_left_out_and_counted(toy, sources, board, capsys):
    toy.run(methods=("fine", "nans"), prompts=3)
    assert add(toy, board) == 0
    assert "1 cells did not finish" in capsys.readouterr().out
    assert {entry.record.identity.method for entry in entries(board)} == {"reference", "fine"}
    assert {len(entry.images) for entry in entries(board)} == {3}


def test_other_sources_get_no_commit(run, board, monkeypatch, capsys):
    monkeypatch.setattr(ToyWorld, "fingerprint", lambda self, device: {"generating": "changed since"})
    assert add(run, board) == 0
    assert {entry.commit for entry in entries(board)} == {None}
    assert "no commit is noted of reference, fine, weighty: made by other sources" in capsys.readouterr().out


DAMAGE = {
    "a record": ("record.json", '"n": 20', '"n": 21', "record or cell.json was changed"),
    "an identity": (
        "cell.json",
        '"backend": "reference"',
        '"backend": "other"',
        "record or cell.json was changed",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_was_edited_in_the_run_is_not_added(run, board, capsys, name):
    file, old, new, message = DAMAGE[name]
    path = run.cell("fine") / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert add(run, board) == 2
    assert message in capsys.readouterr().err
    assert not board.exists()


def test_an_edited_image_is_not_added(run, board, capsys):
    path = run.cell("fine") / "blocks" / "0000" / "02.png"
    path.write_bytes(path.with_name("03.png").read_bytes())
    assert add(run, board) == 2
    assert "0000 is missing or damaged" in capsys.readouterr().err


def test_rows_come_out_again(run, board, capsys):
    add(run, board)
    capsys.readouterr()
    assert verify(board) == 0
    out = capsys.readouterr().out
    assert out.count("\nsame ") == 3
    assert run.trace("generate")
    assert "sources, libraries" not in out


def test_only_one_row_is_made_again_with_its_reference(run, board, capsys):
    add(run, board)
    assert verify(board, run.cell("weighty").name[:8]) == 0
    assert capsys.readouterr().out.count("\nsame ") == 1
    # Two cells, one block of 16 prompts each: eight images are kept, but a batch is made whole.
    assert [line.split()[-1] for line in run.trace("generate")] == ["16", "16"]
    assert verify(board, "zzz") == 2


def test_files_alone_are_checked_without_generating(run, board, capsys):
    add(run, board)
    assert verify(board, "--no-generate") == 0
    assert "3 rows in 1 files; every line, the chains and seals hold" in capsys.readouterr().out
    assert run.trace() == []


def test_a_damaged_file_is_not_verified(run, board, capsys):
    add(run, board)
    path = next(board.glob("*.jsonl"))
    path.write_text(path.read_text().replace('"n":20', '"n":21', 1))
    assert verify(board) == 1
    out = capsys.readouterr()
    assert "not verified" in out.out
    assert "line 2: the chain is broken" in out.out
    assert call(["leaderboard", "show", "--board", str(board)]) == 2


def remade(run, board, **changes):
    """Rewrite the first row of a method as a liar would, chain and seal included, and make it again."""
    add(run, board)
    (held,) = read_boards(board)
    rows = [
        replace(entry, **changes) if entry.record.identity.method == "fine" else entry
        for entry in held.entries
    ]
    rows = extended(replace(held, entries=(), lines=b""), rows).entries
    found = reproduce(rows, board / "made", Request(workers=2), Console(file=io.StringIO()))
    return {one.entry.record.identity.method: one for one in found}, exit_code(found)


def test_other_images_are_found(run, board):
    found, code = remade(run, board, images=["f" * 64] * 8)
    assert found["fine"].finding == "differs"
    assert found["fine"].detail.startswith("0 of 8 images are the same")
    assert found["reference"].finding == "same"
    assert code == 1


def test_what_cannot_be_made_fails_in_one_line(run, board, monkeypatch):
    monkeypatch.setattr(ToyWorld, "methods", ("weighty",))
    found, code = remade(run, board)
    assert found["fine"].finding == "failed"
    assert "unknown method 'fine'" in found["fine"].detail
    assert code == 1


def test_a_variant_is_made_with_its_settings(toy, sources, board, capsys):
    toy.run(settings=("fine.group=32",), prompts=8, block=4, seed=5)
    add(toy, board)
    capsys.readouterr()
    assert verify(board) == 0
    assert capsys.readouterr().out.count("\nsame ") == 2


# --- in a git tree


@pytest.fixture
def tree(run, board):
    """A git tree that holds the leaderboard."""
    add(run, board, "--cell", run.cell("fine").name)
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first rows"]):
        git(board, *arguments)
    return board


def git(folder, *arguments):
    known = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *known, *arguments], check=True, capture_output=True)


def test_only_rows_added_since_a_revision_are_made_again(run, tree, capsys):
    add(run, tree, "--cell", run.cell("weighty").name)
    capsys.readouterr()
    assert verify(tree, "--since", "HEAD") == 0
    out = capsys.readouterr().out
    assert out.count("\nsame ") == 1
    assert "weighty" in out
    assert verify(tree, "--since", "nothing") == 2
    assert "no such revision" in capsys.readouterr().err
    assert verify(tree, "--since", "--output=x") == 2


def test_a_rewritten_history_is_found_by_git(run, tree, capsys):
    for path in tree.glob("*.json*"):
        path.unlink()
    add(run, tree, "--cell", run.cell("weighty").name)
    assert verify(tree) == 0
    capsys.readouterr()
    assert verify(tree, "--since", "HEAD") == 1
    assert "line 1: not what it was at HEAD" in capsys.readouterr().out
    for path in tree.glob("*.json*"):
        path.unlink()
    assert verify(tree, "--since", "HEAD") == 1
    assert "is gone; it was there at HEAD" in capsys.readouterr().out


def test_what_git_knows(tmp_path):
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    assert commit_of(folder) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "x.jsonl").write_text("1\n")
    assert commit_of(folder) is None  # in a tree, but not of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    first = commit_of(folder)
    assert first is not None
    assert not first.dirty
    (tmp_path / "x.jsonl").write_text("1\n2\n")
    assert commit_of(folder) == Commit(first.name, dirty=True)
    assert commit_of(folder, "**/*.jsonl") == first
    assert files_at(tmp_path, "HEAD", ".jsonl") == {"x.jsonl": b"1\n"}
    assert files_at(folder, "HEAD", ".jsonl") == {}
    git(tmp_path, "commit", "-qam", "two")
    second = commit_of(folder)
    assert [line.split(" ", 1)[1] for line in subjects(folder, f"{first.name}..{second.name}", 5)] == ["two"]
    assert subjects(folder, f"{'0' * 40}..{second.name}", 5) == []


def test_names_of_boards_are_those_of_their_protocols(run, board):
    add(run, board)
    assert {board_name(entry) for entry in entries(board)} == {path.stem for path in board.glob("*.jsonl")}
