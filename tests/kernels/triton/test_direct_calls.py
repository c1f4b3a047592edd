"""Kernels called past torch's dispatcher: what they compute, when they are, and with which tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import needs_interpreter, normal
from seen_ops import Seen
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import profile

from harness.conformance.packed import uniform_weight
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.layers import PackedLinear

pytestmark = [needs_interpreter, pytest.mark.usefixtures("the_kernels")]
ROADS = ["int8", "int8 tokens", "fp8", "fp8 appended", "gemv", "gemv token", "expand"]
OPS = {
    "int8": ["quantize_projected", "expand", "scaled_linear"],
    "int8 tokens": ["quantize_tokens", "project", "expand", "scaled_linear"],
    "fp8": ["quantize_projected", "expand_float8", "scaled_linear"],
    "fp8 appended": ["quantize_projected", "expand_float8", "scaled_linear"],
    "gemv": ["gemv"],
    "gemv token": ["single"],
    "expand": ["expand"],
}


def layer_of(road: str, seed: int = 0) -> PackedLinear:
    w = normal(20, 128, seed=seed)
    parts: dict[str, Any] = {"bias": normal(20, seed=seed + 1)}
    if road in {"gemv", "gemv token", "expand"}:
        return PackedLinear(uniform_weight(w, 4, "narrow", 64), **parts)
    parts["branch"] = LowRankBranch(0.1 * normal(5, 128, seed=seed + 2), 0.3 * normal(20, 5, seed=seed + 3))
    parts["smooth"] = normal(128, seed=seed + 4).abs() + 0.5
    if road == "int8 tokens":
        return PackedLinear(uniform_weight(w, 3, "narrow", None), act=ActQuantizer(8), **parts)
    scales = "integer" if road == "int8" else "e8m0"
    act = ActQuantizer(4, "group", "dynamic", True, scale_format=scales)
    return PackedLinear(uniform_weight(w, 4, "narrow", 64, scales), act=act, **parts)


def input_of(road: str) -> Tensor:
    if road == "gemv token":
        return normal(1, 128, seed=6).half()
    return normal(4, 128, seed=6).to(torch.float16 if road == "gemv" else torch.float32)


@pytest.mark.parametrize("road", ROADS)
def test_values_are_those_of_the_ops(road: str) -> None:
    layer, x = layer_of(road), input_of(road)
    y = layer(x)
    with Seen() as seen:
        through = layer(x)
    assert seen.names == OPS[road]
    assert layer.road_taken == road.split(maxsplit=1)[0]
    assert torch.equal(y, through)
    with torch.inference_mode():
        assert torch.equal(layer(x), y)
    with torch.enable_grad(), torch.autocast("cpu", enabled=road != "expand"):  # which is torch's product
        assert torch.equal(layer(x), y)


def test_nothing_of_the_dispatcher_is_in_between() -> None:
    layer, x = layer_of("fp8"), input_of("fp8")
    with profile() as taken:
        layer(x)
    assert not [event.name for event in taken.events() if "harness" in event.name]


@pytest.mark.parametrize("road", ROADS)
def test_fake_tensors_meet_the_ops_fakes(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton.ready import Launch

    layer, x = layer_of(road), input_of(road)
    y = layer(x)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    outside = layer(mode.from_tensor(x))  # the weight is there, and expanded
    monkeypatch.setattr(Launch, "__call__", lambda *_: pytest.fail("a kernel was launched"))
    with mode:
        inside = layer(mode.from_tensor(x))
    for fake in (inside, outside):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.dtype) == (y.shape, y.dtype)


def test_transforms_and_traces_meet_the_ops() -> None:
    from harness.kernels.triton import register

    x, found = torch.ones(2, 3), []

    def look(x: Tensor) -> Tensor:
        found.append(register.unobserved((x, 1, None, torch.float32)))
        return x * 2

    look(x)
    torch.func.vmap(look)(x)
    torch.func.grad(lambda x: look(x).sum())(x)
    torch.jit.trace(look, (x,), check_trace=False)
    torch.fx.experimental.proxy_tensor.make_fx(look)(x)
    assert found == [True, False, False, False, False]
    assert not register.unobserved((x, torch.nn.Buffer(x), FakeTensorMode().from_tensor(x)))


@pytest.mark.parametrize("road", ROADS)
def test_a_layer_reads_what_it_holds_at_the_time(road: str) -> None:
    layer, other, x = layer_of(road), layer_of(road, seed=10), input_of(road)
    first, wanted = layer(x), other(x)
    assert not torch.equal(first, wanted)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(x), wanted)
    for assigned in (layer_of(road), layer_of(road)):
        assert torch.equal(assigned(x), first)
    assigned.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(assigned(x), wanted)
    swapped = layer_of(road)
    swapped(x)
    for mine, theirs in zip(swapped.buffers(), other.buffers(), strict=True):
        mine.data = theirs.data.clone()  # as libraries do that move a model's tensors to and fro
    assert torch.equal(swapped(x), wanted)


@pytest.mark.parametrize("road", ["int8", "int8 tokens", "fp8", "fp8 appended"])
def test_what_is_trained_is_not_passed_over(road: str) -> None:
    layer = layer_of(road)
    assert layer.bias is not None
    layer.bias = layer.bias.float().requires_grad_()
    with torch.enable_grad():
        y = layer(input_of(road))
        assert y.requires_grad
        with pytest.raises(RuntimeError, match="has no gradient"):
            y.sum().backward()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        with pytest.raises(Exception, match="has no gradient"):  # Dynamo wraps it in an exception of its own
            compiled(input_of(road))
    torch._dynamo.reset()


@pytest.mark.parametrize("road", ROADS)
def test_inputs_of_another_width_are_refused(road: str) -> None:
    for width in (64, 256):
        with pytest.raises(ValueError, match=f"{width} channels for a layer of 128"):
            layer_of(road)(normal(4, width).to(input_of(road).dtype))
