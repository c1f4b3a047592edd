"""Killing and interrupting a run in its own process, and going on from what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ARGUMENTS = ["run", "--models", "toy-a", "--methods", "fine,statistics", "--bits", "3,4", "--prompts", "64"]


def start(out: Path, trace: Path, delay: float) -> subprocess.Popen[str]:
    (trace.parent / "delay").write_text(str(delay))
    environment = {**os.environ, "TOY": str(trace.parent)}
    command = [sys.executable, str(HERE / "toy_cli.py"), *ARGUMENTS, "--out", str(out), "--workers", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=HERE)


def results(out: Path) -> dict[str, str]:
    from records import result_bytes

    return {path.parent.name: result_bytes(path.parent) for path in out.glob("cells/*/record.json")}


def wait_for(trace: Path, lines: int) -> None:
    """Wait until the run has come so far; the time limit only ends a run that hangs."""
    give_up = time.monotonic() + 60
    while not trace.exists() or len(trace.read_text().splitlines()) < lines:
        assert time.monotonic() < give_up, "the run does not get on"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(folder / "run", folder / "trace", 0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "5 rows" in out
    return results(folder / "run")


@pytest.mark.parametrize("after", [2, 9, 17])
def test_sigkill_then_the_same_command_gives_the_same_bytes(tmp_path, undisturbed, after):
    out, trace = tmp_path / "run", tmp_path / "trace"
    process = start(out, trace, 0.15)
    wait_for(trace, after)
    process.kill()
    process.communicate(timeout=30)
    assert len(results(out)) < 5
    finished = len(list(out.glob("cells/*/blocks/[0-9]*/digest.json")))
    time.sleep(0.6)  # its workers notice that it is gone, and end
    at_rest = trace.read_text()
    time.sleep(0.4)
    assert trace.read_text() == at_rest, "a worker outlived the run"

    trace.unlink()
    again = start(out, trace, 0)
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert results(out) == undisturbed
    redone = [line for line in trace.read_text().splitlines() if line.startswith("generate")]
    assert len(redone) <= 20 - finished


def test_ctrl_c_exits_130_and_leaves_a_resumable_run(tmp_path, undisturbed):
    out, trace = tmp_path / "run", tmp_path / "trace"
    process = start(out, trace, 0.5)
    wait_for(trace, 6)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "interrupted; run the same command again to go on from what is stored\n"
    again = start(out, trace, 0)
    again.communicate(timeout=120)
    assert again.returncode == 0
    assert results(out) == undisturbed


def test_a_full_disk_is_one_line_on_the_command_line(tmp_path):
    (tmp_path / "full").touch()
    environment = {**os.environ, "TOY": str(tmp_path)}
    command = [sys.executable, str(HERE / "toy_cli.py"), *ARGUMENTS, "--out", str(tmp_path / "run")]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=HERE, timeout=120, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is full; everything finished is kept" in done.stderr
