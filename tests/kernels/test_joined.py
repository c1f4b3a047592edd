"""Layers with one input as one layer: the same numbers, row by row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.dispatch import MOST_APPENDED
from harness.kernels.joined import FirstOfTwo, Pieces, SecondOfTwo, join_linear
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.grid import Grid
from harness.kernels.quantizers.normal_float import quantize_normal_float
from harness.kernels.quantizers.scales import ScaleFormat
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import NormalFloatWeight, UniformWeight

IN, ROWS = 24, (7, 7, 7)


def layers(
    *,
    grid: Grid = "narrow",
    scales: ScaleFormat = "e8m0",
    act: ActQuantizer | None = None,
    bias: bool = True,
    rows: int = ROWS[2],
) -> list[PackedLinear]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    smooth, down = draw(IN).abs() + 0.5, draw(2, IN)
    made = []
    for outs in (*ROWS[:2], rows):
        codes = quantize_uniform(draw(outs, IN), 4, grid=grid, group=8, scale_format=scales)
        made.append(
            PackedLinear(
                UniformWeight.pack(codes, 4, grid, 8),
                bias=draw(outs) if bias else None,
                act=act,
                smooth=smooth,
                branch=LowRankBranch(down, draw(outs, 2)),
            )
        )
    return made


@pytest.mark.parametrize(
    ("grid", "scales", "bias"),
    [("narrow", "e8m0", True), ("asymmetric", "float", True), ("asymmetric", "integer", False)],
)
def test_a_joined_layer_computes_what_its_parts_do(grid: Grid, scales: ScaleFormat, bias: bool) -> None:
    act = ActQuantizer(4, "group", "dynamic", True, group=8, scale_format="integer")
    parts = layers(grid=grid, scales=scales, act=act, bias=bias)
    joined = join_linear(parts)
    assert joined is not None
    assert torch.equal(joined.weight.dequantize(), torch.cat([part.weight.dequantize() for part in parts]))
    assert joined.shape == (sum(ROWS), IN)
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(1))
    for piece, part in zip(joined(x).chunk(3, dim=-1), parts, strict=True):
        assert piece.is_contiguous()
        torch.testing.assert_close(piece, part(x), rtol=1e-6, atol=1e-6)
    joined.check()
    held = sum(sum(part.bytes_by_part().values()) for part in parts)
    shared = 2 * 2 * (IN + 2 * IN)  # two parts' vector and down factor of rank 2, in 16 bits
    assert sum(joined.bytes_by_part().values()) == held - shared


def test_layers_that_differ_in_more_than_rows_are_not_joined() -> None:
    act = ActQuantizer(4, "group", "dynamic", True, group=8)

    def changed(what: str) -> list[nn.Module]:
        parts = layers(act=act)
        last = parts[2]
        assert last.branch is not None
        assert last.smooth is not None
        if what == "smooth":
            last.smooth = last.smooth * 2
        elif what == "directions":
            rank = MOST_APPENDED - 1  # beside the two of the others
            last.branch = LowRankBranch(torch.ones(rank, IN), torch.ones(ROWS[2], rank))
        elif what == "branch":
            last.branch = None
        elif what == "act":
            last.act = ActQuantizer(8, "token", "dynamic", True)
        elif what == "scales":
            last.weight = layers(scales="float")[2].weight
        elif what == "kind":
            codes = quantize_normal_float(torch.ones(ROWS[2], IN), 4, 8)
            last.weight = NormalFloatWeight.pack(codes, 4, 8)
        elif what == "float":
            return [*parts[:2], nn.Linear(IN, 4)]
        return list(parts)

    assert join_linear(changed("")) is not None
    for what in ("smooth", "directions", "branch", "act", "scales", "kind", "float"):
        assert join_linear(changed(what)) is None, what
    assert join_linear([]) is None


def test_branches_with_other_directions_stand_beside_each_other() -> None:
    parts = layers(act=ActQuantizer(4, "group", "dynamic", True, group=8), rows=5)
    assert parts[2].branch is not None
    parts[2].branch = LowRankBranch(-torch.ones(3, IN), torch.full((5, 3), 2.0))
    joined = join_linear(parts)
    assert joined is not None
    assert joined.branch is not None
    assert joined.branch.rank == 2 + 3  # the first two share theirs
    assert not joined.branch.up[:14, 2:].any()
    assert not joined.branch.up[14:, :2].any()
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(1))
    for piece, part in zip(joined(x).tensors, parts, strict=True):
        assert piece.is_contiguous()
        torch.testing.assert_close(piece, part(x), rtol=1e-6, atol=1e-6)


def test_what_the_first_keeps_is_taken_once_and_for_its_input() -> None:
    parts = layers(act=ActQuantizer(4, "group", "dynamic", True, group=8), rows=5)
    joined = join_linear(parts)
    assert joined is not None
    runs: list[Tensor] = []
    joined.register_forward_pre_hook(lambda _, given: runs.append(given[0]))
    first = FirstOfTwo(joined)
    second = SecondOfTwo(first)
    x, y = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(1))

    def check(given: Tensor) -> None:
        for piece, part in zip(second(given).chunk(2, dim=-1), parts[:2], strict=True):
            torch.testing.assert_close(piece, part(given), rtol=1e-6, atol=1e-6)

    torch.testing.assert_close(first(x), parts[2](x), rtol=1e-6, atol=1e-6)
    check(x)
    assert len(runs) == 1
    assert first.kept is None
    check(x)  # nothing is left
    first(x)
    check(y)  # of another input
    assert [given is y for given in runs] == [False, False, False, True]
    assert first.kept is None


def test_nothing_is_kept_of_a_call_that_failed_or_of_one_without_gradients() -> None:
    joined = join_linear(layers(act=ActQuantizer(4, "group", "dynamic", True, group=8)))
    assert joined is not None
    first = FirstOfTwo(joined)
    second = SecondOfTwo(first)
    x = torch.randn(3, IN, generator=torch.Generator().manual_seed(1), requires_grad=True)
    first(x)
    assert copy.deepcopy(first).kept is None
    with pytest.raises(RuntimeError):
        first(torch.ones(3, IN + 1))
    assert first.kept is None
    with torch.no_grad():
        first(x)
    assert all(piece.requires_grad for piece in second(x).tensors)


def test_a_compiler_sees_both_places_of_joined_layers_in_one_graph() -> None:
    joined = join_linear(layers(act=ActQuantizer(4, "group", "dynamic", True, group=8, scale_format="e8m0")))
    assert joined is not None
    first = FirstOfTwo(joined)
    second = SecondOfTwo(first)
    x = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(1))

    def block(x: Tensor) -> tuple[Tensor, ...]:
        return first(x), *second(x).chunk(2, dim=-1)

    products: list[int] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        products.append(sum("linear" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    with torch.no_grad():
        wanted = block(x)
        found = torch.compile(block, fullgraph=True, backend=keep)(x)
    torch._dynamo.reset()
    assert products == [3]  # one each with the weight and both factors
    assert first.kept is None
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_stored_ranges_are_each_layer_s_own() -> None:
    def static() -> ActQuantizer:
        return ActQuantizer(8, "tensor", "static", False, range=torch.tensor([[-1.0, 1.0]]))

    parts = layers()
    for part in parts:
        part.act = static()
    assert join_linear(parts) is None


def test_outputs_are_cut_apart_between_layers_alone() -> None:
    parts = torch.ones(2, 3, 4), torch.zeros(2, 3, 4)
    pieces = Pieces(parts)
    assert pieces.chunk(2, dim=-1) is pieces.chunk(2, dim=2) is parts
    for chunks, dim in ((4, -1), (1, -1), (2, 0), (2, 1), (2, -2)):
        with pytest.raises(ValueError, match=f"2 layers in {chunks} chunks along axis {dim}"):
            pieces.chunk(chunks, dim=dim)


def test_a_compiler_is_given_one_wide_output() -> None:
    act = ActQuantizer(4, "group", "dynamic", True, group=8, scale_format="e8m0")
    joined = join_linear(layers(act=act))
    assert joined is not None
    x = torch.randn(2, 3, IN, generator=torch.Generator().manual_seed(1))
    found: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        found.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    compiled = torch.compile(lambda x: joined(x).chunk(3, dim=-1), fullgraph=True, backend=keep)
    with torch.no_grad():
        cut, pieces = compiled(x), joined(x).chunk(3, dim=-1)
    torch._dynamo.reset()
    assert "contiguous" not in found[0]
    assert cut[1].untyped_storage().data_ptr() == cut[0].untyped_storage().data_ptr()
    for one, other in zip(cut, pieces, strict=True):
        assert torch.equal(one, other)
        assert other.untyped_storage().nbytes() == other.nbytes
