"""Joined layers on the kernels' roads: outputs in a tensor each, bit for bit those of one wide product."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from interpreter import needs_interpreter, normal
from seen_ops import Seen
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness.conformance.packed import uniform_weight
from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.joined import JoinedLinear, join_linear
from harness.kernels.layers import PackedLinear

pytestmark = [needs_interpreter, pytest.mark.usefixtures("the_kernels")]
IN, OUT = 128, 48
ROADS = {
    "int8": ["quantize_projected", "expand", "scaled_pieces"],
    "int8 tokens": ["quantize_tokens", "project", "expand", "scaled_pieces"],
    "fp8": ["quantize_projected", "expand_float8", "scaled_pieces"],
    "fp8 appended": ["quantize_projected", "expand_float8", "scaled_pieces"],
    "fp8 bare": ["quantize_projected", "expand_float8", "scaled_pieces"],
    "gemv": ["gemv"],
    "gemv token": ["single"],
    "expand": ["expand"],
}


def joined_for(road: str) -> JoinedLinear:
    coded = not road.startswith(("gemv", "expand"))
    scales = {"int8": "integer", "fp8": "e8m0"}.get(road.split(maxsplit=1)[0], "float") if coded else "float"
    tokens = road == "int8 tokens"
    act = ActQuantizer(8) if tokens else ActQuantizer(4, "group", "dynamic", True, scale_format=scales)
    smooth, down = normal(IN, seed=1).abs() + 0.5, 0.1 * normal(5, IN, seed=2)
    numbers = (3, "asymmetric", None, "float") if tokens else (4, "narrow", 64, scales)
    parts = []
    for seed in (10, 20, 30):
        parts.append(
            PackedLinear(
                uniform_weight(normal(OUT, IN, seed=seed), *numbers),
                bias=None if road == "fp8 bare" else normal(OUT, seed=seed + 1),
                act=act if coded else None,
                smooth=smooth,
                branch=LowRankBranch(down, 0.3 * normal(OUT, 5, seed=seed + 2)),
            )
        )
    joined = join_linear(parts)
    assert joined is not None
    return joined


def input_for(road: str) -> Tensor:
    if road == "gemv token":
        return normal(1, 1, IN, seed=6).half()
    return normal(2, 3, IN, seed=6).to(torch.float16 if road == "gemv" else torch.float32)


@pytest.mark.parametrize("road", list(ROADS))
def test_pieces_are_the_cuts_of_one_wide_product(road: str) -> None:
    joined, x = joined_for(road), input_for(road)
    wanted = PackedLinear.forward(joined, x).chunk(3, dim=-1)
    pieces = joined(x).chunk(3, dim=-1)
    with Seen() as seen:
        through = joined(x).chunk(3, dim=-1)
    assert seen.names == ROADS[road]
    assert joined.road_taken == road.split(maxsplit=1)[0]
    for piece, other, cut in zip(pieces, through, wanted, strict=True):
        assert piece.is_contiguous()
        assert piece.shape == (*x.shape[:-1], OUT)
        assert torch.equal(piece, cut)
        assert torch.equal(other, cut)


@pytest.mark.parametrize("road", list(ROADS))
def test_fakes_of_pieces_have_their_shapes(road: str) -> None:
    joined, x = joined_for(road), input_for(road)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    for fake in joined(mode.from_tensor(x)).chunk(3, dim=-1):
        assert (fake.shape, fake.dtype) == ((*x.shape[:-1], OUT), x.dtype)
        assert fake.is_contiguous()


@pytest.mark.parametrize("road", ["int8", "fp8", "fp8 appended"])
def test_compiled_pieces_are_slices_of_one_product(road: str) -> None:
    joined, x = joined_for(road), input_for(road)
    compiled = torch.compile(lambda x: joined(x).chunk(3, dim=-1), backend="aot_eager", fullgraph=True)
    found = compiled(x)
    torch._dynamo.reset()
    assert len({each.untyped_storage().data_ptr() for each in found}) == 1
    for one, other in zip(found, joined(x).chunk(3, dim=-1), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("road", ["fp8", "fp8 appended"])
def test_the_vendors_product_is_given_rows_of_a_piece(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.kernels.triton import launch

    joined, x = joined_for(road), input_for(road)
    wanted = joined(x).chunk(3, dim=-1)
    given, real = [], torch._scaled_mm  # which a CPU has, too

    def product(codes: Tensor, weight: Tensor, **rest: Any) -> Tensor:
        given.append(weight)
        assert weight.stride(0) == 1  # column-major, as the vendor's library wants it
        assert rest["scale_a"].shape == (len(codes), 1)
        assert rest["scale_b"].shape == (1, OUT)
        assert rest["scale_b"].is_contiguous()
        return real(codes, weight, **rest)

    monkeypatch.setattr(launch, "has_vendor_product", lambda *_: True)
    monkeypatch.setattr(torch, "_scaled_mm", product)
    for one, other in zip(joined(x).chunk(3, dim=-1), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert [weight.shape[1] for weight in given] == [OUT] * 3


def test_what_is_trained_is_not_passed_over() -> None:
    joined = joined_for("fp8")
    assert joined.bias is not None
    joined.bias = joined.bias.float().requires_grad_()
    with torch.enable_grad():
        pieces = joined(input_for("fp8")).chunk(3, dim=-1)
        assert all(piece.requires_grad for piece in pieces)
        with pytest.raises(RuntimeError, match="has no gradient"):
            pieces[1].sum().backward()


def test_inputs_of_another_width_are_refused() -> None:
    for road in ("fp8", "gemv", "expand"):
        with pytest.raises(ValueError, match=f"64 channels for a layer of {IN}"):
            joined_for(road)(normal(2, 64).to(input_for(road).dtype))
