"""Layers that apply GELU themselves, on the reference backend and the kernels' roads."""

from __future__ import annotations

import pytest
import torch
from interpreter import needs_interpreter, normal
from torch import Tensor

from harness.conformance.packed import uniform_weight
from harness.kernels import dispatch
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.gelu import LinearAfterGelu
from harness.kernels.layers import PackedLinear

IN, LEADING, OUT = 192, 64, 24
ROADS = ["reference", "fp8", "int8", "expand", "gemv", "int8 bare"]


def layer_for(road: str) -> PackedLinear:
    scales = "integer" if road.startswith("int8") else "e8m0" if road in {"reference", "fp8"} else "float"
    act = None if road == "gemv" else ActQuantizer(4, "group", "dynamic", True, scale_format=scales)
    weight = uniform_weight(normal(OUT, IN), 4, "narrow", 64, scales)
    branch = (
        None if road == "int8 bare" else LowRankBranch(0.1 * normal(5, IN, seed=2), normal(OUT, 5, seed=3))
    )
    return PackedLinear(
        weight, bias=normal(OUT, seed=4), act=act,
        smooth=normal(IN, seed=1).abs() + 0.5, branch=branch,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("leading", [0, LEADING])
@pytest.mark.parametrize("road", ROADS)
def test_a_layer_after_gelu_is_the_layer_of_what_gelu_makes(road: str, leading: int) -> None:
    if road != "reference" and not dispatch.triton_runs_on(torch.device("cpu")):
        pytest.skip("kernels run on a CPU in Triton's interpreter: TRITON_INTERPRET=1")
    plain = layer_for(road)
    layer = LinearAfterGelu.of(plain)
    assert layer.smooth is plain.smooth
    assert not layer.training
    kind = torch.float16 if road == "gemv" else torch.float32
    x = (2 * normal(2, 5, IN - leading, seed=5)).to(kind)
    ahead = normal(2, 5, leading, seed=6).to(kind) if leading else None
    tanh = torch.tanh((2 / torch.pi) ** 0.5 * (x.double() + 0.044715 * x.double() ** 3))
    given = (x.double() * (1 + tanh) / 2).to(kind)
    whole = given if ahead is None else torch.cat([ahead, given], dim=-1)
    with torch.no_grad(), dispatch.use_backend("reference" if road == "reference" else "triton"):
        found, wanted = layer(x, ahead), plain(whole)
        assert layer.road_taken == plain.road_taken == road.split(maxsplit=1)[0]
        assert found.shape == (2, 5, OUT)
        error = (found.double() - wanted.double()).norm() / wanted.double().norm()
        assert error < 2e-3  # a code at a tie
        if road != "reference":
            with pytest.raises(ValueError, match=f"{IN - 1} channels for a layer of {IN}"):
                layer(x[..., 1:], ahead)


@needs_interpreter
def test_compiled_it_is_one_quantization_of_both_parts() -> None:
    layer = LinearAfterGelu.of(layer_for("fp8"))
    x, ahead = 2 * normal(3, IN - LEADING, seed=5), normal(3, LEADING, seed=6)
    graphs: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    with torch.no_grad(), dispatch.use_backend("triton"):
        compiled = torch.compile(layer, fullgraph=True, backend=keep)
        assert torch.equal(compiled(x, ahead), layer(x, ahead))
    torch._dynamo.reset()
    assert not any("gelu" in name or "cat" in name for name in graphs[0])
    assert sum("quantize_projected" in name for name in graphs[0]) == 1


def test_channels_ahead_that_do_not_belong_are_refused() -> None:
    layer = LinearAfterGelu.of(layer_for("reference"))
    x = normal(2, 5, IN - LEADING)
    for ahead in (
        normal(1, 5, LEADING),
        normal(5, 2, LEADING),
        normal(10, LEADING),
        normal(2, 5, LEADING).half(),
    ):
        with pytest.raises(ValueError, match="channels of"):
            layer(x, ahead)


@needs_interpreter
def test_what_trains_the_channels_ahead_takes_the_reference() -> None:
    layer = LinearAfterGelu.of(layer_for("fp8"))
    x, ahead = normal(2, 5, IN - LEADING), normal(2, 5, LEADING, seed=6).requires_grad_()
    with dispatch.use_backend("triton"):
        layer(x, ahead).sum().backward()
    assert ahead.grad is not None
