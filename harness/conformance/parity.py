"""Whether packed layers compute on a device what they mean: every kind of layer, format and odd shape.

A case runs a layer as a model would and compares with the float64 definition and with the reference backend
on the CPU. Before each run memory is poisoned: buffers torch hands out hold NaN, and a run on NaN inputs
leaves it in whatever a backend keeps between calls, so that a value which was not written shows. Nothing here
depends on CUDA.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import deterministic

from harness.bench.layers import road_of
from harness.conformance.cases import CASES, Case
from harness.conformance.definition import layer_float64, relative_error
from harness.kernels.layers import PackedLayer

TOLERANCE = 4e-3
"""Largest relative error, Frobenius norm: rounding the output to bf16 alone is 0.0017."""


@dataclass(frozen=True)
class Parity:
    """What one case found.

    Attributes:
        case: its name.
        ok: whether all of it holds.
        road: kernels that ran.
        error: relative error of the output against float64; NaN where a value was not written.
        reference_error: relative difference from the reference backend on the CPU, in float32.
        detail: what does not hold, one line, else empty.
    """

    case: str
    ok: bool
    road: str
    error: float
    reference_error: float
    detail: str = ""


def check_parity(
    device: torch.device | str,
    cases: Iterable[Case] = CASES,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tolerance: float = TOLERANCE,
) -> Iterator[Parity]:
    """Run cases on a device and yield what each found.

    Args:
        device: where the layers run.
        cases: to run.
        dtype: of inputs and outputs.
        tolerance: largest relative error, against float64 and against the reference backend.
    """
    for case in cases:
        try:
            yield _check(case, torch.device(device), dtype, tolerance)
        except Exception as error:  # a kernel that cannot be compiled or launched is a finding
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
            yield Parity(case.name, False, "", math.nan, math.nan, reason)


def _check(case: Case, device: torch.device, dtype: torch.dtype, tolerance: float) -> Parity:
    layer, values = case.build()
    x = values.to(dtype)
    with torch.no_grad():
        expected = layer_float64(layer, x)
        beside = reference_output(layer, x)
        there, given = copy.deepcopy(layer).to(device), x.to(device)
        with poisoned():
            there(torch.full_like(given, math.nan))
            found = there(given).cpu()
            again = there(given).cpu()
        road = road_of(there, given)
    error, apart = relative_error(found, expected), relative_error(found, beside)
    wrong = []
    if found.shape != expected.shape or found.dtype != dtype:
        wrong.append(f"the output is {found.dtype} {tuple(found.shape)}")
    if not bool(torch.isfinite(found).all()):
        wrong.append(f"{int((~torch.isfinite(found)).sum())} of {found.numel()} values were not written")
    elif not (error <= tolerance and apart <= tolerance):
        wrong.append(f"the error is above {tolerance:g}")
    if not torch.equal(found.nan_to_num(), again.nan_to_num()):
        wrong.append("a second run gives another result")
    return Parity(case.name, not wrong, road, error, apart, "; ".join(wrong))


def reference_output(layer: PackedLayer, x: Tensor) -> Tensor:
    """Return the reference backend's output on the CPU in float32, not rounded to the dtype of `x`."""
    y: Tensor = copy.deepcopy(layer).to("cpu")(x.cpu().to(torch.float32))
    return y


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Let every buffer that torch allocates uninitialized hold NaN (or the largest integer) first."""
    mode, warn = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have no deterministic form
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
            yield
        finally:
            torch.use_deterministic_algorithms(mode, warn_only=warn)
            deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
