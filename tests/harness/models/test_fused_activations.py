"""Which of FLUX's layers apply GELU themselves; that values stay is tested at reduced true size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from harness.kernels.gelu import LinearAfterGelu
from harness.kernels.layers import PackedLinear
from harness.kernels.quantizers.uniform import quantize_uniform
from harness.kernels.weights import UniformWeight
from harness.models.fuse import _single_block, fuse_activations


def packed() -> PackedLinear:
    codes = quantize_uniform(torch.ones(4, 8), 4, grid="narrow", group=None)
    return PackedLinear(UniformWeight.pack(codes, 4, "narrow", None)).eval()


class Gelu(nn.Module):
    """As diffusers' module of that name: a layer and the activation after it."""

    def __init__(self, approximate: str = "tanh") -> None:
        super().__init__()
        self.proj, self.approximate = nn.Linear(8, 8), approximate


Gelu.__name__ = "GELU"


def feed_forward(first: nn.Module, last: nn.Module) -> nn.Module:
    made = nn.Module()
    made.net = nn.ModuleList([first, nn.Dropout(0.0), last])
    return made


def double(*forwards: nn.Module) -> Any:
    block: Any = type("FluxTransformerBlock", (nn.Module,), {})()
    block.ff, block.ff_context = forwards
    return block.eval()


class FluxSingleTransformerBlock(nn.Module):
    def __init__(self, last: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.proj_out, self.act_mlp = last, act

    def forward(self, hidden_states: Tensor, of_another_version: Tensor) -> Tensor:
        return hidden_states


def test_feed_forwards_of_packed_layers_lose_their_gelu() -> None:
    block = double(feed_forward(Gelu(), packed()), feed_forward(Gelu(), nn.Linear(8, 4)))
    proj = block.ff.net[0].proj
    assert fuse_activations(block) == 1
    assert block.ff.net[0] is proj
    assert isinstance(block.ff.net[2], LinearAfterGelu)
    assert isinstance(block.ff_context.net[2], nn.Linear)
    assert fuse_activations(block) == 0  # a second time


def test_other_activations_and_dropout_that_drops_stay() -> None:
    for change in ("erf", "dropout", "class"):
        first = nn.SiLU() if change == "class" else Gelu("none" if change == "erf" else "tanh")
        block = double(feed_forward(first, packed()), feed_forward(first, packed()))
        if change == "dropout":
            block.train()
        assert fuse_activations(block) == 0, change
        assert type(block.ff.net[2]) is PackedLinear


def test_a_block_of_another_version_is_left_as_it_is() -> None:
    block = FluxSingleTransformerBlock(packed(), nn.GELU(approximate="tanh"))
    assert fuse_activations(block) == 0
    assert type(block.proj_out) is PackedLinear
    assert isinstance(block.act_mlp, nn.GELU)


def test_a_block_that_something_else_runs_is_left_as_it_is() -> None:
    class Block(FluxSingleTransformerBlock):
        forward = _single_block

    Block.__name__ = "FluxSingleTransformerBlock"
    hooked = Block(packed(), nn.GELU(approximate="tanh"))
    hooked.forward = lambda *_: None
    assert fuse_activations(hooked) == 0
    assert fuse_activations(Block(packed(), nn.GELU(approximate="tanh"))) == 1
