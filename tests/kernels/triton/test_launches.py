"""Launches that are looked up are those that Triton chooses, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "support" / "compare_launches.py"


def test_launches_are_those_of_triton(tmp_path: Path) -> None:
    # The interpreter's switch is read when a kernel is declared: machine code needs a process without it.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    by_arguments, of_layers = map(int, done.stdout.split())
    assert by_arguments == 64
    assert of_layers == 9  # four kernels of float8, three of int8, two of few tokens
