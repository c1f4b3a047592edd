"""What a layer remembers of how it runs: right after the layer has changed, never stored."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from harness.kernels import dispatch
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight

HALF = torch.float16


def uniform(bits: int, grid: str = "narrow", scales: str = "float", seed: int = 0) -> UniformWeight:
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    codes = quantize_uniform(w, bits, grid=grid, group=32, scale_format=scales)
    return UniformWeight.pack(codes, bits, grid, 32)


def quantizer(scales: str) -> ActQuantizer:
    return ActQuantizer(4, "group", "dynamic", True, group=32, scale_format=scales)


def road(layer: PackedLinear, dtype: torch.dtype = torch.float32, tokens: int = 3) -> str:
    with dispatch.use_backend("triton"):
        return layer.road(torch.ones(tokens, 64, dtype=dtype, device=layer.weight.packed.device))


@pytest.fixture(autouse=True)
def _a_cpu_takes_the_kernels_roads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_runs_on", lambda _: True)


@pytest.fixture
def layer() -> PackedLinear:
    branch = LowRankBranch(torch.ones(2, 64), torch.ones(16, 2))
    return PackedLinear(uniform(4, scales="e8m0"), act=quantizer("e8m0"), branch=branch)


def test_a_plan_is_worked_out_once_for_a_type_of_input(
    layer: PackedLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    planned = dispatch._planned
    monkeypatch.setattr(dispatch, "_planned", lambda *given: made.append(given[0]) or planned(*given))
    assert [road(layer), road(layer), road(layer, tokens=40)] == ["fp8"] * 3
    assert len(made) == 1
    road(layer, torch.bfloat16)
    assert len(made) == 2


def test_few_tokens_are_no_matter_of_the_plan() -> None:
    layer = PackedLinear(uniform(4))
    roads = [road(layer, HALF, tokens) for tokens in (dispatch.FEW_TOKENS, dispatch.FEW_TOKENS + 1, 1)]
    assert roads == ["gemv", "expand", "gemv"]
    assert [road(layer), road(layer, HALF)] == ["expand", "gemv"]


def test_replaced_parts_are_planned_anew(layer: PackedLinear) -> None:
    assert road(layer) == "fp8"
    layer.act = quantizer("integer")
    assert road(layer) == "expand"
    layer.weight = uniform(4, scales="integer")
    assert road(layer) == "int8"
    layer.act = None
    assert road(layer) == "expand"
    layer.weight = uniform(4, "midrise")
    assert road(layer, HALF) == "expand"
    layer.weight = uniform(4)
    assert road(layer, HALF) == "gemv"
    layer.weight = nn.Module()  # of another library
    layer.weight.kind, layer.weight.packed = "strange", torch.empty(0)
    assert road(layer, HALF) == "reference"


def test_a_branch_that_is_replaced_is_in_the_plan(
    layer: PackedLinear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "appends_branch", lambda layer, _: layer.branch.rank <= 2)
    x = torch.ones(3, 64)
    assert dispatch.plan_of(layer, x).append
    layer.branch = LowRankBranch(torch.ones(4, 64), torch.ones(16, 4))
    assert not dispatch.plan_of(layer, x).append


def test_a_device_has_its_own_plan(layer: PackedLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_has_fp8", lambda device: device.type != "meta")
    assert road(layer) == "fp8"
    assert road(layer.to("meta")) == "expand"


def test_a_plan_is_neither_copied_nor_stored(layer: PackedLinear) -> None:
    keys = set(layer.state_dict())
    road(layer)
    assert layer.plan is not None
    assert set(layer.state_dict()) == keys
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.plan is None
        assert road(twin) == "fp8"
        assert twin.plan.weight is twin.weight


def test_a_copy_of_a_compiled_layer_is_a_layer_of_its_own(layer: PackedLinear) -> None:
    x = torch.ones(3, 64)
    with torch.no_grad(), dispatch.use_backend("reference"):
        layer.compile(backend="eager")
        y = layer(x)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            twin.weight.scale *= 2
            twin.branch = None
            assert not torch.equal(twin(x), y)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["packed", "scale", "multiplier"])
def test_a_plan_keeps_no_tensor_alive(layer: PackedLinear, name: str) -> None:
    road(layer)
    watched = weakref.ref(getattr(layer.weight, name))
    moved: Tensor = getattr(layer.weight, name).clone()
    layer.weight._buffers[name] = moved  # as libraries do that move a model's tensors to and fro
    gc.collect()
    assert watched() is None
