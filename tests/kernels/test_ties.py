"""Layers with one input share one smoothing vector and one down factor; nothing else changes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from harness.kernels.branch import LowRankBranch
from harness.kernels.checkpoint import TENSORS, load_checkpoint, save_checkpoint
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.ties import tie_siblings
from harness.kernels.weights import UniformWeight


def attention(seed: int) -> nn.ModuleDict:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    smooth, down = draw(16).abs() + 0.5, draw(2, 16)

    def layer(smooth: Tensor, down: Tensor) -> PackedLinear:
        weight = UniformWeight.pack(quantize_uniform(draw(8, 16), 4, group=8), 4, "asymmetric", 8)
        return PackedLinear(weight, smooth=smooth, branch=LowRankBranch(down, draw(8, 2)))

    return nn.ModuleDict(
        {
            "q": layer(smooth, down),
            "k": layer(smooth, down),
            "v": layer(smooth, down + 1),
            "out": layer(smooth + 1, down),
        }
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = attention(0), attention(0)


def test_siblings_with_equal_tensors_share_them() -> None:
    net, x = Net(), torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    before = [layer(x) for layer in net.first.values()]
    assert tie_siblings(net) == 2 * 4
    first = net.first
    assert first["q"].smooth is first["k"].smooth is first["v"].smooth
    assert first["q"].branch.down is first["k"].branch.down is first["out"].branch.down
    assert first["v"].branch.down is not first["q"].branch.down
    assert first["out"].smooth is not first["q"].smooth
    assert net.second["q"].smooth is not first["q"].smooth
    assert all(torch.equal(a, layer(x)) for a, layer in zip(before, first.values(), strict=True))
    assert tie_siblings(net) == 0


def test_a_checkpoint_does_not_show_ties(tmp_path: Path) -> None:
    plain, tied = Net(), Net()
    tie_siblings(tied)
    save_checkpoint(plain, tmp_path / "plain")
    save_checkpoint(tied, tmp_path / "tied")
    assert (tmp_path / "plain" / TENSORS).read_bytes() == (tmp_path / "tied" / TENSORS).read_bytes()
    floats = nn.Module()
    for name in ("first", "second"):
        floats.add_module(name, nn.ModuleDict({k: nn.Linear(16, 8, bias=False) for k in plain.first}))
    load_checkpoint(floats, tmp_path / "tied")
    x = torch.ones(1, 16)
    assert all(torch.equal(floats.first[key](x), plain.first[key](x)) for key in plain.first)
