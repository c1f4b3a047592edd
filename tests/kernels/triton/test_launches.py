"""Launches that are looked up are those that Triton chooses, without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

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


class Elsewhere(Tensor):
    """Says that it lies on the second device."""

    def get_device(self) -> int:
        """Return the second device."""
        return 1


def test_a_launch_is_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton import ready

    current, launched = [0], []

    @contextmanager
    def on(device: int) -> Iterator[None]:
        before, current[0] = current[0], device
        yield
        current[0] = before

    active = SimpleNamespace(get_current_device=lambda: current[0])
    monkeypatch.setattr(ready, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(torch.cuda, "device", on)
    kernel: Any = SimpleNamespace(arg_names=[])
    launch = ready.Launch(kernel, (1, 1), (), {})
    launch.compiles = True
    monkeypatch.setattr(launch, "_by_triton", lambda _: launched.append(current[0]))
    launch(torch.ones(1).as_subclass(Elsewhere), torch.ones(1))
    launch(torch.ones(1))
    assert (launched, current) == ([1, 0], [0])


def test_tensors_elsewhere_are_left_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton import ready

    active = SimpleNamespace(get_current_device=lambda: 0)
    monkeypatch.setattr(ready, "driver", SimpleNamespace(active=active))
    kernel: Any = SimpleNamespace(arg_names=[])
    launch, by_triton = ready.Launch(kernel, (1, 1), (), {}), []
    launch.compiles = True
    monkeypatch.setattr(launch, "_by_triton", by_triton.append)
    monkeypatch.setattr(launch, "known", None)  # is not asked: an address says nothing about who can read it
    given = torch.ones(1), torch.ones(1).as_subclass(Elsewhere)
    launch(*given)
    assert len(by_triton) == 1
    assert [each is other for each, other in zip(by_triton[0], given, strict=True)] == [True, True]


class Here(Tensor):
    """Says that it lies on the first device."""

    def get_device(self) -> int:
        """Return the first device."""
        return 0


def test_what_is_known_of_a_device_says_nothing_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton import ready

    class Compiled:
        function, packed_metadata = "code", ()

        def run(self, *_: object) -> None:
            runs.append("known")

    def by_triton(_: object) -> Compiled:
        runs.append("triton")
        return Compiled()

    runs: list[str] = []
    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda _: 0)
    monkeypatch.setattr(ready, "driver", SimpleNamespace(active=active))
    monkeypatch.setattr(ready, "CompiledKernel", Compiled)
    kernel: Any = SimpleNamespace(arg_names=[])
    launch = ready.Launch(kernel, (1, 1), (), {})
    launch.compiles = True
    monkeypatch.setattr(launch, "_by_triton", by_triton)
    for tensor in (torch.ones(4).as_subclass(Here),) * 2 + (torch.ones(4),):
        launch(tensor)
    assert runs == ["triton", "known", "triton"]
