"""Layers with one input as one layer: the same numbers, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.kernels.activations import ActQuantizer
from harness.kernels.branch import LowRankBranch
from harness.kernels.joined import Pieces, join_linear
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
        elif what == "down":
            last.branch.down = last.branch.down + 1
        elif what == "branch":
            last.branch = None
        elif what == "act":
            last.act = ActQuantizer(8, "token", "dynamic", True)
        elif what == "scales":
            last.weight = layers(scales="float")[2].weight
        elif what == "kind":
            codes = quantize_normal_float(torch.ones(ROWS[2], IN), 4, 8)
            last.weight = NormalFloatWeight.pack(codes, 4, 8)
        elif what == "rows":
            last.weight = layers(rows=5)[2].weight
        elif what == "float":
            return [*parts[:2], nn.Linear(IN, 4)]
        return list(parts)

    assert join_linear(changed("")) is not None
    for what in ("smooth", "down", "branch", "act", "scales", "kind", "rows", "float"):
        assert join_linear(changed(what)) is None, what
    assert join_linear([]) is None


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
