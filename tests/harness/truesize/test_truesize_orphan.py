"""The process that measures memory ends with the command that started it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.truesize.orphan import end_with

PARENT = """
import os, sys
from pathlib import Path
from true_sizes import reduced_recipe
from harness.truesize import memory

# The request is a pipe that nothing is written to: its reader, the child, waits for ever.
Path.write_text = lambda path, *_, **__: os.symlink(sys.argv[1], path)
memory.in_own_process(memory.MemoryRequest(reduced_recipe("dit-xl-2"), None, "cpu", "bfloat16", 1))
"""

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")


@linux
def test_a_command_that_is_ended_leaves_no_child(tmp_path: Path) -> None:
    pipe = tmp_path / "request"
    os.mkfifo(pipe)
    support = Path(__file__).parents[2] / "support"
    environment = {**os.environ, "PYTHONPATH": str(support)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(pipe)], env=environment)
    try:
        with pipe.open("wb", buffering=0) as writing:  # waits for the child to read
            parent.terminate()
            assert parent.wait(60) == -signal.SIGTERM
            gone = select.poll()
            gone.register(writing, 0)
            assert gone.poll(30_000) == [(writing.fileno(), select.POLLERR)]  # nobody reads any more
    finally:
        parent.kill()


@linux
def test_a_child_whose_parent_is_gone_ends() -> None:
    code = "from harness.truesize.orphan import end_with; end_with(2**22); print('went on')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "has ended" in ended.stderr


def test_elsewhere_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    end_with(-1)
