"""Compare what `Launch` launches with what Triton does: run without TRITON_INTERPRET and without a GPU.

Kernels are compiled for compute capability 9.0; a driver that stands in for CUDA's writes launches down
instead of making them (`standin_driver`). Prints how many were compared.

python tests/support/compare_launches.py
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from standin_driver import STREAM, Driver, Launcher
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from harness.kernels import dispatch
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLinear
from harness.kernels.triton import launch as launches
from harness.kernels.triton.ready import Launch
from harness.kernels.weights import UniformWeight


@triton.jit
def add_kernel(out, x, y, count, scale, N: tl.constexpr, KIND: tl.constexpr):
    """Add what is there; different machine code for every type, alignment and kind of number."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    total = tl.load(x + at, mask=at < count, other=0).to(KIND) * scale
    if y is not None:
        total += tl.load(y + at, mask=at < count, other=0).to(KIND)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=at < count)


Written = tuple[Any, ...]
WRITTEN: list[Written] = []
ADDRESSES = 1 << 40
"""Where a process's memory begins, about: no number of a kernel is as large."""


class Writer(Launcher):
    """Writes down which machine code of which device is launched with what (see `described`)."""

    def __call__(self, *given: Any) -> None:
        """Take grid, stream, function, metadata and hooks, and the arguments of the kernel."""
        WRITTEN.append((self.code, given[:4], tuple(map(described, given[9:]))))


def described(given: Any) -> Any:
    """Return an argument as something two launches can agree on: of addresses and tensors the alignment."""
    if isinstance(given, Tensor):
        return described(given.data_ptr())
    if type(given) is int and given > ADDRESSES:
        return "address", given % 16
    if isinstance(given, TensorDescriptor):
        return described(given.base), given.shape, given.strides, given.block_shape, given.padding
    return type(given), given


def by(launch: Any, *given: Any, **constants: Any) -> Written:
    """Return what a call wrote down."""
    before = len(WRITTEN)
    launch(*given, **constants)
    assert len(WRITTEN) == before + 1, "one launch"
    return WRITTEN.pop()


def compare_arguments(driver: Driver) -> int:
    """Vary everything that Triton's choice depends on, each launch made by both; return how many."""
    memory = torch.zeros(256, dtype=torch.uint8)
    base = memory[-memory.data_ptr() % 16 :]
    half, single = base[:64].view(torch.float16), base[64:128].view(torch.float32)
    tensors = [(half, half, half), (half, single, None), (single, single, single), (half[1:], half, None)]
    tensors += [(half, single[1:], None), (half, single, half[4:]), (half, single, half[8:])]
    numbers = [(16, 1.0), (1, 1.0), (17, 1.0), (16, 16), (16, 1), (2**31, 2.0), (2**31 + 16, 2.0)]
    options = [{"N": 16, "KIND": tl.float32, "num_warps": 1}, {"N": 32, "KIND": tl.float32, "num_warps": 1}]
    options += [{"N": 16, "KIND": tl.float16, "num_warps": 1}, {"N": 16, "KIND": tl.float32, "num_warps": 2}]
    cases = [(each, numbers[0], options[0]) for each in tensors]
    cases += [(tensors[0], each, options[0]) for each in numbers[1:]]
    cases += [(tensors[0], numbers[0], each) for each in options[1:]]
    settled: dict[Any, Launch] = {}
    codes, count = set(), 0
    for device in (0, 1):
        driver.device = device
        for _ in range(2):  # first by Triton, then looked up
            for given, counted, constants in cases:
                of = repr(counted), repr(constants)
                launch = settled.setdefault(of, Launch(add_kernel, (2, 3), counted, constants))
                ours = by(launch, *given)
                theirs = by(add_kernel[(2, 3, 1)], *given, *counted, **constants)
                assert ours == theirs, (ours, theirs)
                codes.add(ours[0])
                count += 1
    driver.device = 0
    assert len(codes) >= 24, "these cases need different machine code"
    return count


def compare_layers() -> int:
    """Let layers run twice: what is looked up the second time is what Triton chose; return how many."""
    dispatch.triton_runs_on = launches.has_copy_engine = lambda _: True
    act = ActQuantizer(4, "group", "dynamic", True, scale_format="e8m0")
    branch = LowRankBranch(torch.ones(5, 128), torch.ones(32, 5))
    weight = UniformWeight(32, 128, 4, "narrow", 64, "e8m0")
    coded = PackedLinear(weight, act=act, branch=branch, smooth=torch.ones(128), bias=torch.ones(32))
    whole = PackedLinear(UniformWeight(32, 128, 3, "narrow"), act=ActQuantizer(6, symmetric=True))
    alone = PackedLinear(UniformWeight(32, 128, 4, "asymmetric", 64), bias=torch.ones(32))
    count = 0
    many, few = torch.ones(48, 128), torch.ones(3, 128, dtype=torch.float16)
    for layer, x in ((coded, many), (whole, many.half()), (alone, few)):
        runs = []
        for _ in range(2):
            WRITTEN.clear()
            with torch.no_grad(), dispatch.use_backend("triton"):
                layer(x)
            runs.append(list(WRITTEN))
        assert runs[0] == runs[1], layer.road_taken
        assert [written[1][3] for written in runs[0]] == [STREAM] * len(runs[0])
        count += len(runs[0])
    return count


def launched_with_hooks() -> list[bool]:
    """Return of four launches whether Triton made them: there is a hook that wants to know of the third."""
    launch, by_triton = Launch(add_kernel, (2, 3), (16, 1.0), {"N": 16, "KIND": tl.float32}), []
    made, x = launch._by_triton, torch.ones(16)
    launch._by_triton = lambda given: by_triton.append(True) or made(given)
    hooks, found = triton.knobs.runtime.launch_enter_hook, []
    for turn in range(4):
        by_triton.clear()
        if turn == 2:
            hooks.add(print)
        launch(x, x, x)
        hooks.remove(print)
        found.append(bool(by_triton))
    return found


def main() -> None:
    """Compare all."""
    driver = Driver(Writer)
    triton.runtime.driver.set_active(driver)
    assert launched_with_hooks() == [True, False, True, False]
    print(compare_arguments(driver), compare_layers())


if __name__ == "__main__":
    main()
