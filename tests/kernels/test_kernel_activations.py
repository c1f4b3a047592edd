"""Activation quantizers: the grid, whose range it is, and the explicit step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer, StepIndex, bind_step_index


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + 0.3


def rounded(values: Any, bits: int, symmetric: bool, lo: float, hi: float) -> Any:
    """One range of values on its grid, in float64 from the definition."""
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        scale = max(abs(lo), abs(hi)) / largest
        return np.clip(np.round(values / scale), -largest, largest) * scale
    levels = 2**bits - 1
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = (hi - lo) / levels
    zero = np.clip(np.round(-lo / scale), 0, levels)
    return (np.clip(np.round(values / scale + zero), 0, levels) - zero) * scale


def runs(x: np.ndarray, granularity: str, group: int) -> list[tuple[Any, ...]]:
    """Index of every run of values that shares a range."""
    if granularity == "tensor":
        return [(n,) for n in range(x.shape[0])]
    tokens = list(np.ndindex(x.shape[:-1]))
    if granularity == "token":
        return [(*token, slice(None)) for token in tokens]
    starts = range(0, x.shape[-1], group)
    return [(*token, slice(start, start + group)) for token in tokens for start in starts]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", ["token", "tensor", "group"])
@pytest.mark.parametrize("shape", [(3, 5, 24), (2, 20), (2, 3, 2, 10)])
def test_dynamic_ranges_follow_the_definition(
    bits: int, symmetric: bool, granularity: str, shape: tuple[int, ...]
) -> None:
    x = inputs(*shape)
    quantizer = ActQuantizer(bits, granularity, "dynamic", symmetric, group=8)  # type: ignore[arg-type]
    expected = x.double().numpy().copy()
    for run in runs(expected, granularity, 8):
        expected[run] = rounded(expected[run], bits, symmetric, expected[run].min(), expected[run].max())
    got = quantizer(x)
    assert got.dtype == torch.float32
    # A tie may fall to either side in float32: then the values differ by a whole step, but rarely.
    close = np.isclose(got.double().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert close.mean() > 0.995


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from(["token", "tensor", "group"]))
def test_error_is_at_most_half_a_step_and_levels_few(seed: int, bits: int, granularity: str) -> None:
    x = inputs(2, 3, 20, seed=seed)
    got = ActQuantizer(bits, granularity, group=8)(x).numpy()  # type: ignore[arg-type]
    values = x.numpy()
    for run in runs(values, granularity, 8):
        step = (max(values[run].max(), 0) - min(values[run].min(), 0)) / (2**bits - 1)
        # Half a step for the value and half a step for the rounded zero point at the ends.
        assert np.abs(got[run] - values[run]).max() <= step * (1 + 1e-5)
        assert len(np.unique(np.round(got[run] / step))) <= 2**bits


@given(st.integers(0, 10**6), st.integers(2, 8), st.booleans())
def test_a_second_pass_changes_nothing(seed: int, bits: int, symmetric: bool) -> None:
    limits = torch.tensor([-1.0, 2.0])
    quantizer = ActQuantizer(bits, "tensor", "static", symmetric, range=limits)
    once = quantizer(inputs(2, 30, seed=seed))
    assert torch.equal(quantizer(once), once)


@pytest.mark.parametrize("granularity", ["token", "tensor", "group"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(4, 6, 20), (4, 3, 5, 5), (4, 16)])
def test_a_sample_does_not_depend_on_its_neighbours(
    granularity: str, symmetric: bool, shape: tuple[int, ...]
) -> None:
    x = inputs(*shape) * torch.tensor([1.0, 100.0, 0.01, 3.0]).view(-1, *[1] * (len(shape) - 1))
    quantizer = ActQuantizer(4, granularity, symmetric=symmetric, group=8)  # type: ignore[arg-type]
    batch = quantizer(x)
    for index in range(4):
        assert torch.equal(batch[index : index + 1], quantizer(x[index : index + 1]))


def test_static_ranges_saturate() -> None:
    quantizer = ActQuantizer(8, "tensor", "static", range=torch.tensor([[-1.0, 1.0]]))
    got = quantizer(torch.tensor([[-5.0, 0.0, 0.5, 7.0]]))
    assert got.tolist()[0] == pytest.approx([-1.0, 0.0, 0.5, 1.0], abs=2 / 255)
    assert float(got[0, 1]) == 0.0


def test_shifted_inputs_use_all_levels_above_the_shift() -> None:
    """SVDQuant's unsigned grid after GELU: half the step of the signed grid."""
    x = torch.nn.functional.gelu(inputs(64, 64) * 2)
    unsigned = ActQuantizer(4, "group", symmetric=True, shift=0.171875)(x)
    signed = ActQuantizer(4, "group", symmetric=True)(x)
    assert float((unsigned - x).square().mean()) < 0.4 * float((signed - x).square().mean())
    step = (x.amax(-1, keepdim=True) + 0.171875) / 15
    codes = (unsigned + 0.171875) / step
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert (int(codes.round().min()), int(codes.round().max())) == (0, 15)


class Two(nn.Module):
    """Two per-step quantizers and a dynamic one."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.tensor([[-1.0, 1.0], [-2.0, 2.0], [-4.0, 4.0]])
        self.first = ActQuantizer(8, "tensor", "per_step", range=table)
        self.second = ActQuantizer(8, "tensor", "per_step", range=table * 2)
        self.third = ActQuantizer(8)


def test_one_step_index_serves_all_quantizers() -> None:
    model, index = Two(), StepIndex()
    assert bind_step_index(model, index) == 2
    x = torch.tensor([[100.0, -100.0]])
    for step, limit in enumerate([1.0, 2.0, 4.0]):
        index.value = step
        assert float(model.first(x)[0, 0]) == pytest.approx(limit, rel=0.01)
        assert float(model.second(x)[0, 0]) == pytest.approx(2 * limit, rel=0.01)


@pytest.mark.parametrize("step", [3, 100, -1])
def test_a_step_outside_the_table_is_an_error(step: int) -> None:
    model = Two()
    bind_step_index(model, StepIndex(step))
    with pytest.raises(RuntimeError, match=f"step {step} .* 3 steps"):
        model.first(torch.ones(1, 2))


def test_a_missing_step_is_an_error() -> None:
    model = Two()
    with pytest.raises(RuntimeError, match="without a step index"):
        model.first(torch.ones(1, 2))
    bind_step_index(model, StepIndex())
    with pytest.raises(RuntimeError, match="without a step index"):
        model.first(torch.ones(1, 2))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", ["token", "tensor", "group"])
@pytest.mark.parametrize("fill", [0.0, 1e-42, 5.0, -5.0])
def test_constant_inputs_are_safe(symmetric: bool, granularity: str, fill: float) -> None:
    x = torch.full((2, 3, 20), fill)
    got = ActQuantizer(4, granularity, symmetric=symmetric, group=8)(x)  # type: ignore[arg-type]
    assert torch.allclose(got, x, rtol=1e-5, atol=1e-40)


def test_nan_inputs_stay_visible() -> None:
    x = inputs(2, 8)
    x[0, 3] = float("nan")
    got = ActQuantizer(8, "tensor")(x)
    assert bool(got[0].isnan().any())
    assert not bool(got[1].isnan().any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype_comes_back_as_float32(dtype: torch.dtype) -> None:
    assert ActQuantizer(8)(inputs(2, 8).to(dtype)).dtype == torch.float32
    assert ActQuantizer(8)(torch.empty(0, 8, dtype=dtype)).shape == (0, 8)


@pytest.mark.parametrize(
    "quantizer",
    [
        ActQuantizer(6, "token"),
        ActQuantizer(4, "group", symmetric=True, group=16, shift=0.25),
        ActQuantizer(8, "tensor", "static", range=torch.tensor([-1.0, 3.0])),
        ActQuantizer(8, "tensor", "per_step", range=inputs(7, 2)),
    ],
)
def test_spec_rebuilds_the_quantizer(quantizer: ActQuantizer) -> None:
    empty = ActQuantizer.from_spec(json.loads(json.dumps(quantizer.spec())))
    empty.load_state_dict(quantizer.state_dict())
    bind_step_index(nn.ModuleList([quantizer, empty]), StepIndex(0))
    x = inputs(2, 5, 32)
    assert torch.equal(empty(x), quantizer(x))
    assert empty.spec() == quantizer.spec()
    assert quantizer.table_bytes() == 4 * quantizer.steps


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"bits": 9},
        {"bits": 1, "symmetric": True},
        {"granularity": "row"},
        {"mode": "sometimes"},
        {"mode": "static"},
        {"granularity": "token", "mode": "static", "range": torch.ones(1, 2)},
        {"granularity": "tensor", "mode": "static", "range": torch.ones(2, 2)},
        {"granularity": "tensor", "mode": "per_step", "range": torch.ones(2, 3)},
        {"granularity": "tensor", "mode": "per_step", "range": torch.full((2, 2), float("nan"))},
        {"range": torch.ones(1, 2)},
        {"shift": 0.1},
        {"group": 0},
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ActQuantizer(**{"bits": 8, **options})


@pytest.mark.parametrize(
    "change",
    [
        {"bits": None},
        {"granularity": "row"},
        {"mode": 3},
        {"symmetric": "no"},
        {"group": 0},
        {"shift": "x"},
        {"shift": float("nan")},
        {"steps": 10**9},
        {"steps": 4},
    ],
)
def test_wrong_specs_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ActQuantizer.from_spec({**ActQuantizer(8).spec(), **change})
