"""Every kernel compiles for every architecture it is offered on, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "support" / "compile_kernels.py"


@pytest.mark.parametrize(("arch", "kernels"), [(80, 56), (89, 79), (90, 85), (100, 83)])
def test_every_kernel_compiles(arch: int, kernels: int, tmp_path: Path) -> None:
    # The interpreter's switch is read when a kernel is declared: machine code needs a process without it.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(arch)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= kernels
