import torch
from torch import nn

from harness.cell import _joined
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.roads import roads_taken
from harness.kernels.weights import UniformWeight


def packed() -> PackedLinear:
    codes = quantize_uniform(torch.ones(4, 8), 4)
    return PackedLinear(UniformWeight.pack(codes, 4, "asymmetric"))


def test_roads_are_those_that_the_dispatch_left_on_packed_layers() -> None:
    model = nn.ModuleDict({"q": packed(), "k": packed(), "v": packed(), "norm": nn.LayerNorm(4)})
    assert roads_taken(model) == {}
    model["q"].road_taken = "int8"
    model["k"].road_taken = None  # not run yet
    model["norm"].road_taken = "int8"  # not packed
    assert roads_taken(nn.Sequential(model)) == {"0.q": "int8"}


def test_blocks_that_differ_name_every_road() -> None:
    assert _joined([{"q": "int8", "k": "gemv"}, {"q": "expand16", "k": "gemv"}, {}]) == {
        "q": "expand16, int8",
        "k": "gemv",
    }
    assert _joined([]) == {}
